"""Makes the standings into a CSV file and into a Markdown table."""

from collections.abc import Iterable
import csv
import io
import math

from metalr_flax.comparison import methods as methods_lib
from metalr_flax.comparison import outcomes
from metalr_flax.comparison import standings as standings_lib

COLUMNS = (
  'problem',
  'optimizer',
  'method',
  'learning_rate',
  'seed',
  'final',
  'diverged',
  'steps',
  'gradient_evaluations',
)


def make_csv(finished: Iterable[outcomes.Outcome]) -> str:
  """A row for each run, floats written so that they read back exactly."""
  file = io.StringIO()
  writer = csv.writer(file, lineterminator='\n')
  writer.writerow(COLUMNS)
  for outcome in finished:
    cell = outcome.cell
    for i, rate in enumerate(cell.learning_rates or ('',)):
      for s in range(cell.num_seeds):
        writer.writerow(
          [
            cell.problem,
            cell.optimizer,
            cell.method,
            rate,
            outcome.first_seed + s,
            float(outcome.finals[i, s]),
            bool(outcome.diverged[i, s]),
            cell.num_steps,
            cell.gradient_evaluations,
          ]
        )
  return file.getvalue()


def make_table(standings: standings_lib.Standings) -> str:
  """The comparison in Markdown."""
  parts = [
    '# Comparison',
    _pairs(standings),
    _overall(standings),
    _ranking(standings),
  ]
  return '\n\n'.join(part for part in parts if part) + '\n'


def _pairs(standings: standings_lib.Standings) -> str:
  grids = methods_lib.of_kind(methods_lib.Kind.GRID)
  starts = methods_lib.of_kind(methods_lib.Kind.STARTS)
  titles = [
    'problem',
    'optimizer',
    *(f'best {grid}' for grid in grids),
    *starts,
  ]
  titles[2] += ': rate, final'
  titles[2 + len(grids)] += ': worst / median / best'
  lines = [f'| {" | ".join(titles)} |', '|---' * len(titles) + '|']
  for pair in standings.pairs:
    values = [
      *pair,
      *(_best(standings.best(*pair, grid)) for grid in grids),
      *(_spread(standings.ratios(*pair, start)) for start in starts),
    ]
    lines.append(f'| {" | ".join(values)} |')
  notes = (
    f'Final: mean +- standard deviation over the seeds. The columns '
    f'{" and ".join(starts)} are ratios to the best constant final over all '
    f'initial rates; inf: a seed diverged. `*`: the best rate is at the edge '
    f'of the grid.'
  )
  return '\n'.join([*lines, '', notes])


def _overall(standings: standings_lib.Standings) -> str:
  by_pair = [
    standings.ratios(*pair, methods_lib.SUBJECT) for pair in standings.pairs
  ]
  ratios = [ratio for found in by_pair for ratio in found]
  won = [max(found) <= standings_lib.TIE for found in by_pair if found]
  lines = ['## self_tuning', '']
  share = standings_lib.share_won(ratios)
  if share is not None:
    lines += [
      f'- level with the best constant rate or better (ratio <= '
      f'{standings_lib.TIE}): {share:.0%} of {len(ratios)} (problem, '
      f'optimizer, start)',
      f'- from every start: {sum(won)} of {len(won)} (problem, optimizer). The '
      f'starts are no tests of their own: those above 1e-5 begin at 1e-5',
      f'- worst ratio to it: {max(ratios):.4g}',
    ]
  for method, (bad, runs) in standings.diverged().items():
    if bad or method == methods_lib.SUBJECT:
      lines.append(f'- diverged runs of {method}: {bad} of {runs}')
  means = standings.means_against()
  found = {name: mean for name, mean in means.items() if not math.isnan(mean)}
  if found:
    lines += [
      '',
      f'Geometric mean of its ratio over all starts, each cut to '
      f'[1/{standings_lib.CAP:g}, {standings_lib.CAP:g}]; below 1 self_tuning '
      f'is better:',
      '',
      '| against | ratio |',
      '|---|---|',
      *(f'| {_whom(standings, name)} | {v:.3g} |' for name, v in found.items()),
    ]
  return '\n'.join(lines) if len(lines) > 2 else ''


def _ranking(standings: standings_lib.Standings) -> str:
  rows = standings.ranking()
  if not rows:
    return ''
  lines = [
    '## Ranking',
    '',
    f'Final over the best constant {standings.reference} final: geometric mean '
    f'over the problems, cut as above. Cost: gradient evaluations an update, '
    f"of a best rate the whole grid's.",
    '',
    '| method | geometric mean | worst | problems | cost |',
    '|---|---|---|---|---|',
  ]
  for row in rows:
    lines.append(
      f'| {row["method"]} | {row["geometric_mean"]:.3g} | {row["worst"]:.3g} | '
      f'{row["problems"]} | {row["cost"]:g} |'
    )
  return '\n'.join(lines)


def _whom(standings: standings_lib.Standings, method: str) -> str:
  """How the table calls the method that `self_tuning` is compared with."""
  return {
    methods_lib.Kind.GRID: f'best {method}',
    methods_lib.Kind.STARTS: f'{method} from the same start',
    methods_lib.Kind.WRAPPER: f'{method} of the same optimizer',
    methods_lib.Kind.WHOLE: f'{method} (by self_tuning {standings.reference})',
  }[methods_lib.METHODS[method].kind]


def _best(best: standings_lib.Best | None) -> str:
  if best is None:
    return '-'
  if math.isinf(best.score):
    return 'all diverged'
  edge = '*' if best.at_the_edge else ''
  return f'{best.learning_rate:g}{edge}, {best.score:.4g} +- {best.std:.2g}'


def _spread(ratios: list[float]) -> str:
  if not ratios:
    return '-'
  middle = standings_lib.median(ratios)
  return f'{max(ratios):.3g} / {middle:.3g} / {min(ratios):.3g}'
