"""The learned schedule: `schedule.json`, and the optax schedule it holds."""

from collections.abc import Mapping
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metalr_flax import errors

Schedules = dict[str, dict[str, list[Any]]]


def make_schedules(
  initial: Mapping[str, float],
  learned: Mapping[str, np.ndarray],
  unroll_length: int,
) -> Schedules:
  """The content of `schedule.json`.

  Args:
    initial: value of each hyperparameter in the first window.
    learned: its value after each outer step, arrays of shape [steps].
    unroll_length: K, inner updates in a window.

  Returns:
    By name, `inner_step` [0, K, 2K, ...] and the `value` in use from there on.
  """
  schedules: Schedules = {}
  for name, values in learned.items():
    all_values = [float(initial[name]), *map(float, values)]
    steps = [i * unroll_length for i in range(len(all_values))]
    schedules[name] = {'inner_step': steps, 'value': all_values}
  return schedules


def load_schedule(
  path: str | pathlib.Path, name: str = 'learning_rate'
) -> optax.Schedule:
  """A learned schedule as an optax schedule, ready for a plain run.

    tx = optax.rmsprop(load_schedule('checkpoints/default/schedule.json'))

  Args:
    path: a `schedule.json`.
    name: which hyperparameter.

  Returns:
    `count -> value`, float32, piecewise constant in the inner step's number;
    the last value holds for ever after.

  Raises:
    ConfigError: where the file is no schedule or has no such name.
  """
  try:
    schedules = json.loads(pathlib.Path(path).read_text(encoding='utf-8'))
    steps = np.asarray(schedules[name]['inner_step'], np.int32)
    values = np.asarray(schedules[name]['value'], np.float32)
  except (OSError, ValueError, TypeError) as error:
    raise errors.ConfigError(
      f'{path}: not a schedule ({error}); give a schedule.json of a run'
    ) from error
  except KeyError as error:
    raise errors.ConfigError(
      f'{path}: has no {error}; it has {", ".join(schedules)}'
    ) from error

  def schedule(count: jax.typing.ArrayLike) -> jax.Array:
    place = jnp.searchsorted(jnp.asarray(steps), count, side='right') - 1
    return jnp.asarray(values)[jnp.maximum(place, 0)]

  return schedule
