"""What the runs of held_out.py come to: test losses, and ratios of them.

Shape legend: R settings, S seeds.
"""

import math
from typing import Any

from held_out_searches import EVALUATIONS
import numpy as np

RUNGS = (1 / 8, 1 / 4, 1 / 2, 1)
LEVEL = 1.005
# A test loss counts as this many times the untrained model's at most, so that
# a run that diverged has a loss.
LIMIT = 10.0
MODES = {'end': 'end of the run', 'early': 'early stopping'}
SEARCHES = {
  'grid': 'grid',
  'cosine': 'grid with cosine',
  'random': 'random search',
  'halving': 'successive halving',
}


def score(curves: np.ndarray, mode: str, upto: int = EVALUATIONS) -> np.ndarray:
  """Held-out and test loss of runs, [R, S, 2].

  Args:
    curves: [R, S, EVALUATIONS, 2].
    mode: 'end' or 'early'.
    upto: evaluations that are seen.
  """
  curves = np.where(np.isfinite(curves), curves, np.inf)[:, :, :upto]
  if mode == 'end':
    return curves[:, :, -max(1, upto // 10) :].mean(2)
  at = curves[..., 0].argmin(2)
  return np.take_along_axis(curves, at[:, :, None, None], 2)[:, :, 0]


def expected(scores: np.ndarray) -> np.ndarray:
  """The log test loss of the best of n runs by held-out loss, [R].

  The mean over all orders of the runs, and over the seeds; n = 1 ... R.

  Args:
    scores: [R, S, 2].
  """
  count = len(scores)
  order = scores[..., 0].argsort(0)
  logs = np.log(np.take_along_axis(scores[..., 1], order, 0)).mean(1)
  # The k-th best of all is the best of n: the others are of those after it.
  share = lambda n, k: math.comb(count - 1 - k, n - 1) / math.comb(count, n)
  shares = [[share(n, k) for k in range(count)] for n in range(1, count + 1)]
  return np.array(shares) @ logs


def halve(curves: np.ndarray, mode: str) -> tuple[float, float]:
  """Successive halving: the log test loss, mean over the seeds, and the cost.

  At each rung the better half by held-out loss goes on.

  Args:
    curves: [R, S, EVALUATIONS, 2].
    mode: 'end' or 'early'.

  Returns:
    The log test loss, and the cost in runs.
  """
  seeds = np.arange(curves.shape[1])
  alive = np.repeat(np.arange(len(curves))[:, None], len(seeds), 1)
  cost, before = 0.0, 0.0
  for rung in RUNGS:
    cost += len(alive) * (rung - before)
    before = rung
    scores = score(curves, mode, round(rung * EVALUATIONS))
    held = np.take_along_axis(scores[..., 0], alive, 0)
    order = held.argsort(0)[: math.ceil(len(alive) / 2)]
    alive = np.take_along_axis(alive, order, 0)
  return float(np.log(scores[alive[0], seeds, 1]).mean()), cost


def summarise(
  runs: dict[str, np.ndarray], untrained: np.ndarray, mode: str
) -> dict[str, Any]:
  """What a cell comes to: test losses, and ours over those of searches.

  Args:
    runs: losses by method.
    untrained: test loss before the first update, [S].
    mode: 'end' or 'early'.
  """
  limit = LIMIT * untrained[:, None]
  runs = {k: _limited(curves, limit) for k, curves in runs.items()}
  scores = {k: score(curves, mode) for k, curves in runs.items()}
  logs = {k: expected(scores[k]) for k in ('grid', 'cosine', 'random')}
  halved, cost = halve(runs['random'], mode)
  losses = {k: v[-1] for k, v in logs.items()} | {'halving': halved}
  for k in ('ours', 'training'):
    losses[k] = np.log(scores[k][..., 1]).mean()
  return {
    **_ratios(losses, logs['random'][0]),
    'draws_until_level': first_below(logs['random'], losses['ours']),
    'over_grid_by_runs': {
      k: np.exp(v - losses['grid']).tolist() for k, v in logs.items()
    },
    'halving_cost': cost,
    'ours_by_start_and_seed': scores['ours'][..., 1].tolist(),
  }


def _ratios(logs: dict[str, Any], one_draw: float) -> dict[str, Any]:
  """Test losses by method, and ratios of them, from the logarithms."""
  over = lambda a, b: float(np.exp(a - b))
  return {
    'test_loss': {k: float(np.exp(v)) for k, v in logs.items()},
    'ours_over': {k: over(logs['ours'], logs[k]) for k in SEARCHES},
    'training_over_grid': over(logs['training'], logs['grid']),
    'ours_over_one_draw': over(logs['ours'], one_draw),
    'halving_over_grid': over(logs['halving'], logs['grid']),
  }


def first_below(values: Any, level: float) -> int | None:
  """How many runs until a value is at the level or below; None for never."""
  found = np.flatnonzero(np.array(values) <= level)
  return int(found[0]) + 1 if len(found) else None


def _limited(curves: np.ndarray, limit: np.ndarray) -> np.ndarray:
  """Runs with test losses of `limit` at most, [S, 1]."""
  held, test = np.moveaxis(curves, -1, 0)
  return np.stack([held, np.fmin(test, limit)], -1)


def overall(cells: list[dict[str, Any]], mode: str) -> dict[str, Any]:
  """The figures over all cells."""
  of = lambda key: [cell[mode][key] for cell in cells]
  ratios = {k: _spread([row[k] for row in of('ours_over')]) for k in SEARCHES}
  curves = {
    k: geomean([row[k] for row in of('over_grid_by_runs')], 0).tolist()
    for k in ('grid', 'cosine', 'random')
  }
  draws = of('draws_until_level')
  return {
    'ours_over': {**ratios, 'one_draw': _spread(of('ours_over_one_draw'))},
    'training_over_grid': _spread(of('training_over_grid')),
    'runs_until_level': {
      k: first_below(curve, ratios['grid']['mean'])
      for k, curve in curves.items()
    },
    'cells': len(cells),
    'cells_never_level': draws.count(None),
    'cells_level_at_one_draw': draws.count(1),
    'over_grid_by_runs': curves,
    'halving_over_grid': float(geomean(of('halving_over_grid'))),
    'halving_cost': cells[0][mode]['halving_cost'],
  }


def geomean(values: Any, axis: int | None = None) -> np.ndarray:
  """The geometric mean."""
  return np.exp(np.mean(np.log(values), axis))


def _spread(ratios: list[float]) -> dict[str, float]:
  """Mean, worst and share of those that are level."""
  return {
    'mean': float(geomean(ratios)),
    'worst': max(ratios),
    'level': float(np.mean(np.array(ratios) <= LEVEL)),
  }
