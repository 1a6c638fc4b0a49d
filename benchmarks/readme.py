"""Makes README's table of results and its picture from the published results.

  python benchmarks/readme.py

Trains nothing: each row's figures are those of a file of benchmarks/results
that a benchmark wrote, the picture is of comparison/comparison.csv there.
Writes the table into README.md, in place of the one that is there, and
docs/images/comparison.png. Where a file is missing it is named, nothing is
written, and the exit status is 1.

The words of a row are here, in `ROWS`: to change README's, change them here.
"""

import argparse
from collections.abc import Callable
import csv
import json
import math
import pathlib
import statistics
import sys
from typing import Any, NamedTuple

from matplotlib import figure
from matplotlib.axes import Axes
import numpy as np

from metalr_flax.comparison import cells
from metalr_flax.comparison import methods as methods_lib
from metalr_flax.comparison import outcomes
from metalr_flax.comparison import standings as standings_lib

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / 'benchmarks/results'
README = ROOT / 'README.md'
PICTURE = ROOT / 'docs/images/comparison.png'
START = 1e-5  # where self_tuning starts from any rate above
HEAD = '| measured on two CPU cores | | in full |', '|---|---|---|'
MARKS = 'o', 's', '^', 'D', 'v'  # of optimizers


class Row(NamedTuple):
  """A row of README's table.

  Attributes:
    words: the row; its figures are formatted into it.
    file: below benchmarks/results, which has them.
    figures: from the file's content to the figures.
  """

  words: str
  file: str
  figures: Callable[[Any], tuple[float, ...]]


def _over_grids(summary: dict[str, Any]) -> tuple[float, ...]:
  """The drop-in over the best of the grids, from the start of most rates."""
  grids = 'constant', 'cosine', 'linear'
  pairs, logs = summary['pairs'], {name: [] for name in grids}
  for pair in pairs:
    ours = pair['self_tuning']
    score = ours['scores'][ours['starts'].index(START)]
    for name, found in logs.items():
      found.append(math.log(standings_lib.cut(score / pair[name]['score'])))
  means = [math.exp(statistics.mean(found)) for found in logs.values()]
  runs = _read_runs(RESULTS / 'comparison')
  rates = {r['learning_rate'] for r in runs if r['method'] == 'constant'}
  of_start = [
    r
    for r in runs
    if r['method'] == 'self_tuning' and float(r['learning_rate']) == START
  ]
  return len(rates), len(pairs), len(of_start), *means


def _over_searches(found: dict[str, Any]) -> tuple[float, ...]:
  over = found['overall']['early']['ours_over']
  return over['one_draw']['mean'], over['grid']['mean']


def _step_times(rows: list[dict[str, Any]]) -> tuple[float, ...]:
  transformers = [
    row['ratio'] for row in rows if row['model'].startswith('transformer')
  ]
  return len(rows), max(transformers), max(row['ratio'] for row in rows)


def _unseen_digits(found: dict[str, Any]) -> tuple[float, ...]:
  return tuple(
    statistics.mean(run['loss'] for name in found if name.startswith(start)
                    for run in found[name])
    for start in ('rate learned', 'rate, decay and')
  )  # fmt: skip


def _memory(found: dict[str, Any]) -> tuple[float, ...]:
  memory = found['problems']['mlp']['memory']
  return (memory['forward']['bytes']['512'] / memory['plain']['bytes']['512'],)


