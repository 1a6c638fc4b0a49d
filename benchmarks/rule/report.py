"""Makes tables and a picture of what `run.py` has trained.

  python benchmarks/rule/report.py [--half=choose] [--csv=FILE]

Reads benchmarks/results/rule/<half>.csv, prints its tables and writes them
beside it as <half>.md, with the performance profiles in <half>.png. `scores.py`
says what is compared.
"""

import argparse
import pathlib
import sys

import cells
from matplotlib import figure
import methods as methods_lib
import numpy as np
import problems as problems_lib
from run import RESULTS
import scores as scores_lib
from scores import Outcomes

TAUS = 1.1, 2.0
PROFILE = np.geomspace(1, 5, 200)
NAMES = {
  'constant': 'best constant', 'cosine': 'best cosine', 'linear': 'best linear'
}  # fmt: skip


def methods_of(outcomes: Outcomes) -> list[str]:
  """Those with cells, in the order of the table."""
  there = {cell.method for cell in outcomes}
  return [name for name in methods_lib.METHODS if name in there]


def lengths_of(outcomes: Outcomes) -> list[int]:
  """The lengths of runs, ascending."""
  return sorted({cell.length for cell in outcomes})


def to_markdown(outcomes: Outcomes, half: str) -> str:
  """All tables."""
  parts = [f'# Rules on the half `{half}`\n', completeness(outcomes, half)]
  for baseline, name in NAMES.items():
    if baseline in methods_of(outcomes):
      parts.append(f'## Over the {name}\n')
      parts.append(against(outcomes, baseline))
  parts.append('## Performance profile, published levels, divergences\n')
  parts.append(standings(outcomes))
  if 'constant' in methods_of(outcomes):
    parts.append('## Each problem, over the best constant\n')
    parts.append(by_problem(outcomes, 'constant'))
  return '\n'.join(parts)


def completeness(outcomes: Outcomes, half: str) -> str:
  """What there is, and how much of it is missing."""
  methods, lengths = methods_of(outcomes), lengths_of(outcomes)
  all_cells = len(lengths) * sum(
    len(problems_lib.HALVES[half]) * len(methods_lib.METHODS[m].optimizers)
    for m in methods
  )
  seeds = {outcome.num_seeds for outcome in outcomes.values()}
  missing = all_cells - len(outcomes)
  state = f'**Incomplete: {missing} are missing.**' if missing else 'Complete.'
  return (
    f'{len(outcomes)} of {all_cells} cells (problem, optimizer, method, '
    f'length), seeds: {" to ".join(map(str, sorted({min(seeds), max(seeds)})))}'
    f'. {state} Ratios of the training objective at the end of a run, below 1 '
    f'the method is better; geometric means of ratios cut to '
    f'[1/{scores_lib.CAP:g}, {scores_lib.CAP:g}].\n'
  )


def against(outcomes: Outcomes, baseline: str) -> str:
  """A row for each method and length."""
  lines = [
    f'| method | updates | ratios | geometric mean | <= {scores_lib.LEVEL} '
    '| worst | published | networks | unseen |',
    '|---|---|---|---|---|---|---|---|---|',
  ]
  for method in methods_of(outcomes):
    for length in lengths_of(outcomes):
      if method != baseline:
        lines.append(_row_against(outcomes, method, baseline, length))
  return '\n'.join(lines) + '\n'


def _row_against(
  outcomes: Outcomes, method: str, baseline: str, length: int
) -> str:
  found = scores_lib.ratios(outcomes, method, baseline, length)
  row = scores_lib.summarise(found.values())
  groups = [
    scores_lib.summarise(
      v for c, v in found.items() if problems_lib.GROUPS[c.problem] == group
    ).mean
    for group in ('published', 'networks')
  ]
  unseen = scores_lib.ratios(outcomes, method, baseline, length, 'unseen')
  means = [*groups, scores_lib.summarise(unseen.values()).mean]
  shown = [_shown(row.mean, '.3f'), _shown(row.level, '.0%')]
  shown += [_shown(row.worst, '.3g'), *(_shown(mean, '.3f') for mean in means)]
  return f'| {method} | {length} | {row.cells} | {" | ".join(shown)} |'


def _shown(value: float, form: str) -> str:
  return '-' if np.isnan(value) else format(value, form)


def standings(outcomes: Outcomes) -> str:
  """Shares of the profile, of what is solved, and runs that diverged."""
  titles = [f'within {tau:g}' for tau in TAUS]
  lines = [
    f'| method | updates | {" | ".join(titles)} | solved | diverged runs '
    '| best rate at the edge |',
    f'|---|---|{"---|" * len(TAUS)}---|---|---|',
  ]
  for length in lengths_of(outcomes):
    shares = _profile(outcomes, length, np.array(TAUS))
    for method in methods_of(outcomes):
      if any((c.method, c.length) == (method, length) for c in outcomes):
        lines.append(_standing(outcomes, method, length, shares.get(method)))
  return '\n'.join(lines) + '\n'


