"""Ranks the methods by ratios of their scores.

A score is the mean final objective over the seeds, inf where one of them
diverged; a ratio is one score over another. Below 1 the first is better, up to
`TIE` they count as level. Where losses on unseen data are compared, the final
is the test loss where the held-out loss was least, and a grid counts with the
setting of the least held-out loss.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import math
from typing import Any

import numpy as np

from metalr_flax.comparison import cells
from metalr_flax.comparison import methods as methods_lib
from metalr_flax.comparison import outcomes

UNSEEN = 'loss on unseen data'
TIE = 1.005
# A geometric mean takes a ratio for at most this, and at least its inverse: one
# run that diverged, or one loss of nearly 0, would be all that it shows.
CAP = 100.0
Key = tuple[str, str, str]  # problem, optimizer, method


@dataclasses.dataclass(frozen=True, kw_only=True)
class Best:
  """The best learning rate of a grid, or the best rate and weight decay.

  Attributes:
    learning_rate: picked on the score itself, or by held-out loss.
    score: its own, inf where all diverged.
    std: of the finals over the seeds.
    at_the_edge: whether it is the first or last of the grid: a wider one might
      have found a better.
    weight_decay: picked with the rate, None where the grid is of rates alone.
    held_out: the held-out loss that picked them, None where the score did.
  """

  learning_rate: float
  score: float
  std: float
  at_the_edge: bool
  weight_decay: float | None = None
  held_out: float | None = None


class Standings:
  """The comparison of all finished cells.

  Attributes:
    outcomes: by problem, optimizer and method.
    reference: the optimizer that methods without one are compared with.
  """

  def __init__(self, finished: Iterable[outcomes.Outcome]):
    """Keeps the finished cells, however many there are."""
    self.outcomes: dict[Key, outcomes.Outcome] = {
      (o.cell.problem, o.cell.optimizer, o.cell.method): o for o in finished
    }
    found = {o for _, o, _ in self.outcomes if o}
    self.reference = 'adam' if 'adam' in found else min(found, default='')

  @property
  def unseen(self) -> bool:
    """Whether they are of the loss on unseen data."""
    return any(o.held_out is not None for o in self.outcomes.values())

  def loss_label(self, problem: str) -> str:
    """A problem's loss on unseen data and its unit, in words; '' without."""
    labels = (
      o.held_out.loss_label
      for (name, _, _), o in self.outcomes.items()
      if name == problem and o.held_out is not None
    )
    return next(labels, '')

  @property
  def pairs(self) -> list[tuple[str, str]]:
    """Problems with their inner optimizers, in the order of the cells."""
    return list(dict.fromkeys((p, o) for p, o, _ in self.outcomes if o))

  @property
  def problems(self) -> list[str]:
    """The problems with a finished cell."""
    return list(dict.fromkeys(p for p, _, _ in self.outcomes))

  def best(self, problem: str, optimizer: str, method: str) -> Best | None:
    """The best of a grid; None where it is not finished."""
    outcome = self.outcomes.get((problem, optimizer, method))
    if outcome is None:
      return None
    cell, held_out, index = outcome.cell, outcome.held_out, outcome.picked
    with np.errstate(invalid='ignore'):
      std = float(np.std(outcome.finals[index]))
    return Best(
      learning_rate=cell.learning_rates[index],
      score=float(outcome.scores[index]),
      std=std,
      at_the_edge=_at_the_edge(cell, index),
      weight_decay=cell.weight_decays[index] if cell.weight_decays else None,
      held_out=float(np.mean(held_out.losses[index])) if held_out else None,
    )

  def ratios(self, problem: str, optimizer: str, method: str) -> list[float]:
    """A method's scores, by start, over the best constant's; [] without."""
    outcome = self.outcomes.get((problem, optimizer, method))
    best = self.best(problem, optimizer, methods_lib.BASELINE)
    if outcome is None or best is None:
      return []
    return [ratio(score, best.score) for score in outcome.scores]

  def against(self, method: str) -> list[float]:
    """`self_tuning`'s scores, by start, over another method's.

    A grid counts with its best rate, a method with starts from the same start.
    A method without an inner optimizer is compared with `self_tuning` of the
    reference.
    """
    kind = methods_lib.METHODS[method].kind
    found: list[float] = []
    for problem, optimizer in self.pairs:
      whole = kind is methods_lib.Kind.WHOLE
      if whole and optimizer != self.reference:
        continue
      key = (problem, '' if whole else optimizer, method)
      ours = self.outcomes.get((problem, optimizer, methods_lib.SUBJECT))
      theirs = self.outcomes.get(key)
      if ours is None or theirs is None:
        continue
      scores = theirs.scores
      if kind is not methods_lib.Kind.STARTS:
        scores = np.full(len(ours.scores), scores[theirs.picked])
      found += map(ratio, ours.scores, scores)
    return found

  def means_against(self) -> dict[str, float]:
    """The geometric mean of `against` for every other method; NaN without."""
    return {
      method: geometric_mean(self.against(method))
      for method in methods_lib.METHODS
      if method != methods_lib.SUBJECT
    }

  def ranking(self) -> list[dict[str, Any]]:
    """Methods by their geometric mean over problems, best first.

    Each score is taken over the best constant rate of the reference optimizer;
    a grid counts with its best rate, starts with their mean and their worst.
    `cost` is in gradient evaluations an update, a grid's of all its rates.
    """
    ratios: dict[str, list[float]] = {}
    costs: dict[str, float] = {}
    for (problem, _, _), outcome in self.outcomes.items():
      best = self.best(problem, self.reference, methods_lib.BASELINE)
      for name, value in self._entries(outcome, best).items():
        ratios.setdefault(name, []).append(value)
        costs[name] = outcome.cell.cost
    rows = [
      {
        'method': name,
        'geometric_mean': geometric_mean(values),
        'worst': max(values),
        'problems': len(values),
        'cost': costs[name],
      }
      for name, values in ratios.items()
    ]
    return sorted(rows, key=lambda row: row['geometric_mean'])

  def _entries(
    self, outcome: outcomes.Outcome, best: Best | None
  ) -> dict[str, float]:
    """A cell's ratios by the name that each has in the ranking."""
    if best is None:
      return {}
    ratios = [ratio(score, best.score) for score in outcome.scores]
    method, optimizer = outcome.cell.method, outcome.cell.optimizer
    name = f'{method} {optimizer}'.strip()
    kind = outcome.cell.kind
    if kind is methods_lib.Kind.GRID:
      chosen = 'best rate' if outcome.held_out is None else 'picked'
      return {f'{name}, {chosen}': ratios[outcome.picked]}
    if kind is methods_lib.Kind.STARTS:
      return {
        f'{name}, mean of starts': geometric_mean(ratios),
        f'{name}, worst start': max(ratios),
      }
    return {name: ratios[0]}

  def diverged(self) -> dict[str, tuple[int, int]]:
    """Runs that diverged, and all runs, by method."""
    counts: dict[str, tuple[int, int]] = {}
    for (_, _, method), outcome in self.outcomes.items():
      before = counts.get(method, (0, 0))
      bad = int(np.sum(outcome.diverged))
      counts[method] = (before[0] + bad, before[1] + outcome.diverged.size)
    return counts


