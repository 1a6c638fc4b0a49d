"""The rows of a population: one for each member and outer step.

Shape legend: T outer steps of a chunk, M members.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from metalr_flax import console
from metalr_flax import errors
from metalr_flax.config import population as members
from metalr_flax.engine import outer
from metalr_flax.engine import population
from metalr_flax.engine import records
from metalr_flax.trainer import build
from metalr_flax.trainer import rows as rows_lib
from metalr_flax.trainer.rows import Row

QUANTILES = {'low': 0.1, 'high': 0.9}


class MemberRows:
  """The rows of a population. What is shown is a mean over its members.

  A frozen member has no more rows and no share in the means.
  """

  def __init__(
    self,
    config: Mapping[str, Any],
    experiment: build.Experiment,
    state: records.MetaTrainState,
  ):
    """Starts before the first row; see `rows.RunRows`."""
    self._config = config
    self._unroll_length = config['meta']['unroll_length']
    self._bijections = experiment.problem.bijections
    learned = rows_lib.learned_in(state, experiment)
    self._learned = {key: np.asarray(v) for key, v in learned.items()}
    self._first = 0
    # Of the last chunk: [T, M].
    self._columns: dict[str, np.ndarray] = {}
    self._evaluation: dict[str, np.ndarray] = {}  # of its end: [M]
    self._going = np.ones((0, members.count(config)), bool)
    self._used = {k: float(np.mean(v)) for k, v in self._learned.items()}
    self._steps = np.asarray(state.step)

  def greet(self) -> None:
    """See `rows.Rows`."""
    console.say(
      f'population of {len(self._steps)} members; the values shown are means '
      f'over those that go on'
    )
    for number in np.flatnonzero(self._steps < self._steps.max()).tolist():
      name = members.describe(self._config, number)
      console.say(f'{name}: frozen at outer step {self._steps[number]}')

  def make(
    self,
    first: int,
    chunk: outer.Chunk,
    evaluation: Mapping[str, Any],
    rate: float,
  ) -> list[Row]:
    """See `rows.Rows`; ordered by outer step, then by member."""
    good = _count_good(chunk)
    steps = int(np.max(good))
    self._first = first
    self._going = np.arange(steps)[:, None] < good
    self._columns = {
      key: np.asarray(column[:steps], np.float64)
      for key, column in chunk.rows.items()
    } | {rows_lib.RATE: np.full((steps, len(good)), rate)}
    last = np.flatnonzero(_is_going(chunk))
    self._evaluation = {
      key: np.asarray(values, np.float64)
      for key, values in evaluation.items()
      if len(last)
    }
    self._note_learned(good)
    rows = self._make_rows()
    for row, number in zip(rows[len(rows) - len(last) :], last, strict=True):
      row |= {k: float(v[number]) for k, v in self._evaluation.items()}
    return rows

  def shown(self, rows: list[Row]) -> list[Row]:
    """See `rows.Rows`; means over the members that go on."""
    del rows
    with np.errstate(all='ignore'):
      means = {
        key: np.mean(column, axis=1, where=self._going)
        for key, column in self._columns.items()
      }
    shown = [
      self._counts(i) | {key: float(mean[i]) for key, mean in means.items()}
      for i in range(len(self._going))
    ]
    for key, values in self._evaluation.items():
      shown[-1][key] = float(np.mean(values[self._going[-1]]))
    return shown

  def spread(self, row: Row, keys: Mapping[str, Any]) -> Row:
    """See `rows.Rows`; a tenth of the members is below, a tenth above."""
    i = int(row['outer_step']) - self._first - 1
    found: Row = {}
    for key in keys:
      column = self._evaluation.get(key)
      values = self._columns[key][i] if column is None else column
      values = values[self._going[i]]
      if not key.startswith('perf/') and np.isfinite(values).all():
        found |= {
          f'{key}/{name}': float(np.quantile(values, share))
          for name, share in QUANTILES.items()
        }
    return found

  def used(self) -> Row:
    """See `rows.Rows`."""
    return self._used

  def end(self, first: int, chunk: outer.Chunk) -> None:
    """Says which members are frozen; raises where none is left."""
    good = _count_good(chunk)
    lines = []
    for number in np.flatnonzero(~np.asarray(chunk.finite)).tolist():
      own = population.pick(chunk.parts, number)
      rows = {key: column[:, number] for key, column in chunk.rows.items()}
      why = rows_lib.why_not_finite(
        chunk.replace(parts=own, rows=rows),
        good[number],
        population.pick(self._learned, number),
        self._bijections,
      )
      step = first + good[number] + 1
      name = members.describe(self._config, number)
      lines.append(f'outer step {step}: {name}: {why}')
    if not _is_going(chunk).any():
      raise errors.DivergedError(f'{lines[-1]}; no other member is left')
    for line in lines:
      console.say(f'{line}; it stays as it was before, the others go on')

  def _counts(self, i: int) -> Row:
    step = self._first + i + 1
    return {'outer_step': step, 'inner_step': step * self._unroll_length}

  def _make_rows(self) -> list[Row]:
    """The rows without an evaluation."""
    table = {key: column.tolist() for key, column in self._columns.items()}
    return [
      self._counts(i)
      | {'member': number}
      | {key: column[i][number] for key, column in table.items()}
      for i, number in np.argwhere(self._going).tolist()
    ]

  def _note_learned(self, good: np.ndarray) -> None:
    """Keeps the learned values of each member's last good step."""
    if not len(self._going):
      return
    which = self._going[-1]
    before = self._learned
    if len(self._going) > 1:
      before = {key: self._columns[key][-2] for key in self._learned}
    self._used = {k: float(np.mean(v[which])) for k, v in before.items()}
    rows, every = np.maximum(good - 1, 0), np.arange(len(good))
    self._learned = {
      key: np.where(good > 0, self._columns[key][rows, every], old)
      for key, old in self._learned.items()
    }


def _count_good(chunk: outer.Chunk) -> np.ndarray:
  """Steps of each member that were finite, [M]."""
  return np.asarray(chunk.count) - ~np.asarray(chunk.finite)


def _is_going(chunk: outer.Chunk) -> np.ndarray:
  """The members that go on after a chunk, bool [M]."""
  count = np.asarray(chunk.count)
  return np.asarray(chunk.finite) & (count == count.max())
