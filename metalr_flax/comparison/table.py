"""Makes the standings into a CSV file and Markdown tables of 100 columns."""

from collections.abc import Iterable, Sequence
import csv
import io
import math
import textwrap
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
  'repeats',  # the learning rate of which this is the run, too
  'unseen',  # the loss on unseen data beside a training objective
)
# Of a comparison with problems of unseen data; `final` is their test loss then.
UNSEEN_COLUMNS = ('weight_decay', 'held_out', 'stop')
WIDTH = 100  # of a terminal that the tables fit
BESIDE = 'unseen'  # the column of the loss on unseen data beside an objective
ROW = (
  'method',
  'rate',
  'loss',
  '+-',
  'ratio',
  'worst',
  BESIDE,
  'runs',
  'diverged',
)
RANKED = (
  'method',
  'mean',
  'worst',
  BESIDE,
  'problems',
  'runs',
  'diverged',
  'cost',
)


class Words(NamedTuple):
  """How the tables call what is compared.

  Attributes:
    title: of the whole.
    best: what precedes the name of a grid's chosen setting.
    setting: the setting itself.
    loss: what that column is, a format of the loss's name.
    baseline: what `self_tuning` is held to.
    edge: what a `*` says.
  """

  title: str
  best: str
  setting: str
  loss: str
  baseline: str
  edge: str


TRAINING = Words(
  title='Comparison',
  best='best',
  setting='best rate',
  loss='final training objective, mean over the seeds, and its standard '
  'deviation in percent',
  baseline='the best constant rate',
  edge='the best rate is at the edge of the grid',
)
UNSEEN = Words(
  title='Comparison by the loss on unseen data',
  best='picked',
  setting='picked setting',
  loss='loss on unseen data, {}: the test loss where the held-out loss was '
  'least along the run, mean over the seeds, and its standard deviation in '
  'percent; settings are picked by held-out loss',
  baseline='the picked constant',
  edge='the picked rate or weight decay is at the edge of the grid',
)


CUT = f'cut to [{1 / standings_lib.CAP:g}, {standings_lib.CAP:g}]'
AGAINST = (
  f'Geometric mean of its ratio over all distinct runs of its starts, each '
  f'{CUT}; below 1 self_tuning is better:'
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
    _repeated(outcome, i),
    '' if outcome.test is None else float(outcome.test.finals[i, s]),
  ]


def _repeated(outcome: outcomes.Outcome, i: int) -> float | str:
  first = outcome.repeats[i]
  return '' if first == i else outcome.cell.learning_rates[first]


def _unseen_values(outcome: outcomes.Outcome, i: int, s: int) -> list[Any]:
  """A run's values of `UNSEEN_COLUMNS`, empty where it has none."""
  decays, held_out = outcome.cell.weight_decays, outcome.held_out
  decay = decays[i] if decays else ''
  if held_out is None:
    return [decay, '', '']
  return [decay, float(held_out.losses[i, s]), int(held_out.stops[i, s])]


def make_table(standings: standings_lib.Standings) -> str:
  """The comparison in Markdown, at most `WIDTH` columns wide."""
  parts = [
    f'# {words_of(standings).title}',
    *(_section(standings, *panel) for panel in standings.panels),
    _fill(notes_of(standings)),
    _overall(standings),
    _ranking(standings),
  ]
  return '\n\n'.join(part for part in parts if part) + '\n'


def words_of(standings: standings_lib.Standings) -> Words:
  """The words for what these are of."""
  return UNSEEN if standings.unseen else TRAINING


def _section(
  standings: standings_lib.Standings, problem: str, optimizer: str
) -> str:
  """A problem with an optimizer: a row for each method."""
  title = ', '.join(filter(None, (problem, optimizer)))
  rows = [
    make_row(standings, outcome)
    for outcome in standings.contestants(problem, optimizer)
  ]
  return f'## {title}\n\n{lay_out(*known(standings, ROW, rows))}'


def known(
  standings: standings_lib.Standings,
  titles: Sequence[str],
  rows: Iterable[Sequence[Any]],
) -> tuple[Sequence[str], Sequence[Sequence[Any]]]:
  """A table without the column of what no cell has beside its objective."""
  columns = zip(titles, *rows, strict=True)
  kept = [c for c in columns if c[0] != BESIDE or standings.has_test]
  found = list(zip(*kept, strict=True))
  return found[0], found[1:]


