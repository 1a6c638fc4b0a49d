"""The picture of a run: the learned values above the loss that they gave."""

from collections.abc import Mapping, Sequence
import io
import pathlib
from typing import Any

import numpy as np

from metalr_flax.workdir import drawing
from metalr_flax.workdir import files

_SMOOTHED = 100  # at most so many separate means in a run, each of 2 or more
_MOST_NAMES = 12  # in a legend

Columns = Mapping[str, np.ndarray]


def plot_run(
  path: pathlib.Path,
  *,
  optimizer: str,
  schedules: Mapping[str, Mapping[str, Any]],
  columns: Columns,
  evaluation: Mapping[str, float],
  loss_label: str,
  known_answers: Mapping[str, float],
) -> np.ndarray:
  """Draws what was learned, the losses, and values whose answer is known.

  Each learned hyperparameter has a panel, with a line for each group. The loss
  of a window stands below the values that were in use in this window.

  Args:
    path: the PNG file to write.
    optimizer: the inner optimizer's name for the title, e.g. 'RMSProp'.
    schedules: content of `schedule.json`.
    columns: of `metrics.csv`.
    evaluation: final `eval/*` values.
    loss_label: what the loss measures, e.g. 'cross-entropy (nats)'.
    known_answers: as `Task.known_answers` returns them; each is a line.

  Returns:
    The picture, uint8 [height, width, 4].
  """
  shown = {
    name: answer
    for name, answer in known_answers.items()
    if f'params/{name}' in columns
  }
  names = list(dict.fromkeys(key.split('/')[0] for key in schedules))
  canvas, panels = _make_panels(
    len(names) + 1 + len(shown), _title(optimizer, names)
  )
  ends = _ends(schedules, columns, evaluation)
  panels[0].set_title(ends, fontsize=9, wrap=True)
  for axes, name in zip(panels, names, strict=False):
    _draw_learned(axes, name, schedules)
  rest = panels[len(names) :]
  _draw_losses(
    rest[0],
    _with_last(columns, evaluation),
    loss_label,
    known_answers.get('loss'),
  )
  for axes, (name, answer) in zip(rest[1:], shown.items(), strict=True):
    _draw_answered(axes, name, columns, answer)
  for axes in panels:
    axes.grid(True, which='both', alpha=0.25)
  panels[-1].set_xlabel('inner updates')
  return _write(path, canvas)


def _make_panels(count: int, title: str) -> tuple[Any, np.ndarray]:
  """A canvas, and its panels one below the other, each with room."""
  height = min(12, max(6, 1.8 * count))
  fig = drawing.figure.Figure((8, height), dpi=120, layout='constrained')
  canvas = drawing.FigureCanvasAgg(fig)
  fig.suptitle(title)
  return canvas, np.atleast_1d(fig.subplots(count, 1, sharex=True))


def _title(optimizer: str, names: Sequence[str]) -> str:
  """What the picture shows; some of several may be the loss's."""
  if len(names) == 1:
    return f"{optimizer}'s {_words(names[0])}, learned while training"
  return f'Hyperparameters, learned while training with {optimizer}'


def _write(path: pathlib.Path, canvas: Any) -> np.ndarray:
  """Writes a canvas as a PNG file; returns its pixels."""
  canvas.draw()
  pixels = np.asarray(canvas.buffer_rgba())
  png = io.BytesIO()
  drawing.image.imsave(png, pixels, format='png')
  files.write_bytes(path, png.getvalue())
  return pixels


def _words(name: str) -> str:
  return name.replace('_', ' ')


def _ends(
  schedules: Mapping[str, Mapping[str, Any]],
  columns: Columns,
  evaluation: Mapping[str, float],
) -> str:
  """The final values in words; of one learned value, not of many."""
  ends: dict[str, float] = {}
  if len(schedules) == 1:
    (name, schedule), *_ = schedules.items()
    ends[_words(name)] = schedule['value'][-1]
  losses = columns['train/loss']
  if len(losses):
    ends['training loss'] = _running_mean(losses)[-1]
  for name in ('evaluation loss', 'accuracy'):
    key = f'eval/{name.removeprefix("evaluation ")}'
    if key in evaluation:
      ends[name] = evaluation[key]
  updates = int(max(columns['inner_step'], default=0))
  values = ', '.join(f'{name} {value:.3g}' for name, value in ends.items())
  return f'after {updates:,} updates: {values}'


