"""`metrics.csv`: a row per outer step, floats that read back exactly."""

from collections.abc import Mapping, Sequence
import csv
import io
import pathlib
from types import TracebackType

import numpy as np

from metalr_flax import errors
from metalr_flax import storage

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
      WorkdirError: where the file holds less than it must, or other columns.
    """
    self._columns = ['outer_step', 'inner_step', *sort_keys(keys)]
    header = _to_csv([self._columns])
    if size:
      storage.retried(lambda: _check(path, header, size), path)
    self._file = storage.AppendFile(path, size)
    if not size:
      self._file.write(header)

  def append(self, rows: Sequence[Row]) -> None:
    """Writes rows; a key that a row lacks is left blank."""
    cells = ([row.get(column) for column in self._columns] for row in rows)
    # The shortest decimal that reads back as the same float64, hence as the
    # same float32.
    shown = [['' if c is None else repr(c) for c in row] for row in cells]
    self._file.write(_to_csv(shown))
    self._file.push()

  def flush(self) -> int:
    """Puts all rows on the disk; returns the file's size in bytes."""
    return self._file.sync()  # a checkpoint relies on it

  def __enter__(self) -> 'MetricsFile':
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    self._file.close()


def _to_csv(rows: Sequence[Sequence[str]]) -> bytes:
  text = io.StringIO()
  csv.writer(text, lineterminator='\n').writerows(rows)
  return text.getvalue().encode()


def _check(path: pathlib.Path, header: bytes, size: int) -> None:
  if not path.exists() or path.stat().st_size < size:
    raise errors.WorkdirError(
      f'{path}: shorter than the newest checkpoint recorded ({size} bytes); '
      f'put the file back, or choose another --workdir='
    )
  with open(path, 'rb') as file:
    if file.readline() != header:
      raise errors.WorkdirError(
        f"{path}: has other columns than this program's "
        f'({header.decode().strip()}); go on with the version that wrote it, '
        f'or choose another --workdir='
      )


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
  """The columns of a metrics file, float64, NaN where a cell is blank."""
  with open(path, newline='', encoding='utf-8') as file:
    names, *rows = csv.reader(file)
  table = np.array(
    [[float(cell) if cell else np.nan for cell in row] for row in rows]
  ).reshape(len(rows), len(names))
  return dict(zip(names, table.T, strict=True))
