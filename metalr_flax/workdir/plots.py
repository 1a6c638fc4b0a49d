"""The picture of a run: the learned values above the losses that they gave."""

from collections.abc import Callable, Mapping, Sequence
import pathlib
from typing import Any, NamedTuple

import numpy as np

from metalr_flax.workdir import drawing
from metalr_flax.workdir import files
from metalr_flax.workdir import inline_svg

_SMOOTHED = 100  # at most so many separate means in a run, each of 2 or more
_MOST_NAMES = 12  # in a legend
MOST_POINTS = 2000  # of a curve: twice the picture's width in pixels
_MOST_MARKERS = 60
# Of what is learned, one after the other; a loss has none of them.
COLORS = (
  'tab:blue', 'tab:red', 'tab:brown', 'tab:pink', 'tab:olive', 'tab:cyan',
)  # fmt: skip
# Letters as large as this in a picture as narrow as this can still be read
# where TensorBoard shows it 300 pixels wide.
_WIDTH, _DPI, _LETTERS = 6, 160, 12

Columns = Mapping[str, np.ndarray]


class Picture(NamedTuple):
  """A picture as TensorBoard wants it and as a page does.

  Attributes:
    pixels: uint8 [height, width, 4].
    svg: the same for a page, as `inline_svg.draw` returns it.
  """

  pixels: np.ndarray
  svg: str


def plot_run(
  path: pathlib.Path,
  *,
  optimizer: str,
  schedules: Mapping[str, Mapping[str, Any]],
  columns: Columns,
  evaluation: Mapping[str, float],
  loss_label: str,
  known_answers: Mapping[str, float],
) -> Picture:
  """Draws what was learned, the losses, and values whose answer is known.

  Each learned hyperparameter has a panel and a colour, with a line for each
  group. The losses share a panel: that of the training batches, the outer one
  and that of the evaluation. All are over the inner updates, so that the loss
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
    The picture.
  """
  shown = {
    name: answer
    for name, answer in known_answers.items()
    if f'params/{name}' in columns
  }
  names = list(dict.fromkeys(key.split('/')[0] for key in schedules))

  def fill(panels: np.ndarray) -> None:
    for i, (axes, name) in enumerate(zip(panels, names, strict=False)):
      _draw_learned(axes, name, schedules, COLORS[i % len(COLORS)])
    losses, *rest = panels[len(names) :]
    _draw_losses(
      losses, columns, evaluation, loss_label, known_answers.get('loss')
    )
    for axes, (name, answer) in zip(rest, shown.items(), strict=True):
      _draw_answered(axes, name, columns, answer)

  return draw(path, _title(optimizer, names), len(names), len(shown), fill)


def draw(
  path: pathlib.Path,
  title: str,
  learned: int,
  answered: int,
  fill: Callable[[np.ndarray], None],
) -> Picture:
  """Draws panels one below the other over the inner updates, into a file.

  Args:
    path: the PNG file to write.
    title: above all panels.
    learned: panels of learned hyperparameters.
    answered: panels of values whose answer is known, below that of the losses.
    fill: draws into the panels' axes, from the uppermost on.
  """
  with drawing.rc_context({'font.size': _LETTERS, 'axes.titlesize': _LETTERS}):
    fig, panels = _make_panels(learned, answered, title)
    fill(panels)
    for axes in panels:
      axes.grid(True, alpha=0.25)
    panels[-1].set_xlabel('inner updates')
    panels[-1].xaxis.set_major_formatter(drawing.thousands())
    pixels = _write(path, fig)
    fig.set_layout_engine('none')  # it stays as it is
    return Picture(pixels, inline_svg.draw(fig, title))


def _make_panels(
  learned: int, answered: int, title: str
) -> tuple[drawing.figure.Figure, np.ndarray]:
  """A figure, and its panels one below the other, each with room."""
  ratios = [1.0] * learned + [1.7] + [1.0] * answered
  size = (_WIDTH, max(4.5, 0.8 + 1.3 * sum(ratios)))
  fig = drawing.figure.Figure(size, dpi=_DPI, layout='constrained')
  fig.suptitle(title, fontsize=_LETTERS + 1, wrap=True)
  panels = fig.subplots(len(ratios), 1, sharex=True, height_ratios=ratios)
  return fig, np.atleast_1d(panels)


