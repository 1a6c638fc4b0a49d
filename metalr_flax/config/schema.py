"""The tables of a config's public fields: literal, and without JAX."""

from collections.abc import Callable
import math
import re
from typing import Any, NamedTuple

# Literal copies of what `tasks`, `models`, `hyperparams`, `meta_gradient` and
# optax offer: a test holds them equal.
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


_MAPPING = Rule('must be a mapping', lambda v: isinstance(v, dict))
_TEXT = Rule('must be a string', lambda v: isinstance(v, str))
_FLAG = Rule('must be True or False', lambda v: isinstance(v, bool))

_GROUPS = Rule(
  "must be '', 'per_leaf' or package.module:function",
  lambda v: (
    isinstance(v, str)
    and (v in ('', 'per_leaf') or bool(USERS_OWN.fullmatch(v)))
  ),
)

# What a config file may leave out, with what it means then.
OPTIONAL = {'meta.groups': ''}
FIELDS: dict[str, Rule] = {
  'seed': _integer(0, 2**32 - 1),
  'num_outer_steps': _integer(0, 2**31 - 1),
  'log_every': _integer(1),
  'eval_every': _integer(1),
  'checkpoint_every': _integer(1),
  'threefry_partitionable': _FLAG,
  'task.name': _name_or_class(TASKS, 'task'),
  'task.batch_size': _integer(1),
  'task.path': _TEXT,
  'task.kwargs': _MAPPING,
  'model.name': _name_or_class(MODELS, 'model'),
  'model.kwargs': _MAPPING,
  'inner.optimizer': _name_or_class(OPTIMIZERS, 'optax optimizer'),
  'inner.learning_rate': _number(0, open_end=True),
  'inner.kwargs': _MAPPING,
  'meta.learned': _MAPPING,
  'meta.unroll_length': _integer(1, 2**31 - 1),
  'meta.estimator': _one_of(ESTIMATORS, 'estimator'),
  'meta.remat': _one_of(REMATS, 'remat policy'),
  'meta.curvature': _one_of(CURVATURES, 'curvature'),
  'meta.subsample': _number(0, 1, open_end=True),
  'meta.discount': _number(0, 1, open_end=False),
  'meta.objective': _one_of(OBJECTIVES, 'objective'),
  'meta.groups': _GROUPS,
  'meta.optimizer': _name_or_class(OPTIMIZERS, 'optax optimizer'),
  'meta.learning_rate': _number(0, open_end=False),
}
# The names that a field may have.
NAMES = {
  'task.name': TASKS,
  'model.name': MODELS,
  'inner.optimizer': OPTIMIZERS,
  'meta.optimizer': OPTIMIZERS,
  'meta.estimator': ESTIMATORS,
  'meta.remat': REMATS,
  'meta.curvature': CURVATURES,
  'meta.objective': OBJECTIVES,
}
SECTIONS = {name.partition('.')[0] for name in FIELDS if '.' in name}
# Below these, the keys are the user's.
MAPPINGS = tuple(name for name, rule in FIELDS.items() if rule is _MAPPING)
