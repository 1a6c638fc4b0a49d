"""Scores, ratios and profiles of finished cells.

A run's number is its objective plus the floor of its problem, or its unseen
loss. A score is the mean of a rate's numbers over the seeds, inf where one of
them diverged: not finite, or above ten times the objective of its first params.
Of a method whose best rate counts a cell's score is its least. A ratio is a
score over another one of the same problem, optimizer and length.
"""

from collections.abc import Iterable
from typing import NamedTuple

from cells import Cell
from cells import Outcome
import methods as methods_lib
import numpy as np
import problems as problems_lib

LEVEL = 1.005  # ratios up to this count as no worse
CAP = 100.0  # of ratios in geometric means
DIVERGED = 10.0

Outcomes = dict[Cell, Outcome]


class Row(NamedTuple):
  """A method at a length, against a baseline.

  Attributes:
    cells: how many ratios there are.
    mean: their geometric mean, each cut to [1 / CAP, CAP].
    level: the share of them up to `LEVEL`.
    worst: the largest, as it is.
  """

  cells: int
  mean: float
  level: float
  worst: float


def diverged(outcome: Outcome) -> np.ndarray:
  """Whether each run diverged, [R, S]."""
  objective, initial = (outcome.numbers[n] for n in ('objective', 'initial'))
  return ~(objective <= DIVERGED * initial)


def scores(cell: Cell, outcome: Outcome, key: str = 'objective') -> np.ndarray:
  """The score of each rate, [R]; NaN where there is no unseen data."""
  floor = problems_lib.build(cell.problem).floor if key == 'objective' else 0
  bad = np.any(diverged(outcome), axis=1)
  return np.where(bad, np.inf, np.mean(outcome.numbers[key], axis=1) + floor)


def counted(cell: Cell, outcome: Outcome, key: str = 'objective') -> np.ndarray:
  """The scores that count: the least, or each where a method picks none."""
  found = scores(cell, outcome, key)
  picks = methods_lib.METHODS[cell.method].picks
  return np.min(found, keepdims=True) if picks else found


def ratios(
  outcomes: Outcomes,
  method: str,
  baseline: str,
  length: int,
  key: str = 'objective',
) -> dict[Cell, np.ndarray]:
  """By cell of the method, its scores over the baseline's.

  Cells that the baseline lacks are left out, and where it always diverged.
  """
  found = {}
  for cell, outcome in outcomes.items():
    other = cell._replace(method=baseline)
    if (cell.method, cell.length) != (method, length) or other not in outcomes:
      continue
    (best,) = counted(other, outcomes[other], key)
    if np.isfinite(best):
      found[cell] = counted(cell, outcome, key) / best
  return found


def summarise(values: Iterable[np.ndarray]) -> Row:
  """The figures of ratios."""
  flat = np.concatenate([*values, np.zeros(0)])
  if not len(flat):
    return Row(0, np.nan, np.nan, np.nan)
  logs = np.log(np.clip(flat, 1 / CAP, CAP))
  level = float(np.mean(flat <= LEVEL))
  return Row(len(flat), float(np.exp(logs.mean())), level, float(flat.max()))


def profile(
  outcomes: Outcomes, methods: list[str], length: int, taus: np.ndarray
) -> dict[str, np.ndarray]:
  """AlgoPerf's performance profile, of losses in place of times.

  By method the share of its cells whose score is at most tau times the best
  score that any of the methods has there (Dahl et al. 2023,
  https://arxiv.org/abs/2306.07179; Dolan and More 2002).

  Args:
    outcomes: the finished cells.
    methods: those that are compared; none that has several scores in a cell.
    length: of the runs.
    taus: the factors, [T].

  Returns:
    Shares by method, [T]; none for a method without cells.
  """
  best: dict[Cell, float] = {}
  own: dict[str, dict[Cell, float]] = {name: {} for name in methods}
  for cell, outcome in outcomes.items():
    if cell.length == length and cell.method in own:
      (score,) = counted(cell, outcome)
      place = cell._replace(method='')
      own[cell.method][place] = score
      best[place] = min(score, best.get(place, np.inf))
  shares = {}
  for name, found in own.items():
    factors = [s / best[p] for p, s in found.items() if np.isfinite(best[p])]
    if factors:
      shares[name] = np.mean(np.array(factors)[:, None] <= taus, axis=0)
  return shares


def solved(outcomes: Outcomes, method: str, length: int) -> float:
  """The share of runs at their cell's best rate that reach a published level.

  Of the problems that have one; of a method that picks no rate, of all runs.
  """
  found = []
  for cell, outcome in outcomes.items():
    threshold = problems_lib.build(cell.problem).threshold
    if (cell.method, cell.length) == (method, length) and threshold > 0:
      runs = outcome.numbers['solved']
      if methods_lib.METHODS[method].picks:
        runs = runs[np.argmin(scores(cell, outcome))]
      found.append(np.mean(runs))
  return float(np.mean(found)) if found else np.nan


def at_the_edge(
  outcomes: Outcomes, method: str, length: int
) -> tuple[int, int]:
  """Cells whose best rate is the grid's first or last, and all cells."""
  places = [
    (int(np.argmin(scores(cell, outcome))), len(outcome.rates))
    for cell, outcome in outcomes.items()
    if (cell.method, cell.length) == (method, length)
  ]
  return sum(p in (0, n - 1) for p, n in places), len(places)
