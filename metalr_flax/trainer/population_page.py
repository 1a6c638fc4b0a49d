"""Writes a population's `report.html`: its members, and how they differ."""

from collections.abc import Mapping
import pathlib
from typing import Any

from metalr_flax.config import population as members
from metalr_flax.trainer import run_page
from metalr_flax.workdir import files
from metalr_flax.workdir import fingerprint
from metalr_flax.workdir import folder
from metalr_flax.workdir import page
from metalr_flax.workdir import population_plots
from metalr_flax.workdir import population_report as report_lib
from metalr_flax.workdir import report

_CAPTION = (
  f'Of the members: {population_plots.BANDS}. The loss of a window stands '
  f'below the values that were in use in it. {folder.METRICS} has all.'
)
_MOST = 6  # values at the top of the page


def write(
  workdir: pathlib.Path,
  config: Mapping[str, Any],
  command: str,
  learned: report.Learned,
  results: Mapping[str, Any],
) -> None:
  """Writes the page.

  Args:
    workdir: the run's folder.
    config: the resolved config.
    command: the run's command without its workdir.
    learned: what the members learned, and the picture.
    results: content of `results.json`.
  """
  content = page.make(
    f'Population {workdir.resolve().name}',
    f'{members.count(config)} members, each: {run_page.lead(config)}',
    [
      page.section('At the end', page.numbers(_headline(results))),
      page.section('Over time', page.picture(learned.picture.svg, _CAPTION)),
      page.section('How the members differ', _spread(results)),
      page.section('Members', _members(config, results)),
      *run_page.about(workdir, config, command),
      page.section('Made with', page.versions(fingerprint.versions())),
      page.section('Files beside this one', page.files_list(run_page.FILES)),
    ],
  )
  files.write_bytes(workdir / folder.REPORT, content)


def _headline(results: Mapping[str, Any]) -> dict[str, str]:
  """The few values that a reader looks for first."""
  shown = {'members': f'{len(results[report_lib.MEMBERS])}'}
  if results[report_lib.DIVERGED]:
    shown['of them diverged'] = f'{results[report_lib.DIVERGED]}'
  for key, spread in results[report_lib.SPREAD].items():
    asked = key.startswith(('hyperparams/', 'eval/loss', 'eval/accuracy'))
    if asked and len(shown) < _MOST and spread['mean'] is not None:
      name = key.removeprefix('hyperparams/').replace('_', ' ')
      shown[f'{name}, mean and deviation'] = (
        f'{spread["mean"]:.4g} \N{PLUS-MINUS SIGN} {spread["std"]:.2g}'
      )
  return shown


def _spread(results: Mapping[str, Any]) -> str:
  """Mean, deviation and quantiles of each value at the end."""
  spread = results[report_lib.SPREAD]
  names = list(next(iter(spread.values()), {}))
  heads = {'std': 'deviation', 'low': '10 %', 'high': '90 %'}
  lines: list[list[str | page.Cell]] = [
    [key, *(page.number(found[name]) for name in names)]
    for key, found in spread.items()
  ]
  head = ['value', *(heads.get(name, name) for name in names)]
  return page.table('spread', head, lines)


def _members(config: Mapping[str, Any], results: Mapping[str, Any]) -> str:
  """A row for each member: what it has of its own, and its end."""
  own = [*members.values(config)]
  keys = [*own, *results[report_lib.SPREAD]]
  lines: list[list[str | page.Cell]] = []
  for row in results[report_lib.MEMBERS]:
    diverged = row[report_lib.DIVERGED]
    ended = f'diverged after {row["outer_step"]}' if diverged else 'done'
    cells = [page.number(row.get(key)) for key in keys]
    lines.append([page.number(row['member']), *cells, ended])
  return page.table('members', ['member', *keys, 'how it ended'], lines)