def _title(optimizer: str, names: Sequence[str]) -> str:
  """What the picture shows; some of several may be the loss's."""
  if not names:
    return f'Training with {optimizer}'
  if len(names) == 1:
    return f"{optimizer}'s {words(names[0])}, learned while training"
  return f'Hyperparameters, learned while training with {optimizer}'


def _write(path: pathlib.Path, fig: drawing.figure.Figure) -> np.ndarray:
  """Writes a figure as a PNG file; returns its pixels."""
  pixels = drawing.pixels_of(fig)
  files.write_bytes(path, drawing.to_png(pixels))
  return pixels


def words(name: str) -> str:
  """A hyperparameter's name as it is drawn."""
  return drawing.plain(name.replace('_', ' '))


def _draw_learned(
  axes: drawing.Axes,
  name: str,
  schedules: Mapping[str, Mapping[str, Any]],
  color: str,
) -> None:
  """A hyperparameter's values and how they moved, a line for each group."""
  groups = {
    key.partition('/')[2]: schedule
    for key, schedule in schedules.items()
    if key.split('/')[0] == name
  }
  for group, schedule in groups.items():
    x, y = thin(np.array(schedule['inner_step']), np.array(schedule['value']))
    label = f'{drawing.plain(group)} {y[-1]:.3g}'
    own = color if len(groups) == 1 else None
    axes.step(x, y, where='post', label=label, color=own)
  moved = _moved(name, list(groups.values()))
  if 1 < len(groups) <= _MOST_NAMES:
    say_names(axes, moved, ncols=3, color=color)
  else:
    say(axes, moved, color)
  set_log_scale(axes)


def _moved(name: str, schedules: Sequence[Mapping[str, Any]]) -> str:
  """A hyperparameter with its first and last value, of groups their range."""
  firsts, lasts = (
    [schedule['value'][i] for schedule in schedules] for i in (0, -1)
  )
  return moved_text(name, firsts, lasts)


def moved_text(
  name: str, firsts: Sequence[float], lasts: Sequence[float]
) -> str:
  """A hyperparameter's name with its first values and its last ones."""
  first, last = range_text(firsts), range_text(lasts)
  return f'{words(name)}: {first} \N{RIGHTWARDS ARROW} {last}'


def range_text(values: Sequence[float]) -> str:
  """The least and the largest of some numbers; one where they are alike."""
  low, high = f'{min(values):.3g}', f'{max(values):.3g}'
  return low if low == high else f'{low} to {high}'


def say(axes: drawing.Axes, text: str, color: str = 'black') -> None:
  """Says above a panel what it shows."""
  axes.set_title(text, loc='left', color=color)


def say_names(
  axes: drawing.Axes, text: str, *, ncols: int, color: str = 'black'
) -> None:
  """Says above a panel what it shows, and whose lines: inside it hides them."""
  legend = axes.legend(
    loc='lower left',
    bbox_to_anchor=(-0.015, 1),
    ncols=ncols,
    title=text,
    title_fontsize=_LETTERS,
    alignment='left',
    fontsize='small',
    frameon=False,
    borderpad=0,
    labelspacing=0.2,
    columnspacing=1.5,
  )
  legend.get_title().set_color(color)


def _draw_losses(
  axes: drawing.Axes,
  columns: Columns,
  evaluation: Mapping[str, float],
  label: str,
  answer: float | None,
) -> None:
  """The losses, each with its value at the end."""
  label = drawing.plain(label)
  losses = columns['train/loss']
  if len(losses):
    _draw_windows(axes, columns)
    for key, name, color in (
      ('train/loss', 'training', 'tab:orange'),
      ('meta/loss', 'outer', 'tab:purple'),
    ):
      _draw_mean(axes, columns, key, name, color)
    label += f', mean of {window(losses)} windows'
  _draw_evaluation(axes, _with_last(columns, evaluation), evaluation)
  if answer is not None and answer > 0:  # 0 has no place on a log scale
    draw_answer(axes, answer, f'noise in the data {answer:g}')
  if axes.has_data():
    say_names(axes, label, ncols=2)
  else:
    say(axes, label)
  set_log_scale(axes)


def _draw_windows(axes: drawing.Axes, columns: Columns) -> None:
  """The training loss of each window over all of it, as it is its mean."""
  losses = columns['train/loss']
  x, y = thin(
    np.concatenate([[0], columns['inner_step']]), np.append(losses, losses[-1])
  )
  axes.step(x, y, where='post', color='tab:orange', alpha=0.3, linewidth=0.7)


