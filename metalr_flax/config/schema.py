"""What a config may hold: plain values, and the public fields with their rules.

A config names what differs from the defaults given here. No JAX is imported.
"""

from collections.abc import Iterator, Mapping
import math
from typing import Any, NamedTuple

from metalr_flax import errors
from metalr_flax.config import rules

_MAX_DEPTH = 50

CADENCES = ('log_every', 'eval_every', 'checkpoint_every')
# `log_every` ends no chunk: the metrics of all its steps are fetched anyway.
CHUNK_ENDS = ('eval_every', 'checkpoint_every')
# What a run may change when it is resumed, beside a larger `num_outer_steps`.
MAY_CHANGE = (*CADENCES, 'patience', 'profile_steps', 'dry_run', 'mesh')


class Field(NamedTuple):
  """A public field of a config.

  Attributes:
    rule: what its value must be.
    meaning: what it is for, a phrase.
    default: its value where a config leaves it out; None for a field that
      every config must have.
  """

  rule: rules.Rule
  meaning: str
  default: Any = None


FIELDS: dict[str, Field] = {
  'seed': Field(rules.SEED, 'of the weights and the batches', 0),
  'num_outer_steps': Field(
    rules.INTEGER, 'length of the run; a larger one continues it', 1000
  ),
  'log_every': Field(
    rules.POSITIVE_INTEGER, 'outer steps between rows in TensorBoard', 20
  ),
  'eval_every': Field(
    rules.POSITIVE_INTEGER, 'outer steps between evaluations', 100
  ),
  'checkpoint_every': Field(
    rules.POSITIVE_INTEGER, 'outer steps between checkpoints', 200
  ),
  'average': Field(
    rules.SHARE,
    "half-life of an average of the model, as a share of the run's steps so "
    'far; 0 for none',
    0.0,
  ),
  'population': Field(
    rules.MAPPING,
    "what differs among runs that one program trains side by side; {'seed': 64}"
    ' is 64 seeds',
    {},
  ),
  'best_metric': Field(
    rules.METRIC,
    "whose best checkpoint is kept beside the newest; '': none",
    '',
  ),
  'patience': Field(
    rules.INTEGER,
    'evaluations without a better best_metric that end the run; 0: never',
    0,
  ),
  'profile_steps': Field(
    rules.INTEGER, 'outer steps that each start traces with the profiler', 0
  ),
  'dry_run': Field(
    rules.FLAG, 'whether to try two outer steps and keep nothing', False
  ),
  'mesh': Field(
    rules.MESH,
    'devices that batches and that params are split over; () is all of them '
    'for batches',
    (),
  ),
  'threefry_partitionable': Field(
    rules.FLAG, "JAX's flag of that name, which decides random numbers", True
  ),
  'task.name': Field(rules.name_or_class(rules.TASKS, 'task'), 'data and loss'),
  'task.batch_size': Field(
    rules.POSITIVE_INTEGER, 'examples in the batch of an inner update', 32
  ),
  'task.path': Field(rules.TEXT, "a file or folder of the user's", ''),
  'task.kwargs': Field(rules.MAPPING, "the task's other arguments", {}),
  'task.loss_kwargs': Field(
    rules.MAPPING, 'arguments of the training loss, such as label_smoothing', {}
  ),
  'model.name': Field(
    rules.name_or_class(rules.MODELS, 'model'), 'the nnx.Module to train'
  ),
  'model.kwargs': Field(rules.MAPPING, "the model's arguments", {}),
  'inner.optimizer': Field(
    rules.OPTIMIZER, "updates the model's weights", 'rmsprop'
  ),
  'inner.learning_rate': Field(
    rules.POSITIVE_NUMBER, 'its rate; the initial one where it is learned', 1e-4
  ),
  'inner.kwargs': Field(rules.MAPPING, "the optimizer's other arguments", {}),
  'inner.clip_norm': Field(
    rules.NUMBER, "largest norm of a batch's gradient; 0 for any", 0.0
  ),
  'inner.microbatches': Field(
    rules.POSITIVE_INTEGER, 'parts that a batch is computed in, one by one', 1
  ),
  'inner.schedule': Field(
    rules.SCHEDULE, "multiplies the optimizer's updates, such as a warm-up", ''
  ),
  'inner.schedule_kwargs': Field(
    rules.MAPPING, "the schedule's arguments, in inner updates", {}
  ),
  'meta.learned': Field(
    rules.MAPPING,
    'the hyperparameters to learn, each with its bijection',
    {'learning_rate': 'sigmoid'},
  ),
  'meta.unroll_length': Field(
    rules.POSITIVE_INT32, 'K, inner updates in a window', 8
  ),
  'meta.estimator': Field(
    rules.one_of(rules.ESTIMATORS, 'estimator'),
    "how a window is differentiated; 'none' is plain training",
    'forward',
  ),
  'meta.remat': Field(
    rules.one_of(rules.REMATS, 'remat policy'),
    'what reverse mode computes again to save memory',
    'none',
  ),
  'meta.curvature': Field(
    rules.one_of(rules.CURVATURES, 'curvature'),
    'the Hessian term of the meta-gradient',
    'exact',
  ),
  'meta.subsample': Field(
    rules.POSITIVE_SHARE, "share of a batch for curvature 'subsample'", 0.25
  ),
  'meta.discount': Field(
    rules.SHARE, 'how much of the tangents outlives a window', 0.0
  ),
  'meta.objective': Field(
    rules.one_of(rules.OBJECTIVES, 'objective'),
    'the batches of the outer loss',
    'held_out',
  ),
  'meta.groups': Field(
    rules.GROUPS, 'parameters that share one learned value', ''
  ),
  'meta.optimizer': Field(
    rules.name_or_class(rules.META_OPTIMIZERS, 'optax optimizer'),
    'moves eta along its meta-gradient',
    'adam',
  ),
  'meta.learning_rate': Field(rules.NUMBER, 'its rate', 0.03),
}
# The names that a field may have.
NAMES = {
  'task.name': rules.TASKS,
  'model.name': rules.MODELS,
  'inner.optimizer': rules.OPTIMIZERS,
  'inner.schedule': rules.SCHEDULES,
  'meta.optimizer': rules.META_OPTIMIZERS,
  'meta.estimator': rules.ESTIMATORS,
  'meta.remat': rules.REMATS,
  'meta.curvature': rules.CURVATURES,
  'meta.objective': rules.OBJECTIVES,
}
SECTIONS = {name.partition('.')[0] for name in FIELDS if '.' in name}
# Below these, the keys are the user's.
MAPPINGS = tuple(
  name for name, field in FIELDS.items() if field.rule is rules.MAPPING
)


