"""The rules that a config's fields keep, and the names that they may hold.

The tables are literal and import no JAX.
"""

from collections.abc import Callable
import math
import re
from typing import Any, NamedTuple

# Literal copies of what `tasks`, `models`, the engine and optax offer: a test
# holds them equal.
TASKS = (
  'breast_cancer', 'digits', 'drifting_target', 'ill_conditioned_regression',
  'images', 'linear_regression', 'noisy_quadratic', 'stream', 'table', 'text',
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

# Those whose arguments are plain values.
SCHEDULES = (
  'constant_schedule', 'cosine_decay_schedule', 'cosine_onecycle_schedule',
  'exponential_decay', 'linear_onecycle_schedule', 'linear_schedule',
  'piecewise_constant_schedule', 'piecewise_interpolate_schedule',
  'polynomial_schedule', 'sgdr_schedule', 'warmup_constant_schedule',
  'warmup_cosine_decay_schedule', 'warmup_exponential_decay_schedule',
)  # fmt: skip

# Our own rule as the outer optimizer.
STEERING = 'steering'
META_OPTIMIZERS = (*OPTIMIZERS, STEERING)

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


def one_of(names: tuple[str, ...], what: str) -> Rule:
  """The rule of a field that holds one of several names."""

  def holds(value: Any) -> bool:
    return isinstance(value, str) and value in names

  return Rule(f'must be a known {what}', holds)


def name_or_class(names: tuple[str, ...], what: str) -> Rule:
  """The same, and the name of a class of the user's own."""

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
MESH = Rule(
  'must be () or two integers >= 1, (data, model)',
  lambda v: (
    isinstance(v, (list, tuple))
    and len(v) in (0, 2)
    and all(map(POSITIVE_INTEGER.holds, v))
  ),
)
MAPPING = Rule('must be a mapping', lambda v: isinstance(v, dict))
TEXT = Rule('must be a string', lambda v: isinstance(v, str))
FLAG = Rule('must be True or False', lambda v: isinstance(v, bool))
METRIC = Rule(
  "must be '' or an evaluation's value such as eval/loss or max:eval/score",
  lambda v: (
    isinstance(v, str) and bool(re.fullmatch(r'((min:|max:)?eval/.+)?', v))
  ),
)
OPTIMIZER = name_or_class(OPTIMIZERS, 'optax optimizer')
SCHEDULE = Rule(
  "must be '', a known optax schedule or package.module:function",
  lambda v: (
    isinstance(v, str)
    and (v in ('', *SCHEDULES) or bool(USERS_OWN.fullmatch(v)))
  ),
)
GROUPS = Rule(
  "must be '', 'per_leaf' or package.module:function",
  lambda v: (
    isinstance(v, str)
    and (v in ('', 'per_leaf') or bool(USERS_OWN.fullmatch(v)))
  ),
)
