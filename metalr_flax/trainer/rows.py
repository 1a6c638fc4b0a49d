"""The rows of a run's metrics, made of a chunk's arrays."""

from collections.abc import Mapping
import math
from typing import Any, Protocol

from metalr_flax import errors
from metalr_flax.engine import bijections
from metalr_flax.engine import outer
from metalr_flax.engine import records
from metalr_flax.trainer import build

RATE = 'perf/outer_steps_per_sec'
Row = dict[str, float]


class Rows(Protocol):
  """What a recorder writes of a chunk: of one run, or of a population."""

  def greet(self) -> None:
    """Says what a reader of the values shown has to know."""
    ...

  def make(
    self,
    first: int,
    chunk: outer.Chunk,
    evaluation: Mapping[str, Any],
    rate: float,
  ) -> list[Row]:
    """The rows of `metrics.csv`.

    Args:
      first: outer steps done before the chunk.
      chunk: its record, on the host.
      evaluation: `eval/*` of the state after it, `{}` where it has none.
      rate: outer steps per second.
    """
    ...

  def shown(self, rows: list[Row]) -> list[Row]:
    """A row for each outer step, for the console and TensorBoard."""
    ...

  def spread(self, row: Row, keys: Mapping[str, Any]) -> Row:
    """More of a row that is shown, for TensorBoard: how members differ."""
    ...

  def used(self) -> Row:
    """The learned values that made the losses of the last row shown.

    The row itself has those of the next window.
    """
    ...

  def end(self, first: int, chunk: outer.Chunk) -> None:
    """Raises a DivergedError where a chunk ended the run."""
    ...


class RunRows:
  """The rows of one run."""

  def __init__(
    self,
    config: Mapping[str, Any],
    experiment: build.Experiment,
    state: records.MetaTrainState,
  ):
    """Starts before the first row.

    Args:
      config: the run's.
      experiment: its objects.
      state: what it goes on from.
    """
    self._unroll_length = config['meta']['unroll_length']
    self._bijections = experiment.problem.bijections
    # What the next window uses, for the message where it fails.
    self._learned = learned_in(state, experiment)
    self._used = self._learned

  def greet(self) -> None:
    """See `Rows`."""

  def make(
    self,
    first: int,
    chunk: outer.Chunk,
    evaluation: Mapping[str, Any],
    rate: float,
  ) -> list[Row]:
    """See `Rows`."""
    rows = []
    for i in range(_count_good(chunk)):
      step = first + i + 1
      values = {key: float(column[i]) for key, column in chunk.rows.items()}
      counts = {'outer_step': step, 'inner_step': step * self._unroll_length}
      rows.append({**counts, **values, RATE: rate})
    if chunk.finite and evaluation:
      rows[-1] |= {key: float(value) for key, value in evaluation.items()}
    self._used = self._learned if len(rows) < 2 else self._values(rows[-2])
    if rows:
      self._learned = self._values(rows[-1])
    return rows

  def shown(self, rows: list[Row]) -> list[Row]:
    """See `Rows`."""
    return rows

  def spread(self, row: Row, keys: Mapping[str, Any]) -> Row:
    """See `Rows`."""
    del row, keys
    return {}

  def used(self) -> Row:
    """See `Rows`."""
    return {key: float(value) for key, value in self._used.items()}

  def end(self, first: int, chunk: outer.Chunk) -> None:
    """See `Rows`."""
    if not chunk.finite:
      good = _count_good(chunk)
      why = why_not_finite(chunk, good, self._learned, self._bijections)
      raise errors.DivergedError(f'outer step {first + good + 1}: {why}')

  def _values(self, row: Row) -> Row:
    return {key: row[key] for key in self._learned}


def _count_good(chunk: outer.Chunk) -> int:
  return int(chunk.count) - (not chunk.finite)


def learned_in(
  state: records.MetaTrainState, experiment: build.Experiment
) -> dict[str, Any]:
  """The learned values that a state's next window uses, by metric key."""
  values = bijections.constrain(state.eta, experiment.problem.bijections)
  return bijections.flatten(values, 'hyperparams')


def why_not_finite(
  chunk: outer.Chunk,
  row: int,
  learned: Mapping[str, Any],
  specs: Mapping[str, str],
) -> str:
  """Says what was not finite in a chunk's last step, and with which values.

  Args:
    chunk: of one run, on the host.
    row: that step's.
    learned: the values it used, by metric key.
    specs: the bijections' by name.
  """
  parts = ', '.join(n for n, finite in chunk.parts.items() if not finite)
  values = ', '.join(
    f'{key} {column[row]:g}'
    for key, column in chunk.rows.items()
    if key not in learned
  )
  used = ', '.join(
    f'{key.partition("/")[2]} {float(value):g} '
    f'(eta {_eta(specs[key.split("/")[1]], value):g})'
    for key, value in learned.items()
  )
  return f'not finite in {parts} ({values}) with {used}'


def _eta(spec: str, value: Any) -> float:
  """The eta of a learned value."""
  try:
    return bijections.make_bijection(spec).unconstrain(float(value))
  except (ValueError, ZeroDivisionError):
    return math.inf  # rounded to an end of its range
