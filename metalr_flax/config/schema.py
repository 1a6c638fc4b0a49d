"""What a config may hold: plain values, and the public fields with their rules.

The tables are literal and import no JAX.
"""

from collections.abc import Callable, Iterator, Mapping
import copy
import math
import re
from typing import Any, NamedTuple

from metalr_flax import errors

_MAX_DEPTH = 50

# Literal copies of what `tasks`, `models`, the engine and optax offer: a test
# holds them equal.
TASKS = (
  'breast_cancer', 'digits', 'drifting_target', 'ill_conditioned_regression',
  'linear_regression', 'noisy_quadratic', 'text',
)  # fmt: skip
MODELS = ('cnn', 'linear', 'mlp', 'transformer', 'vector')
ESTIMATORS = ('forward', 'none', 'reverse')
REMATS = ('none', 'sqrt', 'step')
CURVATURES = ('exact', 'none', 'subsample')
OBJECTIVES = ('held_out', 'online')
OPTIMIZERS = (
  'adabelief', 'adadelta', 'adafactor', 'adagrad', 'adam', 'adamax',
  'adamaxw', 'adamw', 'adan', 'amsgrad', 'fromage', 'lamb', 'lars', 'lion',
  'nadam', 'nadamw', 'noisy_sgd', 'novograd', 'optimistic_adam_v2',
  'optimistic_gradient_descent', 'radam', 'rmsprop', 'sgd', 'sign_sgd', 'sm3',
  'yogi',
)  # fmt: skip

# Our own rule as the outer optimizer.
STEERING = 'steering'
META_OPTIMIZERS = (*OPTIMIZERS, STEERING)

CADENCES = ('log_every', 'eval_every', 'checkpoint_every')
# `log_every` ends no chunk: the metrics of all its steps are fetched anyway.
CHUNK_ENDS = ('eval_every', 'checkpoint_every')
USERS_OWN = re.compile(r'[A-Za-z_][\w.]*:[A-Za-z_]\w*')


class Rule(NamedTuple):
  """What a field must be.

  Attributes:
    text: the rule in words.
    holds: whether a value keeps it.
  """

  text: str
  holds: Callable[[Any], bool]


def _integer(low: int, high: float = math.inf) -> Rule:
  def holds(value: Any) -> bool:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return whole and low <= value <= high

  above = f'>= {low}' if high == math.inf else f'from {low} to {high}'
  return Rule(f'must be an integer {above}', holds)


def _number(low: float, high: float = math.inf, *, open_end: bool) -> Rule:
  def holds(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
      return False
    above = value > low if open_end else value >= low
    return math.isfinite(value) and above and value <= high

  below = '' if high == math.inf else f' and <= {high:g}'
  sign = '>' if open_end else '>='
  return Rule(f'must be a number {sign} {low:g}{below}', holds)


def _one_of(names: tuple[str, ...], what: str) -> Rule:
  def holds(value: Any) -> bool:
    return isinstance(value, str) and value in names

  return Rule(f'must be a known {what}', holds)


def _name_or_class(names: tuple[str, ...], what: str) -> Rule:
  def holds(value: Any) -> bool:
    known = isinstance(value, str)
    return known and bool(value in names or USERS_OWN.fullmatch(value))

  return Rule(f'must be a known {what} or package.module:Class', holds)


# What a field may hold, whichever field it is.
SEED = _integer(0, 2**32 - 1)
INTEGER = _integer(0, 2**31 - 1)
POSITIVE_INTEGER = _integer(1)
POSITIVE_INT32 = _integer(1, 2**31 - 1)
NUMBER = _number(0, open_end=False)
POSITIVE_NUMBER = _number(0, open_end=True)
SHARE = _number(0, 1, open_end=False)
POSITIVE_SHARE = _number(0, 1, open_end=True)
MAPPING = Rule('must be a mapping', lambda v: isinstance(v, dict))
TEXT = Rule('must be a string', lambda v: isinstance(v, str))
FLAG = Rule('must be True or False', lambda v: isinstance(v, bool))
OPTIMIZER = _name_or_class(OPTIMIZERS, 'optax optimizer')
GROUPS = Rule(
  "must be '', 'per_leaf' or package.module:function",
  lambda v: (
    isinstance(v, str)
    and (v in ('', 'per_leaf') or bool(USERS_OWN.fullmatch(v)))
  ),
)

# What a config file may leave out, with what it means then.
OPTIONAL: dict[str, Any] = {'meta.groups': '', 'task.loss_kwargs': {}}
FIELDS: dict[str, Rule] = {
  'seed': SEED,
  'num_outer_steps': INTEGER,
  'log_every': POSITIVE_INTEGER,
  'eval_every': POSITIVE_INTEGER,
  'checkpoint_every': POSITIVE_INTEGER,
  'threefry_partitionable': FLAG,
  'task.name': _name_or_class(TASKS, 'task'),
  'task.batch_size': POSITIVE_INTEGER,
  'task.path': TEXT,
  'task.kwargs': MAPPING,
  'task.loss_kwargs': MAPPING,
  'model.name': _name_or_class(MODELS, 'model'),
  'model.kwargs': MAPPING,
  'inner.optimizer': OPTIMIZER,
  'inner.learning_rate': POSITIVE_NUMBER,
  'inner.kwargs': MAPPING,
  'meta.learned': MAPPING,
  'meta.unroll_length': POSITIVE_INT32,
  'meta.estimator': _one_of(ESTIMATORS, 'estimator'),
  'meta.remat': _one_of(REMATS, 'remat policy'),
  'meta.curvature': _one_of(CURVATURES, 'curvature'),
  'meta.subsample': POSITIVE_SHARE,
  'meta.discount': SHARE,
  'meta.objective': _one_of(OBJECTIVES, 'objective'),
  'meta.groups': GROUPS,
  'meta.optimizer': _name_or_class(META_OPTIMIZERS, 'optax optimizer'),
  'meta.learning_rate': NUMBER,
}
# The names that a field may have.
NAMES = {
  'task.name': TASKS,
  'model.name': MODELS,
  'inner.optimizer': OPTIMIZERS,
  'meta.optimizer': META_OPTIMIZERS,
  'meta.estimator': ESTIMATORS,
  'meta.remat': REMATS,
  'meta.curvature': CURVATURES,
  'meta.objective': OBJECTIVES,
}
SECTIONS = {name.partition('.')[0] for name in FIELDS if '.' in name}
# Below these, the keys are the user's.
MAPPINGS = tuple(name for name, rule in FIELDS.items() if rule is MAPPING)


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
  """Writes the optional fields into a config that leaves them out."""
  for name, value in OPTIONAL.items():
    section, key = name.split('.')
    if isinstance(plain.get(section), dict):
      plain[section].setdefault(key, copy.copy(value))


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
    rule = FIELDS[name].text if name in FIELDS else 'must be finite'
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