def _draw_mean(
  axes: drawing.Axes, columns: Columns, key: str, name: str, color: str
) -> None:
  """A loss of the windows as a running mean, over the middle of each."""
  losses = columns.get(key, np.array([]))
  if not np.any(np.isfinite(losses)):
    return  # without an estimator there is no outer loss
  edges = np.concatenate([[0], columns['inner_step']])
  means = running_mean(losses)
  x, y = thin((edges[:-1] + edges[1:]) / 2, means)
  axes.plot(x, y, color=color, label=f'{name} {means[-1]:.3g}')


def _draw_evaluation(
  axes: drawing.Axes, columns: Columns, evaluation: Mapping[str, float]
) -> None:
  """The loss of each evaluation, the final one included."""
  losses = columns.get('eval/loss', np.array([]))
  known = np.isfinite(losses)
  if not np.any(known):
    return
  label = f'evaluation {losses[known][-1]:.3g}'
  if 'eval/accuracy' in evaluation:
    label += f', accuracy {evaluation["eval/accuracy"]:.3g}'
  x, y = thin(columns['inner_step'][known], losses[known])
  axes.plot(
    x,
    y,
    'o-' if len(x) <= _MOST_MARKERS else '-',
    color='tab:green',
    markersize=4,
    label=label,
  )


def _with_last(columns: Columns, evaluation: Mapping[str, float]) -> Columns:
  """The columns with the final evaluation in their last row."""
  last = evaluation.get('eval/loss')
  if last is None or not len(columns.get('eval/loss', ())):
    return columns
  evaluated = columns['eval/loss'].copy()
  evaluated[-1] = last
  return {**columns, 'eval/loss': evaluated}


def _draw_answered(
  axes: drawing.Axes, name: str, columns: Columns, answer: float
) -> None:
  """A value of the model around its answer, close enough to see it settle."""
  values = columns[f'params/{name}']
  axes.plot(
    *thin(columns['inner_step'], values), color='tab:gray', linewidth=0.8
  )
  draw_answer(axes, answer)
  last = f'{values[-1]:.4g}, ' if len(values) else ''
  say(axes, f'{drawing.plain(name)}: {last}answer {answer:g}')
  late = np.abs(values[len(values) // 10 :] - answer)
  reach = 1.2 * np.max(late, initial=0)
  if np.isfinite(reach) and reach > 0:
    axes.set_ylim(answer - reach, answer + reach)


def draw_answer(axes: drawing.Axes, answer: float, label: str = '') -> None:
  """A line at a known answer."""
  axes.axhline(answer, color='black', linestyle='--', linewidth=1, label=label)


def thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """A curve of at most 2,000 points, its ends and its extremes kept.

  Of each stretch of a longer one the lowest and the highest point stay, so that
  no peak is lost; `metrics.csv` has them all.

  Args:
    x: ascending, [n].
    y: values, [n].

  Returns:
    The points to draw, [m] each.
  """
  if len(x) <= MOST_POINTS:
    return x, y
  kept = {0, len(x) - 1}
  for part in np.array_split(np.arange(len(x)), MOST_POINTS // 2 - 1):
    values = y[part]
    if not np.all(np.isnan(values)):
      kept |= {part[np.nanargmin(values)], part[np.nanargmax(values)]}
  index = sorted(kept)
  return x[index], y[index]


def window(values: np.ndarray) -> int:
  """How many values a running mean takes together."""
  return min(len(values), max(2, len(values) // _SMOOTHED))


def running_mean(values: np.ndarray) -> np.ndarray:
  """Means of what surrounds each value, of fewer at both ends, [n]."""
  if not len(values):
    return values
  ones = np.ones(window(values))
  return np.convolve(values, ones, 'same') / np.convolve(
    np.ones_like(values), ones, 'same'
  )


def set_log_scale(axes: drawing.Axes) -> None:
  """A log scale with plain numbers, several of them on a short range too."""
  if not np.isfinite(axes.dataLim.minposy):
    return  # nothing to show yet, or nothing above 0
  axes.set_yscale('log')
  axes.yaxis.set_major_formatter(drawing.ticker.StrMethodFormatter('{x:g}'))
  low, high = axes.get_ylim()
  if 10 * low <= high < 50 * low:
    axes.yaxis.set_major_locator(drawing.ticker.LogLocator(subs=(1, 2, 5)))
  if high < 10 * low:
    axes.yaxis.set_major_locator(drawing.ticker.MaxNLocator(4))
    axes.yaxis.set_minor_locator(drawing.ticker.NullLocator())
