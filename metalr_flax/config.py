"""Fields, types, ranges and names of a config, without importing JAX.

A mistake in a config is answered within a second, in one line that names the
field, the rule and the remedy. What needs JAX or the user's own code to decide
(`module:Class`, an optimizer's arguments) is left to `build`.
"""

from collections.abc import Callable, Iterator, Mapping
import difflib
import math
import re
from typing import Any, NamedTuple

from metalr_flax import errors

# Literal copies of what `tasks`, `models`, `hyperparams`, `meta_gradient` and
# optax offer: a test holds them equal.
TASKS = ('digits', 'linear_regression')
MODELS = ('linear', 'mlp')
ESTIMATORS = ('none', 'reverse')
BIJECTION_RANGES = {'log': (0.0, math.inf), 'sigmoid': (0.0, 1.0)}
OPTIMIZERS = (
  'adabelief', 'adadelta', 'adafactor', 'adagrad', 'adam', 'adamax',
  'adamaxw', 'adamw', 'adan', 'amsgrad', 'fromage', 'lamb', 'lars', 'lion',
  'nadam', 'nadamw', 'noisy_sgd', 'novograd', 'optimistic_adam_v2',
  'optimistic_gradient_descent', 'radam', 'rmsprop', 'sgd', 'sign_sgd', 'sm3',
  'yogi',
)  # fmt: skip

CADENCES = ('log_every', 'eval_every', 'checkpoint_every')
_USERS_OWN = re.compile(r'[A-Za-z_][\w.]*:[A-Za-z_]\w*')


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


def _number(low: float, *, open_end: bool) -> Rule:
  def holds(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
      return False
    above = value > low if open_end else value >= low
    return math.isfinite(value) and above

  return Rule(f'must be a number {">" if open_end else ">="} {low:g}', holds)


def _one_of(names: tuple[str, ...], what: str) -> Rule:
  def holds(value: Any) -> bool:
    return isinstance(value, str) and value in names

  return Rule(f'must be a known {what}', holds)


def _name_or_class(names: tuple[str, ...], what: str) -> Rule:
  def holds(value: Any) -> bool:
    known = isinstance(value, str)
    return known and bool(value in names or _USERS_OWN.fullmatch(value))

  return Rule(f'must be a known {what} or package.module:Class', holds)


_MAPPING = Rule('must be a mapping', lambda v: isinstance(v, dict))
_TEXT = Rule('must be a string', lambda v: isinstance(v, str))
_FLAG = Rule('must be True or False', lambda v: isinstance(v, bool))

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
  'inner.optimizer': _one_of(OPTIMIZERS, 'optax optimizer'),
  'inner.learning_rate': _number(0, open_end=True),
  'inner.kwargs': _MAPPING,
  'meta.learned': _MAPPING,
  'meta.unroll_length': _integer(1),
  'meta.estimator': _one_of(ESTIMATORS, 'estimator'),
  'meta.optimizer': _one_of(OPTIMIZERS, 'optax optimizer'),
  'meta.learning_rate': _number(0, open_end=False),
}
_NAMES = {
  'task.name': TASKS,
  'model.name': MODELS,
  'inner.optimizer': OPTIMIZERS,
  'meta.optimizer': OPTIMIZERS,
  'meta.estimator': ESTIMATORS,
}
_SECTIONS = {name.partition('.')[0] for name in FIELDS if '.' in name}
# Below these, the keys are the user's.
MAPPINGS = tuple(name for name, rule in FIELDS.items() if rule is _MAPPING)


def resolve(config: Mapping[str, Any]) -> dict[str, Any]:
  """Checks a config and returns it as plain JSON values.

  Args:
    config: nested mapping of the public fields (a ConfigDict's `to_dict()`).

  Returns:
    Nested dict of dict, list, str, int, float, bool and None: what
    `config.json` holds. References are resolved and tuples are lists.

  Raises:
    ConfigError: naming the first field that is unknown, missing or wrong.
  """
  plain = {name: _plain(name, value) for name, value in config.items()}
  for section in _SECTIONS:
    if section in plain and not isinstance(plain[section], dict):
      check_name(section)
  flat = dict(_fields(plain))
  for name in flat:
    check_name(name)
  for name, rule in FIELDS.items():
    if name not in flat:
      raise errors.ConfigError(
        f'{name}: missing; add it to the config file (see configs/default.py)'
      )
    if not rule.holds(flat[name]):
      raise errors.ConfigError.of(name, flat[name], rule.text, hint(flat, name))
  _check_learned(flat)
  return plain