def _standing(
  outcomes: Outcomes, method: str, length: int, shares: np.ndarray | None
) -> str:
  shown = ['-'] * len(TAUS) if shares is None else [f'{s:.0%}' for s in shares]
  runs = [
    scores_lib.diverged(outcome)
    for cell, outcome in outcomes.items()
    if (cell.method, cell.length) == (method, length)
  ]
  bad, total = sum(r.sum() for r in runs), sum(r.size for r in runs)
  edge, all_cells = scores_lib.at_the_edge(outcomes, method, length)
  tuned = len(methods_lib.METHODS[method].rates) > 1
  tuned &= methods_lib.METHODS[method].picks
  return (
    f'| {method} | {length} | {" | ".join(shown)} '
    f'| {_shown(scores_lib.solved(outcomes, method, length), ".0%")} '
    f'| {bad} of {total} '
    f'| {f"{edge} of {all_cells}" if tuned else "-"} |'
  )


def _profile(
  outcomes: Outcomes, length: int, taus: np.ndarray
) -> dict[str, np.ndarray]:
  """Of the methods with one score a cell."""
  single = [m for m in methods_of(outcomes) if methods_lib.METHODS[m].picks]
  return scores_lib.profile(outcomes, single, length, taus)


def by_problem(outcomes: Outcomes, baseline: str) -> str:
  """Ratios of each method that is no baseline: a row for each problem."""
  parts = []
  for method in methods_of(outcomes):
    if method in NAMES or not methods_lib.METHODS[method].picks:
      continue
    optimizers = methods_lib.METHODS[method].optimizers
    lengths = lengths_of(outcomes)
    parts.append(f'{method}, {" / ".join(map(str, lengths))} updates:\n')
    parts.append(f'| problem | {" | ".join(optimizers)} |')
    parts.append(f'|---|{"---|" * len(optimizers)}')
    found = {
      (c.problem, c.optimizer, n): f'{v[0]:.3g}'
      for n in lengths
      for c, v in scores_lib.ratios(outcomes, method, baseline, n).items()
    }
    for problem in problems_lib.KINDS:
      if any(key[0] == problem for key in found):
        row = [
          ' / '.join(found.get((problem, o, n), '-') for n in lengths)
          for o in optimizers
        ]
        parts.append(f'| {problem} | {" | ".join(row)} |')
    parts.append('')
  return '\n'.join(parts)


def plot(outcomes: Outcomes, path: pathlib.Path) -> None:
  """Draws the performance profiles, a panel for each length."""
  lengths = lengths_of(outcomes)
  width = 1 + 4 * len(lengths)
  fig = figure.Figure(figsize=(width, 4), layout='constrained')
  panels = fig.subplots(1, len(lengths), sharey=True, squeeze=False)[0]
  for axes, length in zip(panels, lengths, strict=True):
    for method, shares in _profile(outcomes, length, PROFILE).items():
      color = f'C{[*methods_lib.METHODS].index(method) % 10}'
      style = '--' if method in NAMES else '-'
      axes.plot(PROFILE, shares, style, color=color, label=method)
    axes.set(xscale='log', ylim=(0, 1.02), title=f'{length} updates')
    axes.set_xticks([1, 1.1, 1.5, 2, 3, 5], ['1', '1.1', '1.5', '2', '3', '5'])
    axes.minorticks_off()
    axes.set_xlabel('tau')
    axes.grid(True, alpha=0.3)
  panels[0].set_ylabel('share of cells within tau of the best')
  handles, labels = panels[-1].get_legend_handles_labels()
  fig.legend(handles, labels, loc='outside lower center', ncols=5)
  fig.savefig(path, dpi=110)


def main(argv: list[str]) -> None:
  """Prints and writes the tables, and draws the profiles."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--half', choices=problems_lib.HALVES, default='choose')
  parser.add_argument('--csv', type=pathlib.Path, default=None)
  given = parser.parse_args(argv)
  path = given.csv or RESULTS / f'{given.half}.csv'
  outcomes = cells.outcomes(cells.read(path))
  if not outcomes:
    parser.error(f'no finished cells in {path}')
  table = to_markdown(outcomes, given.half)
  print(table, end='')
  path.with_suffix('.md').write_text(table)
  plot(outcomes, path.with_suffix('.png'))


if __name__ == '__main__':
  main(sys.argv[1:])
