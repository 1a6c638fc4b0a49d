"""Makes the schedule that a config multiplies its inner updates by."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metalr_flax import errors
from metalr_flax.trainer import lookup

_FIELD = 'inner.schedule'
_REMEDY = 'change it or inner.schedule_kwargs'
# What optax and NumPy raise for values that are none of theirs.
_REFUSALS = (
  TypeError, ValueError, OverflowError, AttributeError, IndexError, KeyError,
  ZeroDivisionError,
)  # fmt: skip
_LOOKED_AT = 1000  # updates of a run
_ROUNDING = 1e-6  # a decay to 0 may end a little below it


def build_multiplier(
  section: Mapping[str, Any], num_updates: int
) -> optax.Schedule | None:
  """The schedule of a config's section `inner`; None where it names none.

  Args:
    section: the section.
    num_updates: inner updates of the run, for which its values are checked.

  Raises:
    ConfigError: for a schedule that cannot be made, or that is not a finite
      scalar of 0 or more.
  """
  name = section['schedule']
  if not name:
    return None
  factory = lookup.find_factory(_FIELD, name)
  arguments = _with_numbers(lookup.as_tuples(section['schedule_kwargs']))
  lookup.check_arguments('inner.schedule_kwargs', factory, arguments)
  refusals = ValueError if ':' in name else _REFUSALS
  try:
    with errors.exits_refused(f'{_FIELD}={name}'):
      schedule = factory(**arguments)
  except refusals as error:
    raise errors.ConfigError(
      f'inner.schedule_kwargs: {name} refuses its arguments '
      f'({errors.text_of(error)}); change them'
    ) from error
  _check_scalar(name, schedule)
  _check_values(name, schedule, num_updates)
  return schedule


def _with_numbers(value: Any) -> Any:
  """Arguments with numbers for keys again: a config's keys are strings."""
  if isinstance(value, Mapping):
    return {
      int(key) if key.isdecimal() else key: _with_numbers(item)
      for key, item in value.items()
    }
  if isinstance(value, tuple):
    return tuple(map(_with_numbers, value))
  return value


def _check_scalar(name: str, schedule: Any) -> None:
  """Refuses what is no function from an update's number to a number."""
  if not callable(schedule):
    raise errors.ConfigError.of(
      _FIELD,
      name,
      f'must return a schedule, not {type(schedule).__name__}',
      "return a function of the update's number",
    )
  try:
    value = jax.eval_shape(schedule, jax.ShapeDtypeStruct((), jnp.int32))
  except _REFUSALS as error:
    first = errors.text_of(error).partition('\n')[0]
    raise errors.ConfigError.of(
      _FIELD, name, f'cannot be traced ({first})', _REMEDY
    ) from error
  shape, dtype = getattr(value, 'shape', None), getattr(value, 'dtype', None)
  real = dtype is not None and (
    jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
  )
  if shape != () or not real:
    raise errors.ConfigError.of(
      _FIELD, name, f'must give a number for each update, not {value}', _REMEDY
    )


def _check_values(
  name: str, schedule: optax.Schedule, num_updates: int
) -> None:
  """Refuses values that no learning rate can be multiplied by."""
  last = min(max(num_updates - 1, 0), 2**31 - 1)  # a count goes no further
  counts = np.unique(np.linspace(0, last, _LOOKED_AT).astype(np.int64))
  numbers = jnp.asarray(counts, jnp.int32)
  values = np.asarray(jax.jit(lambda n: jax.lax.map(schedule, n))(numbers))
  bad = ~(np.isfinite(values) & (values >= -_ROUNDING))
  if bad.any():
    first = int(np.argmax(bad))
    raise errors.ConfigError.of(
      _FIELD,
      name,
      f'must be finite and >= 0, and is {values[first]:g} at update '
      f'{counts[first]}',
      _REMEDY,
    )
  if num_updates and not values.any():
    raise errors.ConfigError.of(
      _FIELD, name, "is 0 at all of the run's updates", _REMEDY
    )