def check_name(name: str) -> None:
  """Refuses the name of a field that does not exist.

  Args:
    name: dotted, e.g. `meta.learning_rate`; below a mapping any key will do.

  Raises:
    ConfigError: with the nearest name there is.
  """
  if name in FIELDS or name.startswith(tuple(f'{m}.' for m in MAPPINGS)):
    return
  below = [field for field in FIELDS if field.startswith(f'{name}.')]
  if below:
    raise errors.ConfigError(
      f'{name}: is a section, not a field; set one of {", ".join(below)}'
    )
  raise errors.ConfigError(f'{name}: unknown field; {suggest(name, FIELDS)}')


def suggest(word: str, known: Mapping[str, Any] | tuple[str, ...]) -> str:
  """`did you mean ...?`, or the names there are where none is near."""
  tails = {name.rpartition('.')[2]: name for name in known}
  tail = word.rpartition('.')[2]
  near = difflib.get_close_matches(word, list(known), 1, 0.6) or [
    tails[t] for t in difflib.get_close_matches(tail, list(tails), 1, 0.6)
  ]
  if near:
    return f'did you mean {near[0]}?'
  return f'known are {", ".join(known)}'


def hint(flat: Mapping[str, Any], name: str) -> str:
  """The remedy for a wrong value of a field."""
  if name in _NAMES and isinstance(flat[name], str):
    return suggest(flat[name], _NAMES[name])
  if name in MAPPINGS:
    return 'write it as {} or as names with values'
  return f'set --config.{name}=...'


def _fields(plain: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
  """Dotted names with values; the public sections are the nested ones."""
  for name, value in plain.items():
    if name in _SECTIONS:
      for key, inner in value.items():
        yield f'{name}.{key}', inner
    else:
      yield name, value


def _plain(name: str, value: Any) -> Any:
  """JSON values only; a number that is not finite is nobody's intention."""
  if isinstance(value, Mapping):
    return {key: _plain(f'{name}.{key}', v) for key, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [_plain(name, v) for v in value]
  if isinstance(value, float) and not math.isfinite(value):
    rule = FIELDS[name].text if name in FIELDS else 'must be finite'
    raise errors.ConfigError.of(
      name, value, rule, f'set --config.{name}= to a finite number'
    )
  if value is None or isinstance(value, (bool, int, float, str)):
    return value
  raise errors.ConfigError.of(
    name,
    repr(value),
    'must be a number, a string, a list, a mapping or None',
    'a config holds plain values, objects are made from them',
  )


def _check_learned(flat: Mapping[str, Any]) -> None:
  learned = flat['meta.learned']
  if not learned and flat['meta.estimator'] != 'none':
    raise errors.ConfigError.of(
      'meta.learned',
      learned,
      'must name a hyperparameter',
      "e.g. {'learning_rate': 'sigmoid'}, or set --config.meta.estimator=none",
    )
  values = {
    'learning_rate': ('inner.learning_rate', flat['inner.learning_rate'])
  }
  for name, value in flat['inner.kwargs'].items():
    values[name] = (f'inner.kwargs.{name}', value)
  for name, kind in learned.items():
    if kind not in BIJECTION_RANGES:
      raise errors.ConfigError.of(
        f'meta.learned.{name}',
        kind,
        'must be a known bijection',
        suggest(str(kind), tuple(BIJECTION_RANGES)),
      )
    if name in values:
      check_initial(*values[name], kind)


def check_initial(field: str, value: Any, kind: str) -> None:
  """Refuses an initial value outside its bijection's open range.

  Args:
    field: the config field that gives the value.
    value: the value given.
    kind: the bijection's name.

  Raises:
    ConfigError: naming the field and the range.
  """
  low, high = BIJECTION_RANGES[kind]
  number = isinstance(value, float) or (
    field == 'inner.learning_rate' and isinstance(value, int)
  )
  if number and low < value < high:
    return
  raise errors.ConfigError.of(
    field,
    value,
    f'must be a number inside the open range ({low:g}, {high:g}) of its '
    f'bijection {kind}',
    'choose a start inside it or another bijection in meta.learned',
  )
