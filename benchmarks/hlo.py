"""Reads what devices exchange off a compiled program's text."""

import math
import re
from typing import NamedTuple

_KINDS = (
  'all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all',
  'collective-permute',
)  # fmt: skip
_BITS = {'pred': 8, 'bf16': 16}
_OPERATION = re.compile(
  rf'^\s*(?:ROOT )?%?\S+ = (.*?) ({"|".join(_KINDS)})(?:-start)?\(', re.M
)
_ARRAY = re.compile(r'\b(pred|bf16|[fsuc]\d+)\[([\d,]*)\]')
SCALARS_BYTES = 1024  # at most this many count as scalars


class Collective(NamedTuple):
  """An operation in which devices exchange arrays.

  Attributes:
    kind: its name in XLA, e.g. 'all-reduce'.
    shapes: of what a device holds after it.
    nbytes: their bytes.
  """

  kind: str
  shapes: tuple[tuple[int, ...], ...]
  nbytes: int

  @property
  def is_small(self) -> bool:
    """Whether only scalars are exchanged, or little more."""
    return self.nbytes <= SCALARS_BYTES


def find_collectives(text: str) -> list[Collective]:
  """The collectives of a compiled program, each loop's body once.

  Args:
    text: of one device's program, `compiled.as_text()`.
  """
  found = []
  for out, kind in _OPERATION.findall(text):
    arrays = [
      (_itemsize(dtype), tuple(map(int, filter(None, sizes.split(',')))))
      for dtype, sizes in _ARRAY.findall(out)
    ]
    nbytes = sum(size * math.prod(shape) for size, shape in arrays)
    found.append(Collective(kind, tuple(s for _, s in arrays), nbytes))
  return found


def _itemsize(dtype: str) -> int:
  bits = _BITS.get(dtype) or int(re.sub(r'\D', '', dtype))
  return max(1, bits // 8)
