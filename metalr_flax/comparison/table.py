"""Makes the standings into a CSV file and into a Markdown table."""

from collections.abc import Iterable
import csv
import io
import math
from typing import Any, NamedTuple

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
# Of a comparison with problems of unseen data; `final` is their test loss then.
UNSEEN_COLUMNS = ('weight_decay', 'held_out', 'stop')


class Words(NamedTuple):
  """How the tables call what is compared.

  Attributes:
    title: of the whole.
    best: what precedes the name of a grid's chosen setting.
    chosen: the column of it.
    setting: the setting itself.
    final: what the numbers are.
    baseline: what `self_tuning` is held to.
    over: of what the ranking's ratios are, a format of the optimizer's name.
  """

  title: str
  best: str
  chosen: str
  setting: str
  final: str
  baseline: str
  over: str


TRAINING = Words(
  title='Comparison',
  best='best',
  chosen='rate, final',
  setting='best rate',
  final='Final: mean +- standard deviation over the seeds.',
  baseline='the best constant rate',
  over='Final over the best constant {} final',
)
UNSEEN = Words(
  title='Comparison by the loss on unseen data',
  best='picked',
  chosen='rate, weight decay if any: loss on unseen data',
  setting='picked setting',
  final='Loss on unseen data, {}: the test loss where the held-out loss was '
  'least along the run, mean +- standard deviation over the seeds. Settings '
  'are picked by held-out loss.',
  baseline='the picked constant',
  over='Loss on unseen data over that of the picked constant {}',
)


AGAINST = (
  f'Geometric mean of its ratio over all starts, each cut to '
  f'[1/{standings_lib.CAP:g}, {standings_lib.CAP:g}]; below 1 self_tuning is '
  f'better:'
)


def make_csv(finished: Iterable[outcomes.Outcome]) -> str:
  """A row for each run, floats written so that they read back exactly."""
  file, finished = io.StringIO(), list(finished)
  unseen = any(outcome.held_out is not None for outcome in finished)
  writer = csv.writer(file, lineterminator='\n')
  writer.writerow([*COLUMNS, *(UNSEEN_COLUMNS if unseen else ())])
  for outcome in finished:
    for i in range(len(outcome.finals)):
      for s in range(outcome.cell.num_seeds):
        more = _unseen_values(outcome, i, s) if unseen else []
        writer.writerow([*_values(outcome, i, s), *more])
  return file.getvalue()


def _values(outcome: outcomes.Outcome, i: int, s: int) -> list[Any]:
  """A run's values of `COLUMNS`."""
  cell = outcome.cell
  return [
    cell.problem,
    cell.optimizer,
    cell.method,
    cell.learning_rates[i] if cell.learning_rates else '',
    outcome.first_seed + s,
    float(outcome.finals[i, s]),
    bool(outcome.diverged[i, s]),
    cell.num_steps,
    cell.gradient_evaluations,
  ]


def _unseen_values(outcome: outcomes.Outcome, i: int, s: int) -> list[Any]:
  """A run's values of `UNSEEN_COLUMNS`, empty where it has none."""
  decays, held_out = outcome.cell.weight_decays, outcome.held_out
  decay = decays[i] if decays else ''
  if held_out is None:
    return [decay, '', '']
  return [decay, float(held_out.losses[i, s]), int(held_out.stops[i, s])]


def make_table(standings: standings_lib.Standings) -> str:
  """The comparison in Markdown."""
  parts = [
    f'# {words_of(standings).title}',
    _pairs(standings),
    _overall(standings),
    _ranking(standings),
  ]
  return '\n\n'.join(part for part in parts if part) + '\n'


def words_of(standings: standings_lib.Standings) -> Words:
  """The words for what these are of."""
  return UNSEEN if standings.unseen else TRAINING


