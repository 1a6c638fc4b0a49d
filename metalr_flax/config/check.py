"""Checks a config without importing JAX.

A mistake in a config is answered within a second, in one line that names the
field, the rule and the remedy. What needs JAX or the user's own code to decide
(`module:Class`, an optimizer's arguments) is left to `build`.
"""

from collections.abc import Iterator, Mapping
import difflib
import math
from typing import Any

from metalr_flax import errors
from metalr_flax.config import schema
from metalr_flax.engine import ranges

_MAX_DEPTH = 50


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
  plain = to_plain(config)
  for section in schema.SECTIONS:
    if section in plain and not isinstance(plain[section], dict):
      check_name(section)
  _complete(plain)
  flat = dict(_fields(plain))
  for name in flat:
    check_name(name)
  for name, rule in schema.FIELDS.items():
    if name not in flat:
      raise errors.ConfigError(
        f'{name}: missing; add it to the config file (see configs/default.py)'
      )
    if not rule.holds(flat[name]):
      raise errors.ConfigError.of(name, flat[name], rule.text, hint(flat, name))
  _check_learned(flat)
  _check_estimator(flat)
  return plain


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


def check_name(name: str) -> None:
  """Refuses the name of a field that does not exist.

  Args:
    name: dotted, e.g. `meta.learning_rate`; below a mapping any key will do.

  Raises:
    ConfigError: with the nearest name there is.
  """
  if name in schema.FIELDS or name.startswith(
    tuple(f'{m}.' for m in schema.MAPPINGS)
  ):
    return
  below = [field for field in schema.FIELDS if field.startswith(f'{name}.')]
  if below:
    raise errors.ConfigError(
      f'{name}: is a section, not a field; set one of {", ".join(below)}'
    )
  raise errors.ConfigError(
    f'{name}: unknown field; {suggest(name, schema.FIELDS)}'
  )


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
  if name in schema.NAMES and isinstance(flat[name], str):
    return suggest(flat[name], schema.NAMES[name])
  if name in schema.MAPPINGS:
    return 'write it as {} or as names with values'
  return f'set --config.{name}=...'


def _fields(plain: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
  """Dotted names with values; the public sections are the nested ones."""
  for name, value in plain.items():
    if name in schema.SECTIONS:
      for key, inner in value.items():
        yield f'{name}.{key}', inner
    else:
      yield name, value


def _plain(name: str, value: Any, depth: int = 0) -> Any:
  """JSON values only; a number that is not finite is nobody's intention."""
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
    rule = (
      schema.FIELDS[name].text if name in schema.FIELDS else 'must be finite'
    )
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
    try:
      ranges.parse(kind)
    except (ValueError, TypeError) as error:
      raise errors.ConfigError.of(
        f'meta.learned.{name}',
        kind,
        'must be a known bijection',
        suggest(str(kind), (*ranges.RANGES, 'sigmoid(low, high)')),
      ) from error
    if name in values:
      check_initial(*values[name], kind)


def _complete(plain: dict[str, Any]) -> None:
  """Writes the optional fields into a config that leaves them out."""
  for name, value in schema.OPTIONAL.items():
    section, key = name.split('.')
    if isinstance(plain.get(section), dict):
      plain[section].setdefault(key, value)


def _check_estimator(flat: Mapping[str, Any]) -> None:
  """Refuses combinations that do not exist or are identically zero."""
  estimator, gamma = flat['meta.estimator'], flat['meta.discount']
  if estimator == 'reverse' and gamma > 0:
    raise errors.ConfigError.of(
      'meta.discount',
      gamma,
      'must be 0 with reverse mode, which cannot see before its window',
      'set --config.meta.estimator=forward',
    )
  if (
    flat['meta.objective'] == 'online'
    and flat['meta.unroll_length'] == 1
    and not gamma
    and estimator != 'none'
  ):
    raise errors.ConfigError.of(
      'meta.objective',
      'online',
      'is identically zero with meta.unroll_length=1 and meta.discount=0: '
      'the only loss comes before the only update',
      'set --config.meta.discount=0.99 or a longer window',
    )


def check_initial(field: str, value: Any, kind: str) -> None:
  """Refuses an initial value outside its bijection's open range.

  Args:
    field: the config field that gives the value.
    value: the value given.
    kind: the bijection's name.

  Raises:
    ConfigError: naming the field and the range.
  """
  _, low, high = ranges.parse(kind)
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