ROWS = (
  Row(
    'drop-in: final training loss over that of the best constant of {} rates '
    '/ of the best cosine and the best linear decay with warm-up, which know '
    "the run's length (geometric mean over "
    '{} problems x optimizers, {} runs) | {:.2f}x / {:.2f}x and {:.2f}x | '
    '[comparison](benchmarks/results/comparison/README.md)',
    'comparison/summary.json',
    _over_grids,
  ),
  Row(
    'drop-in with held-out data: loss on unseen data, stopped early, over that '
    'of one random rate and decay / of the best of 30 | {:.2f}x / {:.2f}x | '
    '[table](benchmarks/results/held_out.md)',
    'held_out.json',
    _over_searches,
  ),
  Row(
    "drop-in: time of a training step, worst of {} (a transformer's at most "
    '{:.2f}x) | {:.2f}x | [table](benchmarks/results/self_tuning.md)',
    'self_tuning.json',
    _step_times,
  ),
  Row(
    "trainer: loss on unseen text in the picture's run (training loss {:.2f}) "
    '| {:.2f} nats | [run](benchmarks/results/text_transformer.json)',
    'text_transformer.json',
    lambda found: (found['train/loss'], found['eval/loss']),
  ),
  Row(
    'trainer: loss on unseen digits, the rate learned / with weight decay and '
    'label smoothing | {:.2f} / {:.2f} nats | '
    '[table](benchmarks/results/digits_regularized.md)',
    'digits_regularized.json',
    _unseen_digits,
  ),
  Row(
    'trainer: memory of an exact meta-gradient over plain training, any K | '
    '{:.2f}x | [table](benchmarks/results/meta_gradient.md)',
    'meta_gradient.json',
    _memory,
  ),
)


def make_table() -> str:
  """README's table.

  Raises:
    FileNotFoundError: where a result file is missing.
  """
  lines = [*HEAD]
  for row in ROWS:
    found = json.loads((RESULTS / row.file).read_text())
    lines.append(f'| {row.words.format(*row.figures(found))} |')
  return '\n'.join(lines) + '\n'


def put(table: str, readme: str) -> str:
  """README with the table in place of the one that has its head."""
  before, head, after = readme.partition(HEAD[0])
  if not head:
    raise SystemExit(f'README.md has no table that begins with {HEAD[0]!r}')
  return before + table + '\n' + after.partition('\n\n')[2]


def _read_runs(folder: pathlib.Path) -> list[dict[str, str]]:
  with (folder / 'comparison.csv').open(newline='') as file:
    return list(csv.DictReader(file))


def read_standings(folder: pathlib.Path) -> standings_lib.Standings:
  """The standings by training objective of a comparison.csv.

  Its runs alone: it has no curves, so those here are of the finals.
  """
  found: dict[tuple[str, ...], list[dict[str, str]]] = {}
  for run in _read_runs(folder):
    key = run['problem'], run['optimizer'], run['method']
    found.setdefault(key, []).append(run)
  return standings_lib.Standings(
    _make_outcome(key, runs)
    for key, runs in found.items()
    if not runs[0].get('held_out')
  )


def _make_outcome(
  key: tuple[str, ...], runs: list[dict[str, str]]
) -> outcomes.Outcome:
  seeds = sorted({int(run['seed']) for run in runs})
  rates = tuple(
    dict.fromkeys(
      float(run['learning_rate']) for run in runs if run['learning_rate']
    )
  )
  shape = max(1, len(rates)), len(seeds)
  cell = cells.Cell(
    problem=key[0],
    optimizer=key[1],
    method=key[2],
    learning_rates=rates,
    num_seeds=len(seeds),
    num_steps=int(runs[0]['steps']),
    digest='',
  )
  finals = np.array([float(run['final']) for run in runs]).reshape(shape)
  diverged = [run['diverged'] == 'True' for run in runs]
  first = [run.get('repeats') for run in runs[:: len(seeds)]]
  own = enumerate(first)
  return outcomes.Outcome(
    cell=cell,
    first_seed=seeds[0],
    initial_objective=math.nan,
    finals=finals,
    diverged=np.array(diverged).reshape(shape),
    steps=np.array([cell.num_steps]),
    curves=finals.mean(1, keepdims=True),
    learned_rates=np.full((shape[0], 1), np.nan),
    seconds=math.nan,
    repeats=np.array([rates.index(float(r)) if r else i for i, r in own]),
    test=_make_test(runs, shape),
  )


def _make_test(
  runs: list[dict[str, str]], shape: tuple[int, int]
) -> outcomes.Test | None:
  if not runs[0].get('unseen'):
    return None
  finals = np.array([float(run['unseen']) for run in runs]).reshape(shape)
  return outcomes.Test(
    finals=finals,
    steps=np.array([int(runs[0]['steps'])]),
    curves=finals.mean(1, keepdims=True),
    loss_label='loss',
  )


