"""Writes the files of a run's end: schedule and plot, and the results."""

from collections.abc import Mapping
import math
import pathlib
from typing import Any, NamedTuple

import numpy as np

from metalr_flax.workdir import files
from metalr_flax.workdir import folder
from metalr_flax.workdir import metrics_csv
from metalr_flax.workdir import plots
from metalr_flax.workdir import schedule

# Optimizers as their papers write them.
_SPELLING = {
  'adabelief': 'AdaBelief', 'adadelta': 'Adadelta', 'adagrad': 'AdaGrad',
  'adafactor': 'Adafactor', 'adam': 'Adam', 'adamw': 'AdamW', 'lamb': 'LAMB',
  'lars': 'LARS', 'lion': 'Lion', 'nadam': 'NAdam', 'radam': 'RAdam',
  'rmsprop': 'RMSProp', 'sgd': 'SGD', 'yogi': 'Yogi',
}  # fmt: skip


class Learned(NamedTuple):
  """What a run learned, as its files show it.

  Attributes:
    columns: of `metrics.csv`.
    schedules: content of `schedule.json`.
    picture: of them.
  """

  columns: Mapping[str, np.ndarray]
  schedules: schedule.Schedules
  picture: plots.Picture


def write_learned(
  workdir: pathlib.Path,
  config: Mapping[str, Any],
  initial: Mapping[str, Any],
  evaluation: Mapping[str, float],
  *,
  loss_label: str,
  known_answers: Mapping[str, float],
) -> Learned:
  """Writes `schedule.json` and the plot.

  Args:
    workdir: the run's folder, its `metrics.csv` complete.
    config: the resolved config.
    initial: value of each learned hyperparameter in the first window, by group
      label where there are groups.
    evaluation: final `eval/*` values.
    loss_label: what the loss measures, as the task says it.
    known_answers: lines in the plot, as the task gives them.

  Returns:
    What it made them of, and the picture.
  """
  columns = metrics_csv.read(workdir / folder.METRICS)
  schedules = schedule.make_schedules(
    initial, columns, config['meta']['unroll_length']
  )
  files.write_json(workdir / folder.SCHEDULE, schedules)
  picture = plots.plot_run(
    workdir / folder.PLOT,
    optimizer=spelling(config['inner']['optimizer']),
    schedules=schedules,
    columns=columns,
    evaluation=evaluation,
    loss_label=loss_label,
    known_answers=known_answers,
  )
  return Learned(columns, schedules, picture)


def make_results(
  columns: Mapping[str, np.ndarray],
  evaluation: Mapping[str, float],
) -> dict[str, Any]:
  """The content of `results.json`: the last row and the final evaluation.

  Args:
    columns: of `metrics.csv`.
    evaluation: final `eval/*` values.
  """
  results: dict[str, Any] = {**last_row(columns), **evaluation}
  # JSON has no NaN.
  return {k: v if math.isfinite(v) else None for k, v in results.items()}


def write_results(workdir: pathlib.Path, results: Mapping[str, Any]) -> None:
  """Writes `results.json`: with it a run counts as finished."""
  files.write_json(workdir / folder.RESULTS, results)


def spelling(optimizer: str) -> str:
  """An optimizer's name as its paper writes it."""
  return _SPELLING.get(optimizer, optimizer)


def last_row(columns: Mapping[str, np.ndarray]) -> dict[str, float]:
  """The last outer step's values, its numbers first; no speed, no blanks."""
  if not len(columns['outer_step']):
    return {'outer_step': 0, 'inner_step': 0}
  row = {key: float(values[-1]) for key, values in columns.items()}
  counts = {key: int(row.pop(key)) for key in ('outer_step', 'inner_step')}
  kept = {
    key: value
    for key, value in row.items()
    if not key.startswith(('perf/', 'eval/')) and not np.isnan(value)
  }
  return {**counts, **kept}