def _pairs(standings: standings_lib.Standings) -> str:
  grids = methods_lib.of_kind(methods_lib.Kind.GRID)
  starts = methods_lib.of_kind(methods_lib.Kind.STARTS)
  titles = pair_titles(standings)
  lines = [f'| {" | ".join(titles)} |', '|---' * len(titles) + '|']
  for pair in standings.pairs:
    values = [
      *pair,
      *(best_text(standings.best(*pair, grid)) for grid in grids),
      *(spread_text(standings.ratios(*pair, start)) for start in starts),
    ]
    lines.append(f'| {" | ".join(values)} |')
  return '\n'.join([*lines, '', notes_of(standings)])


def pair_titles(standings: standings_lib.Standings) -> list[str]:
  """The heads of the table of problems with their optimizers."""
  words = words_of(standings)
  grids = methods_lib.of_kind(methods_lib.Kind.GRID)
  titles = [
    'problem',
    'optimizer',
    *(f'{words.best} {grid}' for grid in grids),
    *methods_lib.of_kind(methods_lib.Kind.STARTS),
  ]
  titles[2] += f': {words.chosen}'
  titles[2 + len(grids)] += ': worst / median / best'
  return titles


def notes_of(standings: standings_lib.Standings) -> str:
  """What the numbers of that table are."""
  starts = methods_lib.of_kind(methods_lib.Kind.STARTS)
  if not standings.unseen:
    return (
      f'{TRAINING.final} The columns {" and ".join(starts)} are ratios to the '
      f'best constant final over all initial rates; inf: a seed diverged. `*`: '
      f'the best rate is at the edge of the grid.'
    )
  labels = dict.fromkeys(map(standings.loss_label, standings.problems))
  return (
    f'{UNSEEN.final.format(" or ".join(labels))} The columns '
    f'{" and ".join(starts)} are ratios to that of the picked constant over '
    f'all initial rates; inf: a seed diverged. `*`: the picked rate or weight '
    f'decay is at the edge of the grid.'
  )


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
      f'- level with {words_of(standings).baseline} or better (ratio <= '
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
      AGAINST,
      '',
      '| against | ratio |',
      '|---|---|',
      *(f'| {whom(standings, name)} | {v:.3g} |' for name, v in found.items()),
    ]
  return '\n'.join(lines) if len(lines) > 2 else ''


def _ranking(standings: standings_lib.Standings) -> str:
  rows = standings.ranking()
  if not rows:
    return ''
  lines = [
    '## Ranking',
    '',
    ranking_notes(standings),
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


def ranking_notes(standings: standings_lib.Standings) -> str:
  """What the numbers of the ranking are."""
  words = words_of(standings)
  return (
    f'{words.over.format(standings.reference)}: geometric mean '
    f'over the problems, cut as above. Cost: gradient evaluations an update, '
    f"of a {words.setting} the whole grid's."
  )


def whom(standings: standings_lib.Standings, method: str) -> str:
  """How the table calls the method that `self_tuning` is compared with."""
  return {
    methods_lib.Kind.GRID: f'{words_of(standings).best} {method}',
    methods_lib.Kind.STARTS: f'{method} from the same start',
    methods_lib.Kind.WRAPPER: f'{method} of the same optimizer',
    methods_lib.Kind.WHOLE: f'{method} (by self_tuning {standings.reference})',
  }[methods_lib.METHODS[method].kind]


def best_text(best: standings_lib.Best | None) -> str:
  """A grid's chosen setting and its score, with a `*` at the grid's edge."""
  if best is None:
    return '-'
  if math.isinf(best.score):
    return 'all diverged'
  edge = '*' if best.at_the_edge else ''
  score = f'{best.score:.4g} +- {best.std:.2g}'
  if best.held_out is None:
    return f'{best.learning_rate:g}{edge}, {score}'
  decay = '' if best.weight_decay is None else f', {best.weight_decay:g}'
  return f'{best.learning_rate:g}{decay}{edge}: {score}'


def spread_text(ratios: list[float]) -> str:
  """The worst, the median and the best of ratios."""
  if not ratios:
    return '-'
  middle = standings_lib.median(ratios)
  return f'{max(ratios):.3g} / {middle:.3g} / {min(ratios):.3g}'
