"""Writes the files of a population's end: schedules, plot, results.

Shape legend: M members, T outer steps of those that went furthest.
"""

from collections.abc import Mapping
import math
import pathlib
from typing import Any

import numpy as np

from metalr_flax.config import population as members
from metalr_flax.engine import population
from metalr_flax.workdir import files
from metalr_flax.workdir import folder
from metalr_flax.workdir import metrics_csv
from metalr_flax.workdir import plots
from metalr_flax.workdir import population_plots
from metalr_flax.workdir import report
from metalr_flax.workdir import schedule

MEMBERS = 'members'
SPREAD = 'spread'
DIVERGED = 'diverged'
_SHARES = {'least': 0, 'low': 0.1, 'median': 0.5, 'high': 0.9, 'most': 1}


def write_learned(
  workdir: pathlib.Path,
  config: Mapping[str, Any],
  initial: Mapping[str, Any],
  evaluation: Mapping[str, np.ndarray],
  *,
  loss_label: str,
  known_answers: Mapping[str, float],
) -> report.Learned:
  """Writes `schedule.json`, of each member, and the plot.

  Args:
    workdir: the run's folder, its `metrics.csv` complete.
    config: the resolved config.
    initial: value of each learned hyperparameter in the first window, [M], by
      group label where there are groups.
    evaluation: final `eval/*` values, [M].
    loss_label: what the loss measures, as the task says it.
    known_answers: lines in the plot, as the task gives them.

  Returns:
    What it made them of, and the picture.
  """
  columns = metrics_csv.read(workdir / folder.METRICS)
  count, unroll_length = members.count(config), config['meta']['unroll_length']
  owns = [metrics_csv.of_member(columns, i) for i in range(count)]
  schedules = {
    schedule.name_of(name, i): entry
    for i, own in enumerate(owns)
    for name, entry in schedule.make_schedules(
      population.pick(dict(initial), i), own, unroll_length
    ).items()
  }
  files.write_json(workdir / folder.SCHEDULE, schedules)
  steps = max(len(own['outer_step']) for own in owns)
  grids = {key: _grid([own[key] for own in owns], steps) for key in owns[0]}
  picture = population_plots.plot(
    workdir / folder.PLOT,
    title=_title(config, owns),
    learned=_values(schedules, count, steps),
    inner_step=unroll_length * np.arange(1.0, steps + 1),
    columns=_with_last(grids, evaluation),
    loss_label=loss_label,
    known_answers=known_answers,
  )
  return report.Learned(columns, schedules, picture)


def make_results(
  config: Mapping[str, Any],
  columns: Mapping[str, np.ndarray],
  evaluation: Mapping[str, np.ndarray],
) -> dict[str, Any]:
  """The content of `results.json`.

  Args:
    config: the resolved config.
    columns: of `metrics.csv`.
    evaluation: final `eval/*` values, [M].

  Returns:
    Means by metric key over the members that did not diverge; their `spread`;
    how many `diverged`; and the `members`, each with what it has of its own,
    its last row and its evaluation, and whether it `diverged`.
  """
  rows = [
    _member(config, columns, evaluation, number)
    for number in range(members.count(config))
  ]
  last = max(row['outer_step'] for row in rows)
  for row in rows:
    row[DIVERGED] = row['outer_step'] < last
  good = [row for row in rows if not row[DIVERGED]]
  keys = [key for key in good[0] if '/' in key]
  spread = {key: _spread([row[key] for row in good]) for key in keys}
  return {
    'outer_step': last,
    'inner_step': good[0]['inner_step'],
    **{key: found['mean'] for key, found in spread.items()},
    DIVERGED: len(rows) - len(good),
    SPREAD: spread,
    MEMBERS: rows,
  }


def _member(
  config: Mapping[str, Any],
  columns: Mapping[str, np.ndarray],
  evaluation: Mapping[str, np.ndarray],
  number: int,
) -> dict[str, Any]:
  values = {key: float(each[number]) for key, each in evaluation.items()}
  own = metrics_csv.of_member(columns, number)
  return {
    metrics_csv.MEMBER: number,
    **{n: given[number] for n, given in members.values(config).items()},
    **report.make_results(own, values),
  }


def _spread(values: list[float | None]) -> dict[str, float | None]:
  """Mean, standard deviation and quantiles; None where a value is none."""
  names = ('mean', 'std', *_SHARES)
  if any(value is None for value in values):
    return dict.fromkeys(names)
  numbers = np.array(values, np.float64)
  found = np.quantile(numbers, [*_SHARES.values()])
  every = (np.mean(numbers), np.std(numbers), *found)
  return {
    name: float(value) if math.isfinite(value) else None
    for name, value in zip(names, every, strict=True)
  }


def _grid(owns: list[np.ndarray], steps: int) -> np.ndarray:
  """The members' columns as one array [M, T], NaN where one ends."""
  grid = np.full((len(owns), steps), np.nan)
  for row, own in zip(grid, owns, strict=True):
    row[: len(own)] = own
  return grid


def _values(
  schedules: Mapping[str, Any], count: int, steps: int
) -> dict[str, np.ndarray]:
  """Values of each learned hyperparameter, [M, T + 1]."""
  names = [schedule.split_name(name) for name in schedules]
  return {
    name: _grid(
      [
        np.array(schedules[schedule.name_of(name, i)]['value'])
        for i in range(count)
      ],
      steps + 1,
    )
    for name in dict.fromkeys(name for name, _ in names)
  }


def _with_last(
  grids: Mapping[str, np.ndarray], evaluation: Mapping[str, np.ndarray]
) -> Mapping[str, np.ndarray]:
  """The columns with the final evaluation of the members that got there."""
  losses = grids.get('eval/loss')
  if losses is None or not losses.size or 'eval/loss' not in evaluation:
    return grids
  losses = losses.copy()
  going = np.isfinite(grids['train/loss'][:, -1])
  losses[:, -1] = np.where(going, evaluation['eval/loss'], np.nan)
  return {**grids, 'eval/loss': losses}


def _title(config: Mapping[str, Any], owns: list[dict[str, Any]]) -> str:
  steps = [len(own['outer_step']) for own in owns]
  diverged = sum(count < max(steps) for count in steps)
  ended = f', {diverged} diverged' if diverged else ''
  optimizer = report.spelling(config['inner']['optimizer'])
  learned = ', '.join(plots.words(name) for name in config['meta']['learned'])
  return (
    f"{optimizer}'s {learned or 'runs'}, {len(owns)} members{ended}\n"
    f'{population_plots.BANDS}'
  )
