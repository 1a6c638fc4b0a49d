"""The learned schedule: `schedule.json`, and the optax schedule it holds."""

from collections.abc import Mapping, Sequence
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metalr_flax import errors
from metalr_flax import hyperparams
from metalr_flax import storage

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
  for key, first in hyperparams.flatten(dict(initial), 'hyperparams').items():
    values = [float(first), *map(float, columns[key])]
    steps = [i * unroll_length for i in range(len(values))]
    name = key.removeprefix('hyperparams/')
    schedules[name] = {'inner_step': steps, 'value': values}
  return schedules


def make_schedule(entry: Mapping[str, Any]) -> optax.Schedule:
  """The optax schedule of one entry of `schedule.json`."""
  steps = np.asarray(entry['inner_step'], np.int32)
  values = np.asarray(entry['value'], np.float32)

  def schedule(count: jax.typing.ArrayLike) -> jax.Array:
    place = jnp.searchsorted(jnp.asarray(steps), count, side='right') - 1
    return jnp.asarray(values)[jnp.maximum(place, 0)]

  return schedule


def save_schedule(
  path: str | pathlib.Path,
  values: Mapping[str, Sequence[float]],
  *,
  every: int = 1,
) -> None:
  """Writes recorded hyperparameters as a `schedule.json`.

    rates = []
    for step in range(num_steps):
      ...  # an update of a self-tuned optimizer
      rates.append(metalr_flax.hyperparams_of(opt_state)['learning_rate'])
    metalr_flax.save_schedule('schedule.json', {'learning_rate': rates})

  `hyperparams_of` after an update gives what that update used, so the list
  starts with the first update's value.

  Args:
    path: the file; one that is there is replaced.
    values: by name, the value in use at updates 0, every, 2 every, ...
    every: updates between two values, >= 1.

  Raises:
    ValueError: for no values, one that is not finite, or `every` below 1.
  """
  if every < 1:
    raise ValueError(f'save_schedule: every={every}: must be >= 1')
  schedules: Schedules = {}
  for name, column in values.items():
    numbers = [float(value) for value in column]
    if not numbers or not np.all(np.isfinite(numbers)):
      raise ValueError(
        f'save_schedule: {name}: must be one finite number or more'
      )
    steps = [every * place for place in range(len(numbers))]
    schedules[name] = {'inner_step': steps, 'value': numbers}
  storage.write_json(pathlib.Path(path), schedules)


def load_schedule(
  path: str | pathlib.Path, name: str = 'learning_rate'
) -> optax.Schedule:
  """A learned schedule as an optax schedule, ready for a plain run.

    tx = optax.rmsprop(load_schedule('checkpoints/default/schedule.json'))

  Args:
    path: a `schedule.json`.
    name: which hyperparameter, `<name>/<label>` where there are groups.

  Returns:
    `count -> value`, float32, piecewise constant in the inner step's number;
    the last value holds for ever after.

  Raises:
    ConfigError: where the file is no schedule or has no such name.
  """
  schedules = _read(path)
  if name not in schedules:
    raise errors.ConfigError(
      f'{path}: has no {name}; it has {", ".join(schedules)}'
    )
  return make_schedule(schedules[name])


def _read(path: str | pathlib.Path) -> Schedules:
  try:
    schedules = json.loads(pathlib.Path(path).read_text(encoding='utf-8'))
    if not all({'inner_step', 'value'} <= s.keys() for s in schedules.values()):
      raise ValueError('inner_step or value is missing')
  except (OSError, ValueError, AttributeError) as error:
    raise errors.ConfigError(
      f'{path}: not a schedule ({error}); give a schedule.json of a run'
    ) from error
  return schedules
