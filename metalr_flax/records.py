"""`metrics.csv`: a row per outer step, floats that read back exactly."""

from collections.abc import Mapping, Sequence
import csv
import os
import pathlib
from types import TracebackType

import numpy as np

from metalr_flax import errors

_ORDER = ('train/', 'meta/', 'hyperparams/', 'params/', 'eval/', 'perf/')
Row = Mapping[str, float]


def sort_keys(keys: Sequence[str]) -> list[str]:
  """Metric keys by section in reading order, `loss` first in each."""

  def place(key: str) -> tuple[int, bool, str]:
    section = next(i for i, p in enumerate(_ORDER) if key.startswith(p))
    return section, not key.endswith('/loss'), key

  return sorted(keys, key=place)


class MetricsFile:
  """Appends rows to a metrics file, from a known size on.

  Rows after that size belong to a part of a run that was never saved; they are
  cut off and will be computed again.
  """

  def __init__(self, path: pathlib.Path, keys: Sequence[str], size: int):
    """Opens the file and cuts it to `size` bytes.

    Args:
      path: the file; made where it is absent and `size` is 0.
      keys: metric keys, the columns after `outer_step` and `inner_step`.
      size: bytes to keep; 0 starts it anew with a header.

    Raises:
      WorkdirError: where the file holds less than it must.
    """
    self._columns = ['outer_step', 'inner_step', *sort_keys(keys)]
    if size and (not path.exists() or path.stat().st_size < size):
      raise errors.WorkdirError(
        f'{path}: shorter than the newest checkpoint recorded ({size} bytes); '
        f'put the file back, or choose another --workdir='
      )
    self._file = path.open('a+', newline='', encoding='utf-8')
    self._file.truncate(size)
    self._writer = csv.writer(self._file, lineterminator='\n')
    if not size:
      self._writer.writerow(self._columns)

  def append(self, rows: Sequence[Row]) -> None:
    """Writes rows; a key that a row lacks is left blank."""
    for row in rows:
      cells = (row.get(column) for column in self._columns)
      # The shortest decimal that reads back as the same float64, hence as the
      # same float32.
      self._writer.writerow(['' if c is None else repr(c) for c in cells])

  def flush(self) -> int:
    """Puts all rows on the disk; returns the file's size in bytes."""
    self._file.flush()
    os.fsync(self._file.fileno())  # a checkpoint relies on it
    return os.fstat(self._file.fileno()).st_size

  def __enter__(self) -> 'MetricsFile':
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    self._file.close()


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
  """The columns of a metrics file, float64, NaN where a cell is blank."""
  with open(path, newline='', encoding='utf-8') as file:
    names, *rows = csv.reader(file)
  table = np.array(
    [[float(cell) if cell else np.nan for cell in row] for row in rows]
  ).reshape(len(rows), len(names))
  return dict(zip(names, table.T, strict=True))
