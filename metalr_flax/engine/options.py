"""What an option may be, said in one line where it is something else."""

from collections.abc import Sequence
import numbers
from typing import Any


def check_option(name: str, value: Any, known: Sequence[str]) -> None:
  """Refuses the value of an option that is none of those known.

  Raises:
    ValueError: where it is not.
  """
  if value not in known:
    raise ValueError(f'{name}={value!r}: must be one of {", ".join(known)}')


def check_share(name: str, value: Any, *, above_zero: bool) -> None:
  """Refuses an option that is no number in [0, 1], or in (0, 1].

  Raises:
    ValueError: where it is not.
  """
  number = isinstance(value, numbers.Real) and not isinstance(value, bool)
  if not number or not 0 <= value <= 1 or (above_zero and not value):
    raise ValueError(
      f'{name}={value!r}: must be a number in {"(" if above_zero else "["}0, 1]'
    )


def check_unroll_length(value: Any) -> None:
  """Refuses a window length that is no integer of 1 or more.

  Raises:
    ValueError: where it is not.
  """
  whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
  if not whole or value < 1:
    raise ValueError(
      f'unroll_length={value!r}: must be an integer >= 1; it is the number of '
      f'inner updates in a window'
    )
