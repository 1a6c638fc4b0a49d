"""Splits a table into its parts: by a column, by more files, or at random."""

from collections.abc import Mapping
import dataclasses

import numpy as np

from metalr_flax.tasks import frames
from metalr_flax.tasks import splits
from metalr_flax.tasks import task

PARTS = ('train', 'meta', 'test')
# A part and where its rows came from, for messages.
Part = tuple[frames.Frame, str]
Parts = tuple[Part, Part, Part]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ways:
  """How a table is split, see `Table`."""

  column: str
  meta_path: str
  test_path: str
  meta_fraction: float
  test_fraction: float
  seed: int


def given(frame: frames.Frame, where: str, ways: Ways) -> dict[str, Part]:
  """The parts that a column or more files give; else the train part alone.

  Args:
    frame: the table of `task.path`.
    where: its field and file, for messages.
    ways: how it is split.

  Returns:
    By name; what is missing is to be cut at random from 'train'.

  Raises:
    RefusedError: for a column that says otherwise, or a file of other columns.
  """
  paths = {'meta': ways.meta_path, 'test': ways.test_path}
  if not ways.column:
    return {
      'train': (frame, where),
      **{n: _more(frame, where, n, p) for n, p in paths.items() if p},
    }
  if any(paths.values()):
    raise task.RefusedError(
      f'task.kwargs.split_column={ways.column}: splits the rows, and so do '
      f'other files; leave one out'
    )
  return _by_column(frame, where, ways.column)


def complete(
  parts: Mapping[str, Part], labels: np.ndarray | None, ways: Ways
) -> Parts:
  """Cuts the parts that are missing from the train part, at random.

  Args:
    parts: as `given` returns them.
    labels: of the train part, whose shares are kept; None where there are none.
    ways: how the table is split.

  Raises:
    RefusedError: for too few rows.
  """
  frame, where = parts['train']
  fractions = (
    0.0 if 'meta' in parts else ways.meta_fraction,
    0.0 if 'test' in parts else ways.test_fraction,
  )
  rows = splits.divide(len(frame), labels, fractions, ways.seed, where)
  cut = dict(zip(PARTS, rows, strict=True))
  train, meta, test = (
    parts[name]
    if name in parts and name != 'train'
    else (frame.iloc[cut[name]], where)
    for name in PARTS
  )
  return train, meta, test


def _more(frame: frames.Frame, where: str, name: str, path: str) -> Part:
  """The part that another file gives."""
  field = f'task.kwargs.{name}_path'
  part = frames.read(path, field)
  missing = [column for column in frame.columns if column not in part.columns]
  if missing:
    raise task.RefusedError(
      f'{field}={path}: has no column {missing[0]}, which {where} has; give a '
      f'file of the same columns'
    )
  return part, f'{field}={path}'


def _by_column(frame: frames.Frame, where: str, name: str) -> dict[str, Part]:
  values = frames.texts_of(frame[name])
  wrong = ~np.isin(values.astype(str), PARTS)
  if wrong.any():
    row = frames.first(wrong, frame[name])
    raise task.RefusedError(
      f'{where}: column {name} is {values[wrong][0]!r} in row {row}; write '
      f'train, meta or test'
    )
  if 'train' not in values:
    raise task.RefusedError(
      f'task.kwargs.split_column={name}: no row of it is train; name the rows '
      f'to train on'
    )
  return {
    part: (frame[values == part], where) for part in PARTS if part in values
  }
