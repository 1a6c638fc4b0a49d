"""What held_out_size.py found: a rule of thumb, tables and a picture."""

import itertools
import pathlib
from typing import Any, NamedTuple

from matplotlib import colormaps
from matplotlib import figure
from matplotlib import ticker
import numpy as np

ALLOWED = 1.05
LEAST, PER_VALUE = 100, 10
# Above this many held-out examples most excesses are below their own error.
FITTED = 400
MODES = {'early': 'Early stopping', 'end': 'End of the run'}
HEIGHTS = {
  'excess': (0.5, 1, 2, 5, 10, 20, 50, 100, 300),
  'gap': (0.003, 0.01, 0.03, 0.1, 0.3, 1),
}
LABELS = {
  'excess': 'test loss above that of\n1600 held-out examples (%)',
  'gap': 'test loss less held-out loss\n(nats; half squared error)',
}


class Point(NamedTuple):
  """What h values learned on n held-out examples came to, stopped early."""

  task: str
  learned: int
  size: int
  ratio: float
  gap: float

  @property
  def share(self) -> float:
    """Of the examples that the rule of thumb asks for."""
    return self.size / max(LEAST, PER_VALUE * self.learned)


def points_of(found: dict[str, Any]) -> list[Point]:
  """All of them but those of the largest size, which is the standard."""
  pairs = itertools.product(found['tasks'], found['learned'])
  return [
    Point(task, h, n, row['over_largest'][k], row['gap'][k])
    for task, h in pairs
    for row in [found['tasks'][task][str(h)]['early']]
    for k, n in enumerate(found['sizes'][:-1])
  ]


def conclude(found: dict[str, Any]) -> dict[str, Any]:
  """How both figures grow with h and fall with n, and what the rule gives."""
  points = points_of(found)
  values = {
    'excess': [p.ratio - 1 for p in points],
    'gap': [p.gap for p in points],
  }
  by_task = {
    task: _judge([p for p in points if p.task == task])
    for task in found['tasks']
  }
  return {
    'least': LEAST,
    'per_value': PER_VALUE,
    'allowed': ALLOWED,
    'fits': {k: fit(points, v) for k, v in values.items()},
    'rule': {**by_task, 'all': _judge(points)},
  }


def fit(points: list[Point], values: list[float]) -> dict[str, Any]:
  """Least squares of c h^p / n^q, c of each task, by the logarithms."""
  pairs = zip(points, values, strict=True)
  used = [(p, v) for p, v in pairs if p.size <= FITTED and v > 0]
  tasks = sorted({p.task for p, _ in used})
  rows = [
    [np.log(p.learned), -np.log(p.size), *(p.task == t for t in tasks)]
    for p, _ in used
  ]
  logs = np.log([v for _, v in used])
  rows = np.array(rows, float)
  solution = np.linalg.lstsq(rows, logs)[0]
  return {
    'power_of_h': float(solution[0]),
    'power_of_n': float(solution[1]),
    'scale': dict(zip(tasks, np.exp(solution[2:]).tolist(), strict=True)),
    'typical_error': float(np.exp(np.std(logs - rows @ solution))),
    'points': len(used),
    'not_positive': sum(p.size <= FITTED for p in points) - len(used),
  }


def _judge(points: list[Point]) -> dict[str, Any]:
  """The test losses where the rule was kept, twice kept, and where not."""
  parts = {
    'kept': [p.ratio for p in points if p.share >= 1],
    'twice as many': [p.ratio for p in points if p.share >= 2],
    'broken': [p.ratio for p in points if p.share < 1],
  }
  return {
    name: {
      'count': len(ratios),
      'mean': float(np.exp(np.mean(np.log(ratios)))),
      'worst': max(ratios),
      'allowed': sum(ratio <= ALLOWED for ratio in ratios),
    }
    for name, ratios in parts.items()
    if ratios
  }


def to_markdown(found: dict[str, Any]) -> str:
  """What a person reads."""
  parts = ['# How many held-out examples\n', _intro(found), _rule_text(found)]
  for mode, title in MODES.items():
    parts.append(f'## {title}\n')
    for task, rows in found['tasks'].items():
      parts.append(
        f'{task[0].upper()}{task[1:]}:\n\n{_table(found, rows, mode)}'
      )
  versions = ', '.join(f'{k} {v}' for k, v in found['versions'].items())
  parts.append(
    f'{found["seeds"]} seeds, {found["steps"]} updates, batches of '
    f'{found["batch"]}; {versions}.\n'
  )
  return '\n'.join(parts)


def _intro(found: dict[str, Any]) -> str:
  return f"""`self_tuning` learns h hyperparameters of AdamW on n held-out
examples: the rate (h = 1), rate and decay (h = 2), or both for each of h / 2
blocks of features. {found['training']} examples to train on, {found['test']} to
test on. A cell has the test loss, its ratio to that of the same h with the most
held-out examples (geometric means over seeds), and the gap: test loss less
held-out loss, less the same of one constant setting on the same examples. Grid:
what the held-out examples pick from 30 constant rates and decays. At the end of
the run the gap is that of runs that ended below twice their loss when stopped
early; the share of the others stands below it.

    python benchmarks/held_out_size.py

![Test loss and gap against the size of the held-out set](held_out_size.png)

Points below the lower edge of a panel are not drawn.
"""


