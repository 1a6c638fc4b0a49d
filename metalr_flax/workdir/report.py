"""Writes the files of a run's end: results, schedule and plot."""

from collections.abc import Mapping
import math
import pathlib
from typing import Any

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


def write_learned(
  workdir: pathlib.Path,
  config: Mapping[str, Any],
  initial: Mapping[str, Any],
  evaluation: Mapping[str, float],
  *,
  loss_label: str,
  known_answers: Mapping[str, float],
) -> tuple[Mapping[str, np.ndarray], np.ndarray]:
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
    The columns of `metrics.csv` and the picture, uint8 [height, width, 4].
  """
  columns = metrics_csv.read(workdir / folder.METRICS)
  schedules = schedule.make_schedules(
    initial, columns, config['meta']['unroll_length']
  )
  files.write_json(workdir / folder.SCHEDULE, schedules)
  optimizer = config['inner']['optimizer']
  picture = plots.plot_run(
    workdir / folder.PLOT,
    optimizer=_SPELLING.get(optimizer, optimizer),
    schedules=schedules,
    columns=columns,
    evaluation=evaluation,
    loss_label=loss_label,
    known_answers=known_answers,
  )
  return columns, picture


def write_results(
  workdir: pathlib.Path,
  columns: Mapping[str, np.ndarray],
  evaluation: Mapping[str, float],
) -> dict[str, Any]:
  """Writes `results.json`.

  Args:
    workdir: the run's folder.
    columns: of `metrics.csv`.
    evaluation: final `eval/*` values.

  Returns:
    Its content.
  """
  results: dict[str, Any] = {**_last_row(columns), **evaluation}
  # JSON has no NaN.
  results = {k: v if math.isfinite(v) else None for k, v in results.items()}
  files.write_json(workdir / folder.RESULTS, results)
  return results


def _last_row(columns: Mapping[str, np.ndarray]) -> dict[str, float]:
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
