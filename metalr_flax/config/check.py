"""Checks a config without importing JAX.

A mistake in a config is answered within a second, in one line that names the
field, the rule and the remedy. What needs JAX or the user's own code to decide
(`module:Class`, an optimizer's arguments) is left to `build`.
"""

from collections.abc import Iterator, Mapping
import difflib
from typing import Any

from metalr_flax import errors
from metalr_flax.config import population
from metalr_flax.config import rules
from metalr_flax.config import schema
from metalr_flax.engine import ranges


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
  plain = schema.to_plain(config)
  for section in schema.SECTIONS:
    if section in plain and not isinstance(plain[section], dict):
      check_name(section)
  schema.complete(plain)
  _check_fields(dict(flatten_fields(plain)), schema.FIELDS)
  _check_schedule(plain['inner'])
  _check_stopping(plain)
  _check_microbatches(plain['inner'], plain['task'])
  _check_members(plain)
  _check_estimator(plain['meta'])
  return plain


def _check_members(plain: dict[str, Any]) -> None:
  """Checks what may differ among the members of a population; writes seeds."""
  for name, _ in schema.flatten(plain['population']):
    check_name(name, 'population.')
  population.expand(plain)
  for number, member in enumerate(population.members_of(plain)):
    with population.naming(plain, number):
      _check_fields(dict(flatten_fields(member)), schema.FIELDS)
      _check_learned(member['inner'], member['task'], member['meta'])


def check_section(section: str, values: Mapping[str, Any], where: str) -> None:
  """Checks a section of a training config that another config holds.

  Args:
    section: its name, e.g. `task`.
    values: its fields, plain JSON values.
    where: dotted name of what holds it, with a dot at the end, for messages.

  Raises:
    ConfigError: naming the first field that is unknown, missing or wrong.
  """
  fields = {
    name: field
    for name, field in schema.FIELDS.items()
    if name.startswith(f'{section}.')
  }
  whole = schema.completed(section, values)
  flat = {f'{section}.{key}': value for key, value in whole.items()}
  _check_fields(flat, fields, where)


def _check_fields(
  flat: Mapping[str, Any], fields: Mapping[str, schema.Field], where: str = ''
) -> None:
  for name in flat:
    check_name(name, where)
  for name, field in fields.items():
    if name not in flat:
      raise errors.ConfigError(
        f'{where}{name}: missing; add it to the config file (see '
        f'configs/default.py)'
      )
    value = flat[name]
    if not field.rule.holds(value):
      raise errors.ConfigError.of(
        f'{where}{name}', value, field.rule.text, hint(name, value, where)
      )