def draw(standings: standings_lib.Standings) -> figure.Figure:
  """Two large panels: all methods beside each other, and where ours is weak."""
  fig = figure.Figure(figsize=(13, 6.5), layout='constrained')
  left, right = fig.subplots(1, 2)
  _draw_methods(left, standings)
  _draw_problems(right, standings)
  for axes in (left, right):
    low, high = 1 / standings_lib.CAP, standings_lib.CAP
    axes.set(xscale='log', xlim=(low / 1.3, high * 1.3))
    axes.axvline(1, color='black', linewidth=0.8)
    axes.grid(True, axis='x', alpha=0.3)
    axes.tick_params(labelsize=11)
  fig.legend(fontsize=11, loc='outside lower center', ncols=3)
  return fig


def _draw_methods(axes: Axes, standings: standings_lib.Standings) -> None:
  """A line for each method: its problems, and their geometric mean."""
  name = standings.reference
  found = {
    method: [
      standings_lib.cut(ratio)
      for (_, optimizer, its), outcome in standings.outcomes.items()
      if its == method and optimizer in (name, '')
      for ratio in [standings.ratio_to(name, outcome, outcome.shown)]
      if ratio is not None
    ]
    for method in methods_lib.METHODS
  }
  means = {
    method: standings_lib.geometric_mean(ratios)
    for method, ratios in found.items()
    if ratios
  }
  order = sorted(means, key=lambda method: -means[method])
  for i, method in enumerate(order):
    color = 'tab:orange' if method == methods_lib.SUBJECT else 'tab:gray'
    ratios = found[method]
    axes.plot(ratios, [i] * len(ratios), '.', color=color, alpha=0.5)
    axes.plot(means[method], i, 'D', color=color, markersize=9)
  axes.set_yticks(range(len(order)), order)
  axes.set_xlabel(
    f'final training loss / that of the best constant rate of {name}\n'
    f'dots: problems, cut to [0.01, 100]; diamonds: geometric mean',
    fontsize=11,
  )


def _draw_problems(axes: Axes, standings: standings_lib.Standings) -> None:
  """A line for each problem: ours, and the best schedules, by optimizer."""
  problems = standings.problems[::-1]
  optimizers = list(dict.fromkeys(o for _, o in standings.pairs))
  shown = {
    methods_lib.SUBJECT: 'tab:orange',
    'cosine': 'tab:blue',
    'linear': 'tab:cyan',
  }
  for i, (method, color) in enumerate(shown.items()):
    offset = 0.15 * (1 - i)
    for j, optimizer in enumerate(optimizers):
      places = [
        (standings_lib.cut(ratio), problems.index(problem))
        for (problem, its, name), outcome in standings.outcomes.items()
        if (its, name) == (optimizer, method)
        for ratio in [standings.ratio_to(optimizer, outcome, outcome.shown)]
        if ratio is not None
      ]
      axes.plot(
        [x for x, _ in places],
        [y + offset for _, y in places],
        MARKS[j % len(MARKS)],
        color=color,
        markersize=8,
        alpha=0.8,
        label=f'{"best " if offset <= 0 else ""}{method}, {optimizer}',
      )
  axes.set_yticks(range(len(problems)), problems)
  axes.set_ylim(-0.5, len(problems) - 0.5)
  axes.set_xlabel(
    "over the same optimizer's best constant rate\n"
    'self_tuning: the median of its starts',
    fontsize=11,
  )


def main() -> int:
  """Runs the command line; returns its exit status."""
  argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  ).parse_args()
  try:
    standings = read_standings(RESULTS / 'comparison')
    table = make_table()
  except FileNotFoundError as error:
    print(f'missing: {error.filename}; nothing is written')
    return 1
  README.write_text(put(table, README.read_text()))
  draw(standings).savefig(PICTURE, dpi=90)
  print(table, end='')
  print(f'written to {README}; the picture is {PICTURE}')
  return 0


if __name__ == '__main__':
  sys.exit(main())
