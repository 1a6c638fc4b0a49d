"""A population's members: which fields differ among them, and their configs.

`config.population` has the shape of a config, with a list in the place of each
value that differs: `{'seed': [0, 1], 'inner': {'learning_rate': [1e-4, 1e-3]}}`
is two members. A number of seeds stands for so many from `config.seed` on. No
JAX is imported.
"""

from collections.abc import Iterator, Mapping
import contextlib
import copy
from typing import Any

from metalr_flax import errors
from metalr_flax.config import rules
from metalr_flax.config import schema

# Everything else is a part of the one program that trains all members.
FREE = ('seed', 'inner.learning_rate', 'meta.learning_rate')
# Of these, what is learned: its first value.
_OF_LEARNED = ('inner.kwargs', 'task.loss_kwargs')
_MOST = 2**16
_MAY_DIFFER = (
  f'what may differ are {", ".join(FREE)} and the first values of learned '
  f'hyperparameters'
)


def expand(plain: dict[str, Any]) -> None:
  """Writes the seeds that a number stands for; refuses what is no population.

  Args:
    plain: a config whose fields exist and keep their rules; `population.seed`
      is changed in it.

  Raises:
    ConfigError: for a field that may not differ, no list, or lists of different
      lengths.
  """
  chosen = plain['population']
  if 'seed' in chosen:
    chosen['seed'] = _seeds(plain['seed'], chosen['seed'])
  lists = values(plain)
  for name, given in lists.items():
    _check_name(name, given, plain)
    if not isinstance(given, list) or not given:
      raise errors.ConfigError.of(
        f'population.{name}',
        given,
        'must be a list with a value for each member',
        'write it as [...]',
      )
  counts = {name: len(given) for name, given in lists.items()}
  if len({*counts.values()}) > 1:
    shown = ', '.join(f'{count} of {name}' for name, count in counts.items())
    raise errors.ConfigError.of(
      'population',
      shown,
      'must have as many values of each, one for each member',
      'write every combination out, e.g. seed=[0, 0, 1, 1] beside rates '
      '[a, b, a, b]',
    )
  if lists and plain['best_metric']:
    raise errors.ConfigError.of(
      'best_metric',
      plain['best_metric'],
      "must be '' with a population, whose members have each a best moment of "
      'their own',
      'train one member alone, or leave it out',
    )


def values(config: Mapping[str, Any]) -> dict[str, list[Any]]:
  """What differs among the members: a list by dotted name, `{}` for one run."""
  return dict(schema.flatten(config['population']))


def members_of(config: Mapping[str, Any]) -> list[dict[str, Any]]:
  """The config of each member by itself; of a single run its own alone.

  Args:
    config: resolved.

  Returns:
    Configs without a population. Run `i` alone is member `i`.
  """
  lists = values(config)
  alone = {**config, 'population': {}}
  rows = zip(*lists.values(), strict=True) if lists else [()]
  return [_with(alone, dict(zip(lists, row, strict=True))) for row in rows]


def count(config: Mapping[str, Any]) -> int:
  """How many members a population has; 0 for a single run."""
  return max(map(len, values(config).values()), default=0)


def describe(config: Mapping[str, Any], number: int) -> str:
  """A member and what it has of its own: `member 3 (seed=3)`."""
  own = (f'{name}={given[number]}' for name, given in values(config).items())
  return f'member {number} ({", ".join(own)})'


@contextlib.contextmanager
def naming(config: Mapping[str, Any], number: int) -> Iterator[None]:
  """Says of which member a mistake is, where there are several.

  Raises:
    ConfigError: the one of the block, with the member before it.
  """
  try:
    yield
  except errors.ConfigError as error:
    if not config['population']:
      raise
    raise errors.ConfigError(f'population, member {number}: {error}') from error


def _seeds(first: int, given: Any) -> Any:
  """So many seeds from the first on, where a number is given."""
  if isinstance(given, list):
    return given
  whole = isinstance(given, int) and not isinstance(given, bool)
  if not whole or not 1 <= given <= _MOST:
    raise errors.ConfigError.of(
      'population.seed',
      given,
      f'must be a number of seeds from 1 to {_MOST}, or a list of seeds',
      'e.g. --config.population="{\'seed\': 64}"',
    )
  return [*range(first, first + given)]


def _check_name(name: str, given: Any, plain: Mapping[str, Any]) -> None:
  """Refuses what is not a member's own."""
  field = f'population.{name}'
  if name == 'meta.learning_rate':
    if plain['meta']['optimizer'] == rules.STEERING:
      raise errors.ConfigError.of(
        field, given, "has no effect on 'steering'", 'leave it out'
      )
    return
  if name in FREE:
    return
  for mapping in _OF_LEARNED:
    key = name.removeprefix(f'{mapping}.').partition('.')[0]
    if name.startswith(f'{mapping}.') and key not in plain['meta']['learned']:
      raise errors.ConfigError.of(
        field,
        given,
        'must be learned to differ among members',
        f'add {key} to meta.learned; {_MAY_DIFFER}',
      )
    if name.startswith(f'{mapping}.'):
      return
  raise errors.ConfigError.of(
    field, given, 'must be the same for all members', _MAY_DIFFER
  )


def _with(config: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
  """A copy of a config with other values by dotted name."""
  changed = copy.deepcopy(dict(config))
  for name, value in own.items():
    *path, key = name.split('.')
    holder = changed
    for part in path:
      holder = holder.setdefault(part, {})
      if not isinstance(holder, dict):
        raise errors.ConfigError.of(
          f'population.{name}',
          value,
          f'is below {part}, which is {holder} in the config',
          'give both the same names',
        )
    holder[key] = value
  return changed
