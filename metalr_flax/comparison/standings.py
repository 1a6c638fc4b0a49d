"""Ranks the methods by ratios of their scores.

A score is the mean final objective over the seeds, inf where one of them
diverged; a ratio is one score over another. Below 1 the first is better, up to
`TIE` they count as level. Where losses on unseen data are compared, the final
is the test loss where the held-out loss was least, and a grid counts with the
setting of the least held-out loss.

A method that makes the same run of several starts counts it once.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np

from metalr_flax.comparison import cells
from metalr_flax.comparison import methods as methods_lib
from metalr_flax.comparison import outcomes

UNSEEN = 'loss on unseen data'
TIE = 1.005
# Means and worst cases take a ratio for at most this, and at least its inverse:
# one run that diverged, or one loss of nearly 0, would be all that they show.
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
    unseen: the loss on unseen data beside a training objective, None without.
  """

  learning_rate: float
  score: float
  std: float
  at_the_edge: bool
  weight_decay: float | None = None
  held_out: float | None = None
  unseen: float | None = None


class Count(NamedTuple):
  """How many runs a method has.

  Attributes:
    runs: one for each learning rate and seed.
    distinct_runs: those that repeat no other's.
    diverged: of the distinct ones.
  """

  runs: int = 0
  distinct_runs: int = 0
  diverged: int = 0