def check_name(name: str, where: str = '') -> None:
  """Refuses the name of a field that does not exist.

  Args:
    name: dotted, e.g. `meta.learning_rate`; below a mapping any key will do.
    where: what stands before it in another config, e.g. `problems.text.`.

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
      f'{where}{name}: is a section, not a field; set one of {", ".join(below)}'
    )
  raise errors.ConfigError(
    f'{where}{name}: unknown field; {suggest(name, schema.FIELDS)}'
  )


def suggest(word: str, known: Mapping[str, Any] | tuple[str, ...]) -> str:
  """A hint: `did you mean ...?`, or all known names where none is near."""
  tails = {name.rpartition('.')[2]: name for name in known}
  tail = word.rpartition('.')[2]
  near = difflib.get_close_matches(word, list(known), 1, 0.6) or [
    tails[t] for t in difflib.get_close_matches(tail, list(tails), 1, 0.6)
  ]
  if near:
    return f'did you mean {near[0]}?'
  return f'known are {", ".join(known)}'


def hint(name: str, value: Any, where: str = '') -> str:
  """The remedy for a wrong value of a field."""
  if name in schema.NAMES and isinstance(value, str):
    return suggest(value, schema.NAMES[name])
  if name in schema.MAPPINGS:
    return 'write it as {} or as names with values'
  return f'set --config.{where}{name}=...'


def flatten_fields(plain: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
  """Dotted names with values; the public sections are the nested ones."""
  for name, value in plain.items():
    if name in schema.SECTIONS:
      for key, inner in value.items():
        yield f'{name}.{key}', inner
    else:
      yield name, value


def _check_schedule(inner: Mapping[str, Any]) -> None:
  """Refuses arguments of a schedule that there is not."""
  if inner['schedule_kwargs'] and not inner['schedule']:
    raise errors.ConfigError.of(
      'inner.schedule_kwargs',
      inner['schedule_kwargs'],
      'needs a schedule',
      'set --config.inner.schedule=warmup_cosine_decay_schedule or another',
    )


def _check_microbatches(
  inner: Mapping[str, Any], task: Mapping[str, Any]
) -> None:
  """Refuses parts that a batch cannot be cut into.

  The batch of a user's own task is not known yet.
  """
  count, size = inner['microbatches'], task['batch_size']
  if task['name'] in rules.TASKS and size % count:
    raise errors.ConfigError.of(
      'inner.microbatches',
      count,
      f'must divide task.batch_size={size}',
      'set --config.inner.microbatches= to a divisor of it',
    )


def _check_stopping(plain: Mapping[str, Any]) -> None:
  """Refuses to wait for something better of nothing."""
  if plain['patience'] and not plain['best_metric']:
    raise errors.ConfigError.of(
      'patience',
      plain['patience'],
      'must be 0 without a best_metric',
      'set --config.best_metric=eval/loss',
    )


def _check_learned(
  inner: Mapping[str, Any], task: Mapping[str, Any], meta: Mapping[str, Any]
) -> None:
  """Refuses to learn nothing, by no bijection, or from outside its range."""
  learned = meta['learned']
  if not learned and meta['estimator'] != 'none':
    raise errors.ConfigError.of(
      'meta.learned',
      learned,
      'must name a hyperparameter',
      "e.g. {'learning_rate': 'sigmoid'}, or set --config.meta.estimator=none",
    )
  values = {'learning_rate': ('inner.learning_rate', inner['learning_rate'])}
  for name, value in inner['kwargs'].items():
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
    if name in task['loss_kwargs']:
      _check_only(name, values)
      _check_loss_hyperparam(name, kind, task['loss_kwargs'][name], meta)
    elif name in values:
      check_initial(*values[name], kind)


def _check_only(name: str, values: Mapping[str, tuple[str, Any]]) -> None:
  """Refuses a learned name of the loss that the optimizer has, too."""
  if name in values:
    raise errors.ConfigError(
      f'task.loss_kwargs.{name}: is learned, and so is {values[name][0]} by '
      f"that name; rename the loss's argument"
    )


def _check_loss_hyperparam(
  name: str, kind: str, value: Any, meta: Mapping[str, Any]
) -> None:
  """Refuses a learned argument of the loss that cannot be learned."""
  field = f'task.loss_kwargs.{name}'
  if meta['objective'] == 'online' and meta['estimator'] != 'none':
    raise errors.ConfigError.of(
      'meta.objective',
      'online',
      f"is the training loss itself, which the loss's own {name} could lower "
      f'without any training',
      'set --config.meta.objective=held_out',
    )
  if value == {}:
    raise errors.ConfigError.of(
      field, value, 'must be a number, or numbers by name', 'name at least one'
    )
  values = value if isinstance(value, dict) else {'': value}
  for label, number in values.items():
    check_initial(f'{field}.{label}'.rstrip('.'), number, kind)


def _check_estimator(meta: Mapping[str, Any]) -> None:
  """Refuses combinations that do not exist or are identically zero."""
  estimator, gamma = meta['estimator'], meta['discount']
  if estimator == 'reverse' and gamma > 0:
    raise errors.ConfigError.of(
      'meta.discount',
      gamma,
      'must be 0 with reverse mode, which cannot see before its window',
      'set --config.meta.estimator=forward',
    )
  if (
    meta['objective'] == 'online'
    and meta['unroll_length'] == 1
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
