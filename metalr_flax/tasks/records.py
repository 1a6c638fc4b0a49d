"""ArrayRecord shards of examples: writes them, and reads them in blocks.

A record is an example as a `.npy` file of one structured scalar, whose fields
are the example's arrays (https://numpy.org/doc/stable/reference/generated/
numpy.lib.format.html). All records of a split are alike, so many are decoded at
once. Shards are named `<split>-00000-of-00004.array_record`.
"""

from collections.abc import Iterable, Mapping, Sequence
import contextlib
import glob
import io
import itertools
import os
import pathlib
from types import ModuleType
from typing import Any

import numpy as np

SUFFIX = '.array_record'
# A block is read at once: about a megabyte, or so many records.
_BLOCK_BYTES = 2**20
_BLOCK_RECORDS = 64
# Blocks are read whole, so nothing is gained by reading ahead of one.
_READER = {
  'options': 'readahead_buffer_size:0,max_parallelism:1',
  'file_reader_buffer_size': 2**15,
}


def _library() -> ModuleType:
  try:
    from array_record.python import array_record_module
  except ImportError as error:
    raise ValueError(
      f'ArrayRecord shards need the package array-record ({error}); '
      f"pip install 'metalr_flax[data]'"
    ) from error
  return array_record_module


def write(
  folder: str | os.PathLike,
  split: str,
  examples: Iterable[Mapping[str, Any]],
  *,
  shards: int = 1,
) -> list[pathlib.Path]:
  """Writes the examples of a split as ArrayRecord shards.

  A shard gets its name when it is complete; one of that name is replaced.

  Args:
    folder: where to; made if need be.
    split: 'train', 'meta' or 'test', the beginning of the files' names.
    examples: each a NumPy array, or a number, by name; all of the same names,
      shapes and dtypes. They are written as they come, one at a time.
    shards: files to spread them over, in turn.

  Returns:
    The files.

  Raises:
    ValueError: for no examples, for examples that differ or that hold anything
      but numbers, and where the package array-record is missing.
  """
  library, folder = _library(), pathlib.Path(folder)
  rest = iter(examples)
  first = next(rest, None)
  if first is None:
    raise ValueError(f'{folder}: there are no examples for the split {split}')
  header, dtype = _header(first)
  block = _block(len(header) + dtype.itemsize)
  folder.mkdir(parents=True, exist_ok=True)
  paths = [
    folder / f'{split}-{i:05}-of-{shards:05}{SUFFIX}' for i in range(shards)
  ]
  unfinished = [path.with_name(f'.{path.name}.unfinished') for path in paths]
  writers = [
    library.ArrayRecordWriter(str(path), f'group_size:{block}')
    for path in unfinished
  ]
  for number, example in enumerate(itertools.chain([first], rest)):
    record = header + _row(number, example, dtype).tobytes()
    writers[number % shards].write(record)
  for writer, path, name in zip(writers, unfinished, paths, strict=True):
    writer.close()
    os.replace(path, name)
  return paths


def find(path: str, split: str) -> list[str]:
  """The shards of a split.

  Args:
    path: a folder, for its files `<split>*.array_record`; or a pattern with
      `*`, in which `{split}` stands for the split's name.
    split: 'train', 'meta' or 'test'.

  Returns:
    Their paths, sorted; none where there is none.
  """
  pattern = path.replace('{split}', split)
  if '*' not in path and '{split}' not in path:
    pattern = os.path.join(glob.escape(path), f'{split}*{SUFFIX}')
  return sorted(glob.glob(pattern))


