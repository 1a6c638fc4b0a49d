"""`metrics.csv`: a row per outer step, floats that read back exactly.

Of a population it has a row per outer step and member, in this order.

A row shows the state after its window: `train/loss` is the mean of the window's
K losses, each before its update, but `hyperparams/*` of row i are what window
i + 1 will use. The rate that made the loss of row i is that of row i - 1, and
of row 1 the initial one; `schedule.json` has them in this order.
"""

from collections.abc import Mapping, Sequence
import contextlib
import csv
import hashlib
import io
import itertools
import pathlib
from types import TracebackType
from typing import Any

import numpy as np

from metalr_flax import errors
from metalr_flax.workdir import files

COUNTS = ('outer_step', 'inner_step')
MEMBER = 'member'  # the third column of a population's
_ORDER = ('train/', 'meta/', 'hyperparams/', 'params/', 'eval/', 'perf/')
Row = Mapping[str, float]


def sort_keys(keys: Sequence[str]) -> list[str]:
  """Metric keys by section in reading order, `loss` first in each."""

  def order(key: str) -> tuple[int, bool, str]:
    section = next(i for i, p in enumerate(_ORDER) if key.startswith(p))
    return section, not key.endswith('/loss'), key

  return sorted(keys, key=order)


class MetricsFile:
  """Appends rows to a metrics file, from a known size on.

  Rows after that size belong to a part of a run that was never saved; they are
  cut off and will be computed again.
  """

  def __init__(
    self,
    path: pathlib.Path,
    keys: Sequence[str],
    record: Mapping[str, Any],
    *,
    members: bool = False,
  ):
    """Opens the file and cuts it to the size recorded.

    Args:
      path: the file; made where it is absent and the size is 0.
      keys: metric keys, the columns after `outer_step` and `inner_step`.
      record: what `flush` returned for the part to keep; `metrics_size` 0
        starts it anew with a header.
      members: whether each row is a member's of a population.

    Raises:
      WorkdirError: where the file is not as recorded, or has other columns.
    """
    own = [MEMBER] if members else []
    self._columns = [*COUNTS, *own, *sort_keys(keys)]
    size = record['metrics_size']
    header = _to_csv([self._columns])
    kept = check(path, record) if size else b''
    if size and not kept.startswith(header):
      raise errors.WorkdirError(
        f"{path}: has other columns than this program's "
        f'({header.decode().strip()}); go on with the version that wrote it, '
        f'or choose another --workdir='
      )
    self._sha = hashlib.sha256(kept)
    self._file = files.AppendFile(path, size)
    if not size:
      self._write(header)

  def append(self, rows: Sequence[Row]) -> None:
    """Writes rows; a key that a row lacks is left blank."""
    cells = ([row.get(column) for column in self._columns] for row in rows)
    # The shortest decimal that reads back as the same float64, hence as the
    # same float32.
    shown = [['' if c is None else repr(c) for c in row] for row in cells]
    self._write(_to_csv(shown))
    self._file.push()

  def flush(self) -> dict[str, Any]:
    """Puts all rows on the disk.

    Returns:
      What a checkpoint needs to go on from here: the size in bytes and the
      SHA-256 of what is there.
    """
    size = self._file.sync()
    return {'metrics_size': size, 'metrics_sha256': self._sha.hexdigest()}

  def _write(self, text: bytes) -> None:
    self._sha.update(text)
    self._file.write(text)

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


@files.retried
def check(path: pathlib.Path, record: Mapping[str, Any]) -> bytes:
  """Reads the part of a metrics file that a checkpoint recorded.

  Args:
    path: the file.
    record: what `MetricsFile.flush` returned.

  Raises:
    WorkdirError: where the file is not as recorded.
  """
  size = record.get('metrics_size')
  if not isinstance(size, int) or size < 0:
    raise errors.WorkdirError(
      f'{path}: the checkpoint does not say how much of it counts '
      f'(metrics_size={size}); bring back a copy of the checkpoint, or choose '
      f'another --workdir='
    )
  try:
    with open(path, 'rb') as file:
      kept = file.read(size)
  except FileNotFoundError:
    kept = b''
  # The first checkpoints of release 0.1 have the size alone.
  sha256 = hashlib.sha256(kept).hexdigest()
  if len(kept) < size or record.get('metrics_sha256', sha256) != sha256:
    raise errors.WorkdirError(
      f'{path}: its first {size} bytes are not those that the checkpoint '
      f'recorded; put the file back, or choose another --workdir='
    )
  return kept


@files.retried
def read(
  path: pathlib.Path, record: Mapping[str, Any] | None = None
) -> dict[str, np.ndarray]:
  """The columns of a metrics file, float64, NaN where a cell is blank.

  Args:
    path: the file.
    record: a checkpoint's: its part of the file alone is read. What follows may
      be a row just being written, or one that a kill has torn.

  Raises:
    WorkdirError: where the file is not as recorded, or holds no rows of
      numbers.
  """
  text = path.read_bytes() if record is None else check(path, record)
  return _parse(path, text)


@files.retried
def read_steps(path: pathlib.Path, count: int) -> dict[str, np.ndarray]:
  """The columns of a metrics file's first outer steps, float64.

  Args:
    path: the file.
    count: how many outer steps.

  Raises:
    WorkdirError: where the file has fewer, or holds no rows of numbers.
  """
  lines: list[bytes] = []
  with contextlib.suppress(FileNotFoundError), open(path, 'rb') as file:
    lines += itertools.islice(file, count + 1)
  columns = _parse(path, b''.join(lines)) if lines else {}
  steps = columns.get('outer_step', np.zeros(0))
  if not np.array_equal(steps, np.arange(1, count + 1)):
    raise errors.WorkdirError(
      f'{path}: has no rows of the outer steps 1 to {count}; put the file '
      f'back, or choose another --workdir='
    )
  return columns


def of_member(
  columns: Mapping[str, np.ndarray], number: int
) -> dict[str, np.ndarray]:
  """The rows of one member of a population, as those of a run alone."""
  own = columns[MEMBER] == number
  return {key: v[own] for key, v in columns.items() if key != MEMBER}


def _parse(path: pathlib.Path, text: bytes) -> dict[str, np.ndarray]:
  try:
    names, *rows = csv.reader(io.StringIO(text.decode(), newline=''))
    table = np.array(
      [[float(cell) if cell else np.nan for cell in row] for row in rows]
    ).reshape(len(rows), len(names))
    return dict(zip(names, table.T, strict=True))
  except (ValueError, csv.Error) as error:
    raise errors.WorkdirError(
      f'{path}: not the metrics of a run ({error}); put the file back, or '
      f'choose another --workdir='
    ) from error
