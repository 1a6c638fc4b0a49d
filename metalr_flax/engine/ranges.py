"""Which bijections there are and the open range of each, without JAX.

A spec is a name, `sigmoid`, or a name with a range of its own,
`sigmoid(0.5, 0.999)`.
"""

import math
import re

RANGES: dict[str, tuple[float, float]] = {
  'log': (0.0, math.inf),
  'one_minus_log': (0.0, 1.0),
  'sigmoid': (0.0, 1.0),
}
_SPEC = re.compile(r'\s*sigmoid\s*\(([^,()]+),([^,()]+)\)\s*')


def parse(spec: str) -> tuple[str, float, float]:
  """A bijection's name and its open range.

  Args:
    spec: `sigmoid`, `log`, `one_minus_log`, or `sigmoid(low, high)`.

  Raises:
    ValueError: where it is none of these, in words for the user.
  """
  if spec in RANGES:
    return (spec, *RANGES[spec])
  match = _SPEC.fullmatch(spec)
  if match:
    low, high = map(float, match.groups())
    if math.isfinite(low) and math.isfinite(high) and low < high:
      return 'sigmoid', low, high
  raise ValueError(f'must be one of {", ".join(RANGES)} or sigmoid(low, high)')


def check(name: str, spec: str) -> None:
  """Refuses a hyperparameter's bijection that there is not.

  Raises:
    ValueError: where `spec` is none.
  """
  try:
    parse(spec)
  except (ValueError, TypeError) as error:
    raise ValueError(
      f'bijections[{name!r}]={spec!r}: must be one of '
      f'{", ".join(RANGES)} or sigmoid(low, high)'
    ) from error