def to_plain(config: Mapping[str, Any]) -> dict[str, Any]:
  """A config as JSON values: references resolved, tuples as lists.

  Args:
    config: nested mapping, e.g. a ConfigDict's `to_dict()`.

  Returns:
    Nested dict of dict, list, str, int, float, bool and None.

  Raises:
    ConfigError: for a value that is neither, or a number that is not finite.
  """
  return _plain('', config)


def complete(plain: dict[str, Any]) -> None:
  """Writes the defaults of what a training config leaves out into it.

  Args:
    plain: a config; one of a comparison is left as it is.
  """
  if 'problems' in plain:
    return
  for name, field in FIELDS.items():
    section, _, key = name.rpartition('.')
    holder = plain.setdefault(section, {}) if section else plain
    if field.default is not None and isinstance(holder, dict):
      holder.setdefault(key, _plain(name, field.default))


def completed(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
  """A section of a training config with the defaults of what it leaves out."""
  whole = {section: {**values}}
  complete(whole)
  return whole[section]


def flatten(
  config: Mapping[str, Any], prefix: str = ''
) -> Iterator[tuple[str, Any]]:
  """Yields a config's values with their dotted names.

  Args:
    config: nested mapping; an empty mapping is a value.
    prefix: what the names start with.
  """
  for key, value in config.items():
    name = f'{prefix}{key}'
    if isinstance(value, Mapping) and value:
      yield from flatten(value, f'{name}.')
    else:
      yield name, value


def _plain(name: str, value: Any, depth: int = 0) -> Any:
  """Refuses all but JSON values, and numbers that are not finite."""
  if depth > _MAX_DEPTH:
    raise errors.ConfigError(
      f'{name.split(".")[0]}: holds itself, or more than {_MAX_DEPTH} levels; '
      f'a config is a few nested mappings of plain values'
    )
  if isinstance(value, Mapping):
    return {
      key: _plain(_join(name, key), v, depth + 1) for key, v in value.items()
    }
  if isinstance(value, (list, tuple)):
    return [_plain(name, v, depth + 1) for v in value]
  if isinstance(value, float) and not math.isfinite(value):
    rule = FIELDS[name].rule.text if name in FIELDS else 'must be finite'
    raise errors.ConfigError.of(
      name, value, rule, f'set --config.{name}= to a finite number'
    )
  if isinstance(value, int) and value.bit_length() > 64:
    raise errors.ConfigError.of(
      name,
      f'an integer of {value.bit_length()} bits',
      'must fit in 64 bits',
      f'set --config.{name}= to a smaller one',
    )
  if value is None or isinstance(value, (bool, int, float, str)):
    return value
  raise errors.ConfigError.of(
    name,
    _shown(value),
    'must be a number, a string, a list, a mapping or None',
    'a config holds plain values, objects are made from them',
  )


def _shown(value: Any) -> str:
  try:
    return repr(value)
  except Exception:  # of a class of the user's own
    return f'a {type(value).__name__}'


def _join(name: str, key: Any) -> str:
  """The dotted name of a mapping's key, which JSON has to keep as it is."""
  if not isinstance(key, str) or not key or '.' in key:
    raise errors.ConfigError(
      f'{name or "config"}: has the key {key!r}; use strings without dots'
    )
  return f'{name}.{key}' if name else key