def _count(
  found: Iterable[tuple[str, outcomes.Outcome]],
) -> dict[str, Count]:
  """The runs of cells, those of the same name together."""
  counts: dict[str, Count] = {}
  for name, outcome in found:
    diverged = int(np.sum(outcome.diverged[outcome.distinct]))
    more = outcome.diverged.size, outcome.num_distinct, diverged
    before = counts.get(name, Count())
    counts[name] = Count(*(a + b for a, b in zip(before, more, strict=True)))
  return counts


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
    found = (
      o.held_out or o.test
      for (name, _, _), o in self.outcomes.items()
      if name == problem
    )
    return next((losses.loss_label for losses in found if losses), '')

  @property
  def pairs(self) -> list[tuple[str, str]]:
    """Problems with their inner optimizers, in the order of the cells."""
    return list(dict.fromkeys((p, o) for p, o, _ in self.outcomes if o))

  @property
  def problems(self) -> list[str]:
    """The problems with a finished cell."""
    return list(dict.fromkeys(p for p, _, _ in self.outcomes))

  @property
  def panels(self) -> list[tuple[str, str]]:
    """The `pairs`, and ('problem', '') where a problem has no optimizer."""
    problems = dict(self.pairs)
    alone = [(p, '') for p in self.problems if p not in problems]
    return [*self.pairs, *alone]

  def contestants(self, problem: str, optimizer: str) -> list[outcomes.Outcome]:
    """The finished cells of a panel, in the order of the methods.

    Methods with an optimizer of their own are beside the reference, or alone
    where there is none.
    """
    found = [o for p, o in self.panels if p == problem]
    home = self.reference if self.reference in found else found[0]
    names = (optimizer, '') if optimizer == home else (optimizer,)
    keys = [(problem, o, m) for m in methods_lib.METHODS for o in names]
    return [self.outcomes[key] for key in keys if key in self.outcomes]

  def ratio_to(
    self, optimizer: str, outcome: outcomes.Outcome, index: int
  ) -> float | None:
    """A setting's score over the best constant's; None without.

    Args:
      optimizer: whose best constant rate.
      outcome: the setting's cell.
      index: the setting's number there.
    """
    best = self.best(outcome.cell.problem, optimizer, methods_lib.BASELINE)
    return ratio(outcome.scores[index], best.score) if best else None

  def test_ratio_to(
    self, optimizer: str, outcome: outcomes.Outcome, index: int
  ) -> float | None:
    """The same of the loss on unseen data that stands beside an objective.

    The best constant's is that of the rate which its training objective picks.
    """
    key = outcome.cell.problem, optimizer, methods_lib.BASELINE
    best, ours = self.outcomes.get(key), outcome.test_scores
    theirs = best.test_scores if best else None
    if best is None or ours is None or theirs is None:
      return None
    return ratio(ours[index], theirs[best.picked])

  def rival_of(self, cell: cells.Cell) -> str:
    """The optimizer whose best constant rate a cell is held to."""
    return cell.optimizer or self.reference

  def distinct_of(self, outcome: outcomes.Outcome) -> list[float]:
    """A cell's ratios, of the runs that repeat no other's; [] without."""
    rival = self.rival_of(outcome.cell)
    return _known(self.ratio_to(rival, outcome, i) for i in outcome.distinct)

  @property
  def has_test(self) -> bool:
    """Whether a loss on unseen data stands beside a training objective."""
    return any(o.test is not None for o in self.outcomes.values())

  def best(self, problem: str, optimizer: str, method: str) -> Best | None:
    """The best of a grid; None where it is not finished."""
    outcome = self.outcomes.get((problem, optimizer, method))
    if outcome is None:
      return None
    cell, held_out, index = outcome.cell, outcome.held_out, outcome.picked
    tested = outcome.test_scores
    with np.errstate(invalid='ignore'):
      std = float(np.std(outcome.finals[index]))
    return Best(
      learning_rate=cell.learning_rates[index],
      score=float(outcome.scores[index]),
      std=std,
      at_the_edge=at_the_edge(cell, index),
      weight_decay=cell.weight_decays[index] if cell.weight_decays else None,
      held_out=float(np.mean(held_out.losses[index])) if held_out else None,
      unseen=None if tested is None else float(tested[index]),
    )

  def ratios(self, problem: str, optimizer: str, method: str) -> list[float]:
    """A method's scores, by start, over the best constant's; [] without."""
    outcome = self.outcomes.get((problem, optimizer, method))
    best = self.best(problem, optimizer, methods_lib.BASELINE)
    if outcome is None or best is None:
      return []
    return [ratio(score, best.score) for score in outcome.scores]

  def distinct_ratios(
    self, problem: str, optimizer: str, method: str
  ) -> list[float]:
    """Those `ratios` that are of runs of their own."""
    outcome = self.outcomes.get((problem, optimizer, method))
    return self.distinct_of(outcome) if outcome else []

  def against(self, method: str) -> list[float]:
    """`self_tuning`'s scores, by start, over another method's.

    A grid counts with its best rate, a method with starts from the same start.
    Starts of which both methods make the runs of another start are left out.
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
      repeats = [ours.repeats]
      if kind is methods_lib.Kind.STARTS:
        repeats.append(theirs.repeats)
      else:
        scores = np.full(len(ours.scores), scores[theirs.picked])
      _, starts = np.unique(np.stack(repeats), axis=1, return_index=True)
      found += (ratio(ours.scores[i], scores[i]) for i in sorted(starts))
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
    `unseen` is the mean of their ratios on unseen data, where that is beside.
    `cost` is in gradient evaluations an update, a grid's of all its rates;
    `distinct_runs` are of all rates, starts and seeds, and of these `diverged`.
    """
    ratios: dict[str, list[float]] = {}
    tests: dict[str, list[float]] = {}
    costs: dict[str, float] = {}
    named: list[tuple[str, outcomes.Outcome]] = []
    for (problem, _, _), outcome in self.outcomes.items():
      if self.best(problem, self.reference, methods_lib.BASELINE) is None:
        continue
      for name, settings in _named_settings(outcome).items():
        found = [self.ratio_to(self.reference, outcome, i) for i in settings]
        ratios.setdefault(name, []).append(geometric_mean(_known(found)))
        found = [
          self.test_ratio_to(self.reference, outcome, i) for i in settings
        ]
        tests.setdefault(name, []).extend(_known(found))
        costs[name] = outcome.cell.cost
        named.append((name, outcome))
    counts = _count(named)
    rows = [
      {
        'method': name,
        'geometric_mean': geometric_mean(values),
        'worst': cut(max(values)),
        'unseen': geometric_mean(tests[name]),
        'problems': len(values),
        **counts[name]._asdict(),
        'cost': costs[name],
      }
      for name, values in ratios.items()
    ]
    return sorted(rows, key=lambda row: row['geometric_mean'])

  def counts(self) -> dict[str, Count]:
    """How many runs there are, by method."""
    return _count((key[-1], found) for key, found in self.outcomes.items())


