"""Writes a run's `report.html`: what was run and what it gave."""

from collections.abc import Mapping
import json
import pathlib
from typing import Any

import numpy as np

from metalr_flax.config import schema
from metalr_flax.workdir import files
from metalr_flax.workdir import fingerprint
from metalr_flax.workdir import folder
from metalr_flax.workdir import page
from metalr_flax.workdir import plots
from metalr_flax.workdir import report

_PARTS = 4  # of the table over time
FILES = {
  folder.METRICS: 'every window: its losses, and the learned values after it',
  folder.SCHEDULE: 'the learned values as each update used them, for '
  'metalr_flax.load_schedule',
  folder.RESULTS: 'the values at the end',
  folder.PLOT: 'the picture above',
  folder.CONFIG: 'the whole config',
}
_MEANINGS = {
  'outer_step': 'windows trained',
  'inner_step': 'updates of the model',
  'train/loss': "mean of the last window's losses, each before its update",
  'meta/loss': 'outer loss of the last window, which eta is to lower',
  'meta/grad_norm': 'norm of the last meta-gradient',
  'meta/rejected': 'windows rejected, in which training exploded',
}
_SECTIONS = {
  'hyperparams/': 'learned value that a next window would use',
  'train/': "of the last window's batches",
  'params/': "the model's own",
  'best/': 'of the best evaluation, whose checkpoint is kept',
  'eval/': 'on the evaluation data, with the final parameters',
}


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
    learned: the run's columns, schedules and picture.
    results: content of `results.json`.
  """
  content = page.make(
    f'Run {workdir.resolve().name}',
    lead(config),
    [
      page.section('At the end', page.numbers(_headline(learned, results))),
      page.section(
        'Over time', page.picture(learned.picture.svg, _CAPTION),
        page.folded('The same in numbers', _over_time(learned)),
      ),
      page.section('Final values', _final_values(results)),
      *about(workdir, config, command),
      page.section('Made with', page.versions(fingerprint.versions())),
      page.section('Files beside this one', page.files_list(FILES)),
    ],
  )  # fmt: skip
  files.write_bytes(workdir / folder.REPORT, content)


def about(
  workdir: pathlib.Path, config: Mapping[str, Any], command: str
) -> list[str]:
  """The parts that say what was run, and how to run it again."""
  return [
    page.section('What was run', *_config(config)),
    page.run_again(workdir, command, _MORE),
  ]


_MORE = (
  'a larger --config.num_outer_steps= goes on from the end of this run; no '
  'other field may differ, but how often something is written'
)
_CAPTION = (
  'The loss of a window stands below the values that were in use in it. Of a '
  f'long curve {plots.MOST_POINTS:,} points are drawn, its extremes among '
  f'them; {folder.METRICS} has all.'
)


def lead(config: Mapping[str, Any]) -> str:
  """The run in one sentence."""
  task, model, meta = config['task'], config['model'], config['meta']
  learned = ', '.join(meta['learned']) or 'nothing'
  return (
    f'{model["name"]} on {task["name"]}, trained with '
    f'{config["inner"]["optimizer"]}; learned: {learned} (estimator '
    f'{meta["estimator"]}); {config["num_outer_steps"]:,} windows of '
    f'{meta["unroll_length"]:,} updates; seed {config["seed"]}.'
  )


def _headline(
  learned: report.Learned, results: Mapping[str, Any]
) -> dict[str, str]:
  """The few values that a reader looks for first."""
  shown = {
    name.replace('_', ' '): schedule['value'][-1]
    for name, schedule in list(learned.schedules.items())[:4]
  }
  for key, name in (
    ('eval/loss', 'evaluation loss'),
    ('eval/accuracy', 'accuracy'),
  ):
    if results.get(key) is not None:
      shown[name] = results[key]
  losses = learned.columns['train/loss']
  if len(losses):
    shown['training loss'] = plots.running_mean(losses)[-1]
  return {name: f'{value:.4g}' for name, value in shown.items()}


def _over_time(learned: report.Learned) -> str:
  """The learned values, and means of the losses, at a few moments."""
  ends = learned.columns['inner_step']
  rows = np.linspace(0, len(ends), _PARTS + 1).round().astype(int)
  updates = [int(ends[row - 1]) if row else 0 for row in rows]
  lines: list[list[str | page.Cell]] = [
    [name, *(page.number(schedule['value'][row]) for row in rows)]
    for name, schedule in learned.schedules.items()
  ]
  for key, name in (
    ('train/loss', 'training loss'),
    ('meta/loss', 'outer loss'),
  ):
    means = plots.running_mean(learned.columns.get(key, np.array([])))
    if np.any(np.isfinite(means)):
      found = (page.number(means[row - 1] if row else None) for row in rows)
      lines.append([name, *found])
  return page.table(
    'over_time', ['after updates:', *(f'{n:,}' for n in updates)], lines
  )


def _final_values(results: Mapping[str, Any]) -> str:
  lines: list[list[str | page.Cell]] = [
    [key, page.number(value), _meaning(key)] for key, value in results.items()
  ]
  return page.table('final', ['value', 'at the end', 'what it is'], lines)


def _meaning(key: str) -> str:
  found = (text for start, text in _SECTIONS.items() if key.startswith(start))
  return _MEANINGS.get(key) or next(found, '')


def _config(config: Mapping[str, Any]) -> list[str]:
  """The fields that differ from their defaults, and the whole config."""
  rows = []
  for name, field in schema.FIELDS.items():
    section, _, key = name.rpartition('.')
    holder = config[section] if section else config
    value = holder.get(key, field.default)
    if value != field.default:
      default = '-' if field.default is None else _text(field.default)
      rows.append([name, _text(value), default, field.meaning])
  return [
    page.table('config', ['field', 'value', 'default', 'what it is'], rows),
    page.paragraph('Every other field has its default.'),
    page.folded(f'The whole config ({folder.CONFIG})', page.json_text(config)),
  ]


def _text(value: Any) -> str:
  return value if isinstance(value, str) and value else json.dumps(value)