class Shards:
  """Reads the records of some shards, block by block.

  Attributes:
    num_records: in all of them.
    record_bytes: of each.
    blocks: where the blocks are: shard, first record, record after the last.
  """

  def __init__(self, paths: Sequence[str]):
    """Opens them and reads the first record.

    Args:
      paths: the files, at least one.

    Raises:
      ValueError: naming the file that is no such file or has no record.
    """
    self._paths = paths
    self._readers = [_open(path) for path in paths]
    first = self._records(0, 0, 1)[0]
    self._header, self._dtype = _parse(f'{paths[0]}: record 0', first)
    self.record_bytes = len(first)
    counts = [reader.num_records() for reader in self._readers]
    self.num_records = sum(counts)
    size = _block(self.record_bytes)
    self.blocks = [
      (shard, start, min(start + size, count))
      for shard, count in enumerate(counts)
      for start in range(0, count, size)
    ]

  @property
  def block_bytes(self) -> int:
    """Bytes of the largest block."""
    return self.record_bytes * max(b - a for _, a, b in self.blocks)

  def read(self, blocks: Iterable[int]) -> dict[str, np.ndarray]:
    """The examples of some blocks, one below another: arrays [N, ...] by name.

    Args:
      blocks: places in `blocks`.

    Raises:
      ValueError: naming the file, and the record where one is wrong.
    """
    found: list[bytes] = []
    places: list[tuple[int, int]] = []
    for block in blocks:
      shard, start, stop = self.blocks[block]
      found += self._records(shard, start, stop)
      places += [(shard, number) for number in range(start, stop)]
    self._check_alike(found, places)
    header = f'V{len(self._header)}'
    whole = np.dtype([('header', header), ('row', self._dtype)])
    rows = np.frombuffer(b''.join(found), whole)['row']
    names = self._dtype.names or ()
    for name in names:
      self._check_finite(name, rows[name], places)
    return {name: rows[name] for name in names}

  def _records(self, shard: int, start: int, stop: int) -> list[bytes]:
    try:
      return self._readers[shard].read(start, stop)
    except (RuntimeError, IndexError, OSError) as error:
      raise ValueError(
        f'{self._paths[shard]}: records {start} to {stop - 1} cannot be read '
        f'({_reason(error)}); bring back a copy of the file'
      ) from error

  def _check_alike(
    self, found: list[bytes], places: list[tuple[int, int]]
  ) -> None:
    for (shard, number), record in zip(places, found, strict=True):
      if len(record) != self.record_bytes or not record.startswith(
        self._header
      ):
        place = f'{self._paths[shard]}: record {number}'
        _, dtype = _parse(place, record)
        raise ValueError(
          f'{place} holds {_shown(dtype)}, and the first record '
          f'{_shown(self._dtype)}; make all alike'
        )

  def _check_finite(
    self, name: str, values: np.ndarray, places: list[tuple[int, int]]
  ) -> None:
    if values.dtype.kind not in 'fc' or np.isfinite(values).all():
      return
    bad = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    shard, number = places[int(np.argmax(bad))]
    raise ValueError(
      f'{self._paths[shard]}: record {number}: {name} is not finite; mend it'
    )


def _open(path: str) -> Any:
  reason = ''
  try:
    with open(path, 'rb'):
      pass
    reader = _library().ArrayRecordReader(path, **_READER)
    if reader.num_records():
      return reader
  except (RuntimeError, OSError) as error:
    reason = f' ({_reason(error)})'
  raise ValueError(
    f'{path}: has no records{reason}: it is empty, cut short or no ArrayRecord '
    f'file; bring back a copy, or take it away'
  )


def _reason(error: Exception) -> str:
  return str(error).partition('\n')[0].partition(';')[0]


def _block(record_bytes: int) -> int:
  """Records in a block."""
  return max(1, min(_BLOCK_RECORDS, _BLOCK_BYTES // record_bytes))


def _header(example: Mapping[str, Any]) -> tuple[bytes, np.dtype]:
  """What all records begin with, and the dtype of the rest."""
  arrays = {name: np.asarray(value) for name, value in example.items()}
  for name, array in arrays.items():
    if array.dtype.kind not in 'biufc':
      raise ValueError(f'example 0: {name} is {array.dtype}, not numbers')
  dtype = np.dtype([(n, a.dtype, a.shape) for n, a in arrays.items()])
  buffer = io.BytesIO()
  np.lib.format.write_array(buffer, np.zeros((), dtype), allow_pickle=False)
  return buffer.getvalue()[: -dtype.itemsize], dtype


def _row(
  number: int, example: Mapping[str, Any], dtype: np.dtype
) -> np.ndarray:
  row = np.zeros((), dtype)
  names = dtype.names or ()
  if {*example} != {*names}:
    raise ValueError(
      f'example {number} has {", ".join(sorted(example))}, and the first '
      f'{", ".join(sorted(names))}; make all alike'
    )
  for name in names:
    value = np.asarray(example[name])
    if value.shape != dtype[name].shape or value.dtype != dtype[name].base:
      raise ValueError(
        f'example {number}: {name} is {value.dtype}{list(value.shape)}, and '
        f'{dtype[name].base}{list(dtype[name].shape)} in the first; make all '
        f'alike'
      )
    row[name] = value
  return row


def _parse(place: str, record: bytes) -> tuple[bytes, np.dtype]:
  """A record's header, and the dtype of the rest."""
  file = io.BytesIO(record)
  with contextlib.suppress(ValueError):
    version = np.lib.format.read_magic(file)
    read = {
      (1, 0): np.lib.format.read_array_header_1_0,
      (2, 0): np.lib.format.read_array_header_2_0,
    }[version]
    shape, _, dtype = read(file)
    at = file.tell()
    if shape == () and dtype.names and len(record) == at + dtype.itemsize:
      return record[:at], dtype
  raise ValueError(
    f'{place} is no example; write them with metalr_flax.tasks.records.write'
  )


def _shown(dtype: np.dtype) -> str:
  names = dtype.names or ()
  return ', '.join(
    f'{name} {dtype[name].base}{list(dtype[name].shape)}' for name in names
  )