def _named_settings(outcome: outcomes.Outcome) -> dict[str, list[int]]:
  """A cell's names in the ranking, each with the settings it stands for."""
  method, optimizer = outcome.cell.method, outcome.cell.optimizer
  name = f'{method} {optimizer}'.strip()
  kind = outcome.cell.kind
  if kind is methods_lib.Kind.GRID:
    chosen = 'best rate' if outcome.held_out is None else 'picked'
    return {f'{name}, {chosen}': [outcome.picked]}
  if kind is methods_lib.Kind.STARTS:
    starts = outcome.distinct.tolist()
    worst = max(starts, key=lambda i: float(outcome.scores[i]))
    return {f'{name}, mean of starts': starts, f'{name}, worst start': [worst]}
  return {name: [0]}


def _known(ratios: Iterable[float | None]) -> list[float]:
  return [ratio for ratio in ratios if ratio is not None]


def at_the_edge(cell: cells.Cell, index: int) -> bool:
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


def cut(ratio: float) -> float:
  """A ratio as means and worst cases take it, within [1 / CAP, CAP]."""
  return float(np.clip(ratio, 1 / CAP, CAP))


def geometric_mean(ratios: Sequence[float]) -> float:
  """Geometric mean of ratios, each cut by `cut`; NaN without any."""
  if not ratios:
    return math.nan
  return float(np.exp(np.mean(np.log([cut(ratio) for ratio in ratios]))))


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
  best constant rate or better, starts of the same run counted once.
  """
  all_ratios = [
    r
    for p, o in standings.pairs
    for r in standings.distinct_ratios(p, o, methods_lib.SUBJECT)
  ]
  summary = {
    'pairs': [_summarize_pair(standings, p, o) for p, o in standings.pairs],
    'overall': {
      'starts': len(all_ratios),
      'share_won': share_won(all_ratios),
      'worst_ratio': cut(max(all_ratios)) if all_ratios else None,
      'diverged_runs': {
        method: found._asdict() for method, found in standings.counts().items()
      },
      'geometric_mean_against': standings.means_against(),
    },
    'reference_optimizer': standings.reference,
    'ranking': standings.ranking(),
    'rules': {
      'tie': TIE,
      'cap_in_geometric_means': CAP,
      'cap_in_worst_cases': CAP,
    },
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
  if standings.loss_label(problem):
    summary['loss'] = standings.loss_label(problem)
  for method in methods_lib.of_kind(methods_lib.Kind.GRID):
    best = standings.best(problem, optimizer, method)
    summary[method] = _without_none(best) if best else None
  for method in methods_lib.of_kind(methods_lib.Kind.STARTS):
    ratios = standings.ratios(problem, optimizer, method)
    outcome = standings.outcomes.get((problem, optimizer, method))
    if ratios and outcome is not None:
      more = outcome.test_scores
      distinct = standings.distinct_ratios(problem, optimizer, method)
      summary[method] = {
        'starts': list(outcome.cell.learning_rates),
        'scores': outcome.scores.tolist(),
        'ratios': ratios,
        'distinct_starts': len(distinct),
        'worst': cut(max(distinct)),
        'median': cut(median(distinct)),
        'best': cut(min(distinct)),
      }
      if more is not None:
        summary[method]['unseen'] = more.tolist()
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
