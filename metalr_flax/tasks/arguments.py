"""Checks of the arguments of tasks."""

import math
import numbers
from typing import Any

from flax import nnx
import jax


def check_integer(name: str, value: int, low: int) -> None:
  """Raises a ValueError for anything but an integer of at least `low`."""
  whole = isinstance(value, int) and not isinstance(value, bool)
  if not whole or value < low:
    raise ValueError(f'{name}={value}: must be an integer >= {low}')


def check_number(name: str, value: float, low: float) -> None:
  """Raises a ValueError for anything but a finite number of at least `low`."""
  real = isinstance(value, (int, float)) and not isinstance(value, bool)
  if not real or not low <= value < math.inf:
    raise ValueError(f'{name}={value}: must be a finite number >= {low:g}')


def check_share(name: str, value: Any) -> None:
  """Refuses a fixed share outside [0, 1); a learned one is an array."""
  if value is None or isinstance(value, jax.Array):
    return
  if not isinstance(value, numbers.Real) or not 0 <= float(value) < 1:
    raise ValueError(f'{name}: must be a number >= 0 and < 1, not {value!r}')


def check_fractions(meta_fraction: float, test_fraction: float) -> None:
  """Raises a ValueError where a train, meta or test part would be empty."""
  if not (
    0
    < min(meta_fraction, test_fraction)
    < 1 - max(meta_fraction, test_fraction)
  ):
    raise ValueError(
      f'meta_fraction={meta_fraction}, test_fraction={test_fraction}: must be '
      f'> 0 and sum to less than 1'
    )


def theta_of(model: nnx.Module, size: int) -> jax.Array:
  """The parameter `theta`, float `[size]`, of a model such as `Vector`.

  Raises:
    ValueError: where there is none, or one of another shape.
  """
  theta = getattr(model, 'theta', None)
  if theta is None or theta.shape != (size,):
    raise ValueError(
      f'the model must have a parameter theta of shape ({size},); set '
      f'model.name=vector and model.kwargs.size={size}'
    )
  return theta[...]