def make_row(
  standings: standings_lib.Standings, outcome: outcomes.Outcome
) -> list[str]:
  """A cell's values of `ROW`: of its best, its picked or its median start."""
  ratios, at = standings.distinct_of(outcome), outcome.shown
  ratio = standings.ratio_to(standings.rival_of(outcome.cell), outcome, at)
  tested = outcome.test_scores
  return [
    outcome.cell.method,
    _setting_text(outcome),
    loss_text(outcome.scores[at]),
    _spread_text(outcome, at),
    '-' if ratio is None else ratio_text(ratio),
    ratio_text(max(ratios)) if ratios and _has_starts(outcome) else '-',
    '-' if tested is None else loss_text(tested[at]),
    _runs_text(outcome.num_distinct, outcome.diverged.size),
    str(int(outcome.diverged[outcome.distinct].sum())),
  ]


def _has_starts(outcome: outcomes.Outcome) -> bool:
  return outcome.cell.kind is methods_lib.Kind.STARTS


def _setting_text(outcome: outcomes.Outcome) -> str:
  """A grid's chosen setting, `*` at its edge; how many starts others have."""
  cell, at = outcome.cell, outcome.picked
  if _has_starts(outcome):
    return f'{len(cell.learning_rates)} starts'
  if cell.kind is not methods_lib.Kind.GRID:
    return '-'
  decay = f', {cell.weight_decays[at]:.3g}' if cell.weight_decays else ''
  edge = '*' if standings_lib.at_the_edge(cell, at) else ''
  return f'{cell.learning_rates[at]:.3g}{decay}{edge}'


def loss_text(loss: float) -> str:
  """A loss in at most eight letters, or that it diverged."""
  if not math.isfinite(loss):
    return 'diverged'
  text = f'{loss:.4g}'
  return text if len(text) <= 8 else f'{loss:.2e}'


def _spread_text(outcome: outcomes.Outcome, at: int) -> str:
  """The standard deviation over the seeds, in percent of the mean."""
  mean = outcome.scores[at]
  if outcome.cell.num_seeds < 2 or not math.isfinite(mean) or not mean:
    return '-'
  percent = 100 * outcome.finals[at].std() / abs(mean)
  return f'{percent:.0f}%' if percent < 1000 else '>999%'


def ratio_text(ratio: float) -> str:
  """A ratio cut as means and worst cases take it; it says where it was."""
  if ratio >= standings_lib.CAP:
    return f'>={standings_lib.CAP:g}'
  if ratio <= 1 / standings_lib.CAP:
    return f'<={1 / standings_lib.CAP:g}'
  return f'{ratio:.3g}'


def _runs_text(distinct: int, runs: int) -> str:
  """How many runs differ, of how many where some do not."""
  return str(runs) if distinct == runs else f'{distinct}/{runs}'


