"""The learned schedule: writes `schedule.json`, and reads it for optax.

In that of a population a name has its member's number before it:
`3/learning_rate`.
"""

from collections.abc import Mapping, Sequence
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metalr_flax import errors
from metalr_flax.engine import bijections
from metalr_flax.workdir import files

_LAST = 2**31 - 1
_LARGEST = float(np.finfo(np.float32).max)
Schedules = dict[str, dict[str, list[Any]]]


def make_schedules(
  initial: Mapping[str, Any],
  columns: Mapping[str, np.ndarray],
  unroll_length: int,
) -> Schedules:
  """The content of `schedule.json`.

  Args:
    initial: value of each hyperparameter in the first window, by group label
      where there are groups.
    columns: of `metrics.csv`, each of shape [steps].
    unroll_length: K, inner updates in a window.

  Returns:
    By name (`<name>/<label>` with groups), `inner_step` [0, K, 2K, ...] and the
    `value` in use from there on.
  """
  schedules: Schedules = {}
  for key, first in bijections.flatten(dict(initial), 'hyperparams').items():
    values = [float(first), *map(float, columns[key])]
    steps = [i * unroll_length for i in range(len(values))]
    name = key.removeprefix('hyperparams/')
    schedules[name] = {'inner_step': steps, 'value': values}
  return schedules


def name_of(name: str, member: int | None) -> str:
  """The name of a hyperparameter's schedule, of a population's member."""
  return name if member is None else f'{member}/{name}'


def split_name(name: str) -> tuple[str, int | None]:
  """The hyperparameter that a name of `name_of` is of, and the member."""
  first, _, rest = name.partition('/')
  return (rest, int(first)) if first.isdecimal() else (name, None)


def make_schedule(entry: Mapping[str, Any]) -> optax.Schedule:
  """The optax schedule of one entry of `schedule.json`."""
  # An optimizer's count goes no further.
  steps = np.array([min(s, _LAST) for s in entry['inner_step']], np.int32)
  values = np.asarray(entry['value'], np.float32)

  def schedule(count: jax.typing.ArrayLike) -> jax.Array:
    index = jnp.searchsorted(jnp.asarray(steps), count, side='right') - 1
    return jnp.asarray(values)[jnp.maximum(index, 0)]

  return schedule


def save_schedule(
  path: str | pathlib.Path,
  values: Mapping[str, Sequence[float]],
  *,
  every: int = 1,
) -> None:
  """Writes recorded hyperparameters as a `schedule.json`.

  ```python
  rates = []
  for step in range(num_steps):
    ...  # an update of a self-tuned optimizer
    rates.append(metalr_flax.hyperparams_of(opt_state)['learning_rate'])
  metalr_flax.save_schedule('schedule.json', {'learning_rate': rates})
  ```

  `hyperparams_of` after an update gives what that update used, so the list
  starts with the first update's value.

  Args:
    path: the file; one that is there is replaced.
    values: by name, the value in use at updates 0, every, 2 every, ...
    every: updates between two values, an integer >= 1.

  Raises:
    ValueError: for no values, one that is not finite in float32, or an `every`
      that is no integer >= 1.
  """
  if not isinstance(every, (int, np.integer)) or every < 1:
    raise ValueError(f'save_schedule: every={every}: must be an integer >= 1')
  if not values:
    raise ValueError('save_schedule: values={}: must name a hyperparameter')
  schedules: Schedules = {}
  for name, column in values.items():
    try:
      numbers = [float(value) for value in column]
      steps = [int(every) * index for index in range(len(numbers))]
      schedules[name] = {'inner_step': steps, 'value': numbers}
      _check(schedules[name])
    except (TypeError, ValueError) as error:
      raise ValueError(f'save_schedule: {name}: {error}') from error
  files.write_json(pathlib.Path(path), schedules)


def load_schedule(
  path: str | pathlib.Path,
  name: str = 'learning_rate',
  *,
  member: int | None = None,
) -> optax.Schedule:
  """A learned schedule as an optax schedule, ready for a plain run.

  ```python
  path = 'checkpoints/default/schedule.json'
  tx = optax.rmsprop(metalr_flax.load_schedule(path))
  ```

  Args:
    path: a `schedule.json`.
    name: which hyperparameter, `<name>/<label>` where there are groups.
    member: of a population, whose.

  Returns:
    `count -> value`, float32, piecewise constant in the inner step's number;
    the last value holds for ever after.

  Raises:
    ConfigError: where the file is no schedule or has no such name or member.
  """
  schedules = _read(path)
  wanted = name_of(name, member)
  if wanted in schedules:
    return make_schedule(schedules[wanted])
  found = [split_name(each) for each in schedules]
  last = max((m for _, m in found if m is not None), default=None)
  if last is not None and (member is None or not 0 <= member <= last):
    raise errors.ConfigError(
      f'{path}: is of a population; say whose schedule, member=0 to '
      f'member={last}'
    )
  if last is None and member is not None:
    raise errors.ConfigError(
      f'{path}: is of one run, not of a population; leave member={member} out'
    )
  known = dict.fromkeys(each for each, _ in found)
  raise errors.ConfigError(
    f'{path}: has no {name}; it has {", ".join(known) or "nothing"}'
  )


def _read(path: str | pathlib.Path) -> Schedules:
  try:
    schedules = files.read_json(pathlib.Path(path))
    if not isinstance(schedules, dict):
      raise ValueError('no mapping of names')
    for entry in schedules.values():
      _check(entry)
  except (OSError, ValueError) as error:
    raise errors.ConfigError(
      f'{path}: not a schedule ({error}); give a schedule.json of a run'
    ) from error
  return schedules


def _check(entry: Any) -> None:
  """Refuses an entry that is no schedule.

  Raises:
    ValueError: saying what is wrong with it.
  """
  if not isinstance(entry, dict) or not {'inner_step', 'value'} <= entry.keys():
    raise ValueError('inner_step or value is missing')
  steps, values = entry['inner_step'], entry['value']
  if not isinstance(steps, list) or not all(type(s) is int for s in steps):
    raise ValueError('inner_step must be a list of integers')
  if not steps:
    raise ValueError('value must be one number or more')
  if steps[0] != 0 or steps != sorted({*steps}):
    raise ValueError('inner_step must ascend from 0')
  if not isinstance(values, list) or len(values) != len(steps):
    raise ValueError('value must be a list as long as inner_step')
  if not all(type(v) in (int, float) and abs(v) <= _LARGEST for v in values):
    raise ValueError('value must be numbers, finite in float32')
