"""Writes a comparison's `report.html`: its tables, pictures and config."""

from collections.abc import Mapping
import math
import pathlib
import re
from typing import Any

from metalr_flax.comparison import methods as methods_lib
from metalr_flax.comparison import standings as standings_lib
from metalr_flax.comparison import table as table_lib
from metalr_flax.comparison import workdir as workdir_lib
from metalr_flax.workdir import files
from metalr_flax.workdir import fingerprint
from metalr_flax.workdir import folder
from metalr_flax.workdir import page

_FILES = {
  workdir_lib.CSV: 'every run, with its final value',
  workdir_lib.TABLE: 'the tables above',
  workdir_lib.SUMMARY: 'the same as JSON',
  folder.CONFIG: 'the whole config',
}
_RANKED = (
  'geometric_mean',
  'worst',
  'unseen',
  'problems',
  'distinct_runs',
  'diverged',
  'cost',
)
_NUMBER = re.compile(r'[\d.]+(e[+-]\d+)?')
Row = list[str | page.Cell]


def write(
  workdir: pathlib.Path,
  config: Mapping[str, Any],
  command: str,
  parts: list[tuple[standings_lib.Standings, Mapping[str, str]]],
  progress: str,
) -> None:
  """Writes the page.

  Args:
    workdir: the comparison's folder.
    config: the resolved config.
    command: the command without its workdir.
    parts: the standings by each objective, with their pictures by title.
    progress: how many of the cells these are.
  """
  sections = [part for found in parts for part in _sections(*found)]
  content = page.make(
    f'Comparison {workdir.resolve().name}',
    _lead(config, progress),
    [
      *sections,
      page.section(
        'What was run',
        page.paragraph(', '.join(config['methods'])),
        page.folded(f'The whole config ({folder.CONFIG})',
                    page.json_text(config)),
      ),
      page.run_again(workdir, command, _MORE),
      page.section('Made with', page.versions(fingerprint.versions())),
      page.section('Files beside this one', page.files_list(_FILES)),
    ],
  )  # fmt: skip
  files.write_bytes(workdir / folder.REPORT, content)


_MORE = (
  'finished cells are not trained again; --config.only= and '
  '--config.methods= may change'
)


def _lead(config: Mapping[str, Any], progress: str) -> str:
  return (
    f'self_tuning and {len(config["methods"]) - 1} other methods on '
    f'{len(config["problems"])} problems with '
    f'{", ".join(config["optimizers"])}; {config["num_seeds"]} seeds from '
    f'{config["seed"]}; {progress}.'
  )


def _sections(
  standings: standings_lib.Standings, pictures: Mapping[str, str]
) -> list[str]:
  """What there is of one objective."""
  words = table_lib.words_of(standings)
  name = 'unseen_' if standings.unseen else ''
  sections = [
    page.section(
      words.title,
      page.numbers(_headline(standings)),
      _methods(standings, f'{name}methods'),
      page.paragraph(table_lib.notes_of(standings).replace('`', '')),
    ),
    page.section(
      'self_tuning against each other method',
      page.paragraph(table_lib.AGAINST),
      _against(standings, f'{name}against'),
    ),
    page.section(
      'Ranking',
      page.paragraph(table_lib.ranking_notes(standings)),
      _ranking(standings, f'{name}ranking'),
    ),
  ]
  drawn = [page.section(t, page.picture(svg)) for t, svg in pictures.items()]
  return [*sections, *drawn]


def _headline(standings: standings_lib.Standings) -> dict[str, str]:
  """How often `self_tuning` keeps up, and how badly it ends at worst."""
  ratios = [
    ratio
    for pair in standings.pairs
    for ratio in standings.distinct_ratios(*pair, methods_lib.SUBJECT)
  ]
  share = standings_lib.share_won(ratios)
  if share is None:
    return {}
  baseline = table_lib.words_of(standings).baseline
  _, runs, bad = standings.counts()[methods_lib.SUBJECT]
  return {
    f'level with {baseline} or better': f'{share:.0%} of {len(ratios)}',
    'geometric mean of its ratio': table_lib.ratio_text(
      standings_lib.geometric_mean(ratios)
    ),
    'worst ratio': table_lib.ratio_text(max(ratios)),
    'diverged runs': f'{bad} of {runs}',
  }


def _methods(standings: standings_lib.Standings, name: str) -> str:
  """A row for each method on each problem; cells of numbers are sorted so."""
  rows: list[Row] = []
  for problem, optimizer in standings.panels:
    for outcome in standings.contestants(problem, optimizer):
      texts = table_lib.make_row(standings, outcome)
      cells: Row = [problem, outcome.cell.optimizer or '-']
      rows.append([*cells, *map(_sortable, table_lib.ROW, texts)])
  titles = ['problem', 'optimizer', *table_lib.ROW]
  return page.table(name, *table_lib.known(standings, titles, rows))


def _sortable(title: str, text: str) -> str | page.Cell:
  """A cell of the table; one of a number is sorted by it."""
  if title == 'method':
    return text
  number = _NUMBER.search(text)
  return page.Cell(text, float(number[0]) if number else math.inf)


def _against(standings: standings_lib.Standings, name: str) -> str:
  rows: list[Row] = [
    [table_lib.whom(standings, method), page.number(mean)]
    for method, mean in standings.means_against().items()
    if not math.isnan(mean)
  ]
  return page.table(name, ['against', 'ratio'], rows)


def _ranking(standings: standings_lib.Standings, name: str) -> str:
  rows: list[Row] = [
    [
      row['method'],
      *(page.number(row[key]) for key in _RANKED),
    ]
    for row in standings.ranking()
  ]
  titles = ['method', *(key.replace('_', ' ') for key in _RANKED)]
  return page.table(name, *table_lib.known(standings, titles, rows))