def lay_out(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """A Markdown table in columns of even width, at most `WIDTH` in all.

  Args:
    titles: of the columns.
    rows: their values; those of the first column are shortened where they
      would take too much room, all others stand at the right.
  """
  table = [[*titles], *map(list, rows)]
  others = [
    max(map(len, column)) for column in list(zip(*table, strict=True))[1:]
  ]
  room = WIDTH - 4 - sum(width + 3 for width in others)
  table = [[_shorten(first, room), *rest] for first, *rest in table]
  first = max(len(row[0]) for row in table)
  rule = ['-' * first, *('-' * (width - 1) + ':' for width in others)]
  lines = [
    ' | '.join([row[0].ljust(first), *map(str.rjust, row[1:], others)])
    for row in (table[0], rule, *table[1:])
  ]
  return '\n'.join(f'| {line} |' for line in lines)


def _shorten(text: str, room: int) -> str:
  return text if len(text) <= room else f'{text[: room - 3]}...'


def _fill(text: str) -> str:
  """Lines of at most `WIDTH` columns; an item of a list goes on indented."""
  indent = '  ' if text.startswith('- ') else ''
  return textwrap.fill(
    text, WIDTH, subsequent_indent=indent, break_long_words=False
  )


def notes_of(standings: standings_lib.Standings) -> str:
  """What the numbers of the problems' tables are."""
  words = words_of(standings)
  labels = dict.fromkeys(map(standings.loss_label, standings.problems))
  measured = ' or '.join(filter(None, labels))
  notes = [
    f'rate: the {words.setting} of a grid, `*` where {words.edge}.',
    f'loss, +-: {words.loss.format(measured)}; of starts that of the median '
    f'one.',
    f'ratio: the loss over that of {words.baseline} of the same optimizer (of '
    f'{standings.reference} for methods with an optimizer of their own); '
    f'worst: that of the worst start.',
    f'A loss is infinite where a seed diverged; ratios are {CUT}.',
    'runs: those that differ, of all rates and seeds; a method may make the '
    'same run of several starts.',
  ]
  if standings.has_test:
    notes.insert(
      3,
      f'{BESIDE}: the loss on unseen data of the same runs, {measured}; it '
      f'picks nothing.',
    )
  return ' '.join(notes)


def _overall(standings: standings_lib.Standings) -> str:
  by_pair = [
    standings.distinct_ratios(*pair, methods_lib.SUBJECT)
    for pair in standings.pairs
  ]
  ratios = [ratio for found in by_pair for ratio in found]
  won = [max(found) <= standings_lib.TIE for found in by_pair if found]
  lines = ['## self_tuning', '']
  share = standings_lib.share_won(ratios)
  if share is not None:
    lines += [
      f'- level with {words_of(standings).baseline} or better (ratio <= '
      f'{standings_lib.TIE}): {share:.0%} of {len(ratios)} (problem, '
      f'optimizer, start), starts of the same run counted once',
      f'- from every start: {sum(won)} of {len(won)} (problem, optimizer)',
      f'- worst ratio to it: {ratio_text(max(ratios))}',
    ]
  for method, (_, runs, bad) in standings.counts().items():
    if bad or method == methods_lib.SUBJECT:
      lines.append(f'- diverged runs of {method}: {bad} of {runs}')
  lines = [_fill(line) for line in lines]
  means = standings.means_against()
  found = {name: mean for name, mean in means.items() if not math.isnan(mean)}
  if found:
    rows = [
      [whom(standings, name), ratio_text(mean)] for name, mean in found.items()
    ]
    lines += ['', _fill(AGAINST), '', lay_out(('against', 'ratio'), rows)]
  return '\n'.join(lines) if len(lines) > 2 else ''


def _ranking(standings: standings_lib.Standings) -> str:
  rows = [
    [
      row['method'],
      ratio_text(row['geometric_mean']),
      ratio_text(row['worst']),
      '-' if math.isnan(row['unseen']) else ratio_text(row['unseen']),
      str(row['problems']),
      _runs_text(row['distinct_runs'], row['runs']),
      str(row['diverged']),
      f'{row["cost"]:g}',
    ]
    for row in standings.ranking()
  ]
  if not rows:
    return ''
  notes = _fill(ranking_notes(standings))
  return f'## Ranking\n\n{notes}\n\n{lay_out(*known(standings, RANKED, rows))}'


def ranking_notes(standings: standings_lib.Standings) -> str:
  """What the numbers of the ranking are."""
  words = words_of(standings)
  beside = f'{BESIDE}: the same mean of the losses on unseen data. '
  return (
    f'Loss over that of {words.baseline} of {standings.reference}: geometric '
    f'mean over the problems and the worst of them, both of ratios {CUT}. '
    f'{beside if standings.has_test else ""}'
    f'runs: those that differ, over all rates, starts and seeds. Cost: '
    f"gradient evaluations an update, of a {words.setting} the whole grid's."
  )


def whom(standings: standings_lib.Standings, method: str) -> str:
  """How the table calls the method that `self_tuning` is compared with."""
  return {
    methods_lib.Kind.GRID: f'{words_of(standings).best} {method}',
    methods_lib.Kind.STARTS: f'{method} from the same start',
    methods_lib.Kind.WRAPPER: f'{method} of the same optimizer',
    methods_lib.Kind.WHOLE: f'{method} (by self_tuning {standings.reference})',
  }[methods_lib.METHODS[method].kind]