def _at_the_edge(cell: cells.Cell, index: int) -> bool:
  """Whether a wider grid might have found a better setting; 0 is no edge."""
  rates, decays = cell.learning_rates, cell.weight_decays
  edge = rates[index] in (rates[0], rates[-1])
  ends = {decay for decay in (*decays[:1], *decays[-1:]) if decay}
  return edge or (bool(decays) and decays[index] in ends)


def by_objective(finished: Iterable[outcomes.Outcome]) -> list[Standings]:
  """The standings by training objective and by unseen data, if there are any.

  Where there is nothing at all, those by training objective.
  """
  parts: tuple[list[outcomes.Outcome], ...] = [], []
  for outcome in finished:
    parts[outcome.cell.unseen].append(outcome)
  return [Standings(part) for part in parts if part] or [Standings([])]


def ratio(score: float, other: float) -> float:
  """One score over another; 1 where both are infinite or both 0."""
  if score == other:
    return 1.0
  if not other or math.isinf(score):
    return math.inf
  return 0.0 if math.isinf(other) else float(score / other)


def median(ratios: Sequence[float]) -> float:
  """The median, the worse of the two middle ones where they are even."""
  return sorted(ratios)[len(ratios) // 2]


def geometric_mean(ratios: Sequence[float]) -> float:
  """Geometric mean of ratios cut to [1 / CAP, CAP]; NaN without any."""
  if not ratios:
    return math.nan
  return float(np.exp(np.mean(np.log(np.clip(ratios, 1 / CAP, CAP)))))


def summarize_all(parts: Iterable[Standings]) -> dict[str, Any]:
  """The content of `summary.json`: what is of unseen data under `unseen`."""
  summary: dict[str, Any] = {}
  for standings in parts:
    found = summarize(standings)
    summary |= {'unseen': found} if standings.unseen else found
  return summary


def summarize(standings: Standings) -> dict[str, Any]:
  """The standings as JSON values; null stands for infinite or not finished.

  `share_won` is of the (problem, optimizer, start) that end level with the
  best constant rate or better.
  """
  all_ratios = [
    r
    for p, o in standings.pairs
    for r in standings.ratios(p, o, methods_lib.SUBJECT)
  ]
  summary = {
    'pairs': [_summarize_pair(standings, p, o) for p, o in standings.pairs],
    'overall': {
      'starts': len(all_ratios),
      'share_won': share_won(all_ratios),
      'worst_ratio': max(all_ratios, default=None),
      'diverged_runs': {
        method: {'diverged': bad, 'runs': runs}
        for method, (bad, runs) in standings.diverged().items()
      },
      'geometric_mean_against': standings.means_against(),
    },
    'reference_optimizer': standings.reference,
    'ranking': standings.ranking(),
    'rules': {'tie': TIE, 'cap_in_geometric_means': CAP},
  }
  if standings.unseen:
    summary = {'objective': UNSEEN, **summary}
  return _finite(summary)


def share_won(ratios: Sequence[float]) -> float | None:
  """The share of ratios that are at most a tie; None without any."""
  if not ratios:
    return None
  return float(np.mean(np.asarray(ratios) <= TIE))


def _summarize_pair(
  standings: Standings, problem: str, optimizer: str
) -> dict[str, Any]:
  summary: dict[str, Any] = {'problem': problem, 'optimizer': optimizer}
  if standings.unseen:
    summary['loss'] = standings.loss_label(problem)
  for method in methods_lib.of_kind(methods_lib.Kind.GRID):
    best = standings.best(problem, optimizer, method)
    summary[method] = _without_none(best) if best else None
  for method in methods_lib.of_kind(methods_lib.Kind.STARTS):
    ratios = standings.ratios(problem, optimizer, method)
    outcome = standings.outcomes.get((problem, optimizer, method))
    if ratios and outcome is not None:
      summary[method] = {
        'starts': list(outcome.cell.learning_rates),
        'scores': outcome.scores.tolist(),
        'ratios': ratios,
        'worst': max(ratios),
        'median': median(ratios),
        'best': min(ratios),
      }
  return summary


def _without_none(best: Best) -> dict[str, Any]:
  fields = dataclasses.asdict(best).items()
  return {name: value for name, value in fields if value is not None}


def _finite(value: Any) -> Any:
  """The value, None where it is not finite, which JSON cannot hold."""
  if isinstance(value, Mapping):
    return {key: _finite(item) for key, item in value.items()}
  if isinstance(value, list):
    return [_finite(item) for item in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