def _with_last(columns: Columns, evaluation: Mapping[str, float]) -> Columns:
  """The columns with the final evaluation in their last row."""
  last = evaluation.get('eval/loss')
  if last is None or not len(columns.get('eval/loss', ())):
    return columns
  evaluated = columns['eval/loss'].copy()
  evaluated[-1] = last
  return {**columns, 'eval/loss': evaluated}


def _draw_learned(
  axes: drawing.Axes, name: str, schedules: Mapping[str, Mapping[str, Any]]
) -> None:
  """A hyperparameter's values, a line for each group."""
  groups = {
    key.partition('/')[2]: schedule
    for key, schedule in schedules.items()
    if key.split('/')[0] == name
  }
  for group, schedule in groups.items():
    axes.step(
      schedule['inner_step'], schedule['value'], where='post', label=group
    )
  axes.set_ylabel(_words(name))
  if 1 < len(groups) <= _MOST_NAMES:
    axes.legend(fontsize=8)
  _set_log_scale(axes)


def _draw_losses(
  axes: drawing.Axes, columns: Columns, label: str, answer: float | None
) -> None:
  """The loss of each window over the whole window, as it is a mean of it."""
  ends, losses = columns['inner_step'], columns['train/loss']
  if len(losses):
    edges = np.concatenate([[0], ends])
    axes.step(
      edges,
      np.append(losses, losses[-1]),
      where='post',
      color='tab:orange',
      alpha=0.35,
      linewidth=0.8,
      label='training, each window',
    )
    count = _window(losses)
    axes.plot(
      (edges[:-1] + edges[1:]) / 2,
      _running_mean(losses),
      color='tab:orange',
      label=f'training, mean of {count} windows',
    )
  evaluated = columns.get('eval/loss', np.full_like(losses, np.nan))
  known = np.isfinite(evaluated)
  if np.any(known):
    axes.plot(
      ends[known],
      evaluated[known],
      'o-',
      color='tab:green',
      markersize=4,
      linewidth=0.8,
      label='evaluation, unseen data',
    )
  if answer is not None and answer > 0:  # 0 has no place on a log scale
    _draw_answer(axes, answer, f'noise in the data: {answer:g}')
  axes.set_ylabel(label)
  if axes.has_data():
    axes.legend(fontsize=8, loc='upper right')
  _set_log_scale(axes)


def _draw_answered(
  axes: drawing.Axes, name: str, columns: Columns, answer: float
) -> None:
  """A value of the model around its answer, close enough to see it settle."""
  values = columns[f'params/{name}']
  axes.plot(
    columns['inner_step'], values, color='tab:purple', linewidth=0.8, label=name
  )
  _draw_answer(axes, answer, f'answer: {answer:g}')
  axes.set_ylabel(name)
  axes.legend(fontsize=8, loc='upper right')
  late = np.abs(values[len(values) // 10 :] - answer)
  reach = 1.2 * np.max(late, initial=0)
  if np.isfinite(reach) and reach > 0:
    axes.set_ylim(answer - reach, answer + reach)


def _draw_answer(axes: drawing.Axes, answer: float, label: str) -> None:
  axes.axhline(
    answer, color='black', linestyle='--', linewidth=0.8, label=label
  )


def _window(values: np.ndarray) -> int:
  """How many values a running mean takes together."""
  return min(len(values), max(2, len(values) // _SMOOTHED))


def _running_mean(values: np.ndarray) -> np.ndarray:
  """Means of what surrounds each value, of fewer at both ends, [n]."""
  if not len(values):
    return values
  ones = np.ones(_window(values))
  return np.convolve(values, ones, 'same') / np.convolve(
    np.ones_like(values), ones, 'same'
  )


def _set_log_scale(axes: drawing.Axes) -> None:
  """A log scale with plain numbers, several of them on a short range too."""
  if not np.isfinite(axes.dataLim.minposy):
    return  # nothing to show yet, or nothing above 0
  axes.set_yscale('log')
  axes.yaxis.set_major_formatter(drawing.ticker.StrMethodFormatter('{x:g}'))
  low, high = axes.get_ylim()
  if 10 * low <= high < 1000 * low:
    axes.yaxis.set_major_locator(drawing.ticker.LogLocator(subs=(1, 2, 5)))
  if high < 10 * low:
    axes.yaxis.set_major_locator(drawing.ticker.MaxNLocator(6))
    axes.yaxis.set_minor_locator(drawing.ticker.NullLocator())