def _rule_text(found: dict[str, Any]) -> str:
  """The fits, and what the rule of thumb gives."""
  ends = found['overall']
  lines = [
    f'Fitted to up to {FITTED} held-out examples, with early stopping: '
    + '; '.join(
      f'the {k} grows as h^{v["power_of_h"]:.2f} / n^{v["power_of_n"]:.2f} '
      f'(a point lies off by {v["typical_error"]:.2f} times)'
      for k, v in ends['fits'].items()
    )
    + '. Excess: the ratio less 1.\n',
    f'Rule of thumb: n at least {LEAST}, and at least {PER_VALUE} h.\n',
    '| task | rule | cases | mean ratio | worst | 1.05 or less |',
    '|---|---|---|---|---|---|',
  ]
  lines += [
    f'| {task} | {k} | {v["count"]} | {v["mean"]:.3f} | {v["worst"]:.3f} | '
    f'{v["allowed"]} |'
    for task, parts in ends['rule'].items()
    for k, v in parts.items()
  ]
  return '\n'.join(lines) + '\n'


def _table(found: dict[str, Any], rows: dict[str, Any], mode: str) -> str:
  """A row for each h: test loss, ratio and gap by size."""
  sizes = [f'n = {n}' for n in found['sizes']]
  lines = [f'| h | {" | ".join(sizes)} |', f'|{"---|" * (len(sizes) + 1)}']
  for h, row in rows.items():
    keys = 'test_loss', 'over_largest', 'gap'
    cells = zip(*(row[mode][key] for key in keys), strict=True)
    shown = [f'{a:.3f}, {b:.2f}, {_number(gap)}' for a, b, gap in cells]
    lines.append(f'| {h} | {" | ".join(shown)} |')
    if mode == 'end' and any(row.get('doubled', [])):
      doubled = [f'{share:.0%}' for share in row['doubled']]
      lines.append(f'| {h}: twice the loss | {" | ".join(doubled)} |')
  return '\n'.join(lines) + '\n'


def _number(gap: float | None) -> str:
  return '-' if gap is None else f'{gap:+.3f}'


def plot(found: dict[str, Any], path: pathlib.Path) -> None:
  """Draws test loss and gap against n, a column for each task."""
  tasks = found['tasks']
  fig = figure.Figure(figsize=(11, 6.4), layout='constrained')
  panels = fig.subplots(2, len(tasks), sharex=True, sharey='row')
  for column, (task, rows) in zip(panels.T, tasks.items(), strict=True):
    for axes, key in zip(column, HEIGHTS, strict=True):
      _draw_panel(axes, found, rows, key)
    column[0].set_title(f'{task[0].upper()}{task[1:]}')
    column[1].set_xlabel('held-out examples n')
  for axes, key in zip(panels[:, 0], HEIGHTS, strict=True):
    axes.set_ylabel(LABELS[key])
  handles, labels = panels[0, 0].get_legend_handles_labels()
  fig.legend(handles, labels, loc='outside lower center', ncols=4)
  fig.savefig(path, dpi=120)


def _draw_panel(
  axes: Any, found: dict[str, Any], rows: dict[str, Any], key: str
) -> None:
  """Draws a line for each h, filled where the rule of thumb was kept."""
  sizes, counts = np.array(found['sizes']), found['learned']
  colors = colormaps['viridis'](np.linspace(0, 0.88, len(counts)))
  for h, color in zip(counts, colors, strict=True):
    heights = _heights(rows[str(h)], key)
    kept = sizes >= max(LEAST, PER_VALUE * h)
    line = {'color': color, 'markersize': 5}
    axes.plot(sizes, heights, '-o', label=_legend(h), mfc='white', **line)
    axes.plot(sizes[kept], heights[kept], 'o', **line)
  picked = _heights(rows['grid'], key)
  label = 'grid: one of 30 picked'
  axes.plot(sizes, picked, '--', color='gray', label=label, zorder=1)
  blank = {'linestyle': '', 'marker': 'o', 'color': 'black', 'markersize': 5}
  axes.plot([], [], label=f'n is {LEAST} and {PER_VALUE} h or more', **blank)
  axes.plot([], [], label='n is less', mfc='white', **blank)
  _scale(axes, sizes, key)


def _heights(row: dict[str, Any], key: str) -> np.ndarray:
  """What is drawn; NaN where a logarithmic axis has no place for it."""
  ratios = np.array(row['early']['over_largest'])
  heights = 100 * (ratios - 1) if key == 'excess' else row['early']['gap']
  return np.where(np.array(heights) > 0, heights, np.nan)


def _legend(h: int) -> str:
  names = {1: 'h = 1: rate', 2: 'h = 2: rate, decay'}
  return names.get(h, f'h = {h}: both, {h // 2} groups')


def _scale(axes: Any, sizes: np.ndarray, key: str) -> None:
  """Logarithmic axes with ticks in plain numbers."""
  axes.set(xscale='log', yscale='log')
  axes.set_xticks(sizes, [str(n) for n in sizes])
  heights = HEIGHTS[key]
  axes.set_yticks(heights, [f'{h:g}' for h in heights])
  axes.minorticks_off()
  axes.yaxis.set_minor_locator(ticker.NullLocator())
  axes.set_ylim(heights[0], 1.4 * heights[-1])
  if key == 'excess':
    axes.axhline(100 * (ALLOWED - 1), color='black', linewidth=0.8, ls=':')
  axes.grid(True, alpha=0.3)
