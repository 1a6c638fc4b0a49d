"""The picture of a population: medians of its members, and how they differ.

Shape legend: M members, T outer steps. NaN where a member has no value.
"""

from collections.abc import Mapping
import pathlib

import numpy as np

from metalr_flax.workdir import drawing
from metalr_flax.workdir import plots

BANDS = 'median, middle 80 % and range'
_MOST_MARKED = 20  # points of a curve
_SHARES = (0.0, 0.1, 0.5, 0.9, 1.0)


def plot(
  path: pathlib.Path,
  *,
  title: str,
  learned: Mapping[str, np.ndarray],
  inner_step: np.ndarray,
  columns: Mapping[str, np.ndarray],
  loss_label: str,
  known_answers: Mapping[str, float],
) -> plots.Picture:
  """Draws what `plots.plot_run` draws, with a band in the place of a line.

  Args:
    path: the PNG file to write.
    title: above all panels.
    learned: values of each hyperparameter (`<name>/<label>` with groups) as the
      updates used them, [M, T + 1].
    inner_step: updates done after each outer step, [T].
    columns: of `metrics.csv`, [M, T].
    loss_label: what the loss measures.
    known_answers: as `Task.known_answers` returns them.

  Returns:
    The picture.
  """
  shown = {n: v for n, v in known_answers.items() if f'params/{n}' in columns}
  names = list(dict.fromkeys(key.split('/')[0] for key in learned))
  edges = np.concatenate([[0], inner_step])

  def fill(panels: np.ndarray) -> None:
    for i, (axes, name) in enumerate(zip(panels, names, strict=False)):
      color = plots.COLORS[i % len(plots.COLORS)]
      _draw_learned(axes, name, edges, learned, color)
    losses, *rest = panels[len(names) :]
    _draw_losses(losses, edges, columns, loss_label, known_answers.get('loss'))
    for axes, (name, answer) in zip(rest, shown.items(), strict=True):
      _draw_answered(axes, name, inner_step, columns, answer)

  return plots.draw(path, title, len(names), len(shown), fill)


def _draw_learned(
  axes: drawing.Axes,
  name: str,
  edges: np.ndarray,
  learned: Mapping[str, np.ndarray],
  color: str,
) -> None:
  """A hyperparameter's values; of groups the median of each alone."""
  groups = {k: v for k, v in learned.items() if k.split('/')[0] == name}
  for key, values in groups.items():
    alone = len(groups) == 1
    own = {'color': color} if alone else {}
    _draw_band(axes, edges, values, key.partition('/')[2], bands=alone, **own)
  first, last = (
    [v for values in groups.values() for v in _known(values[:, i])]
    for i in (0, -1)
  )
  moved = plots.moved_text(name, first, last)
  plots.say(axes, moved, color)
  plots.set_log_scale(axes)


def _draw_losses(
  axes: drawing.Axes,
  edges: np.ndarray,
  columns: Mapping[str, np.ndarray],
  label: str,
  answer: float | None,
) -> None:
  """The losses, each with its median at the end."""
  label = drawing.plain(label)
  for key, name, color in (
    ('train/loss', 'training', 'tab:orange'),
    ('meta/loss', 'outer', 'tab:purple'),
  ):
    values = columns.get(key, np.array([[]]))
    if np.isfinite(values).any():
      means = np.stack([_running_mean(own) for own in values])
      middles = (edges[:-1] + edges[1:]) / 2
      _draw_band(axes, middles, means, name, color=color)
  if len(edges) > 1:
    label += f', mean of {plots.window(edges[1:])} windows'
  evaluated = columns.get('eval/loss', np.array([[]]))
  if np.isfinite(evaluated).any():
    _draw_band(axes, edges[1:], evaluated, 'evaluation', color='tab:green')
  if answer is not None and answer > 0:  # 0 has no place on a log scale
    plots.draw_answer(axes, answer, f'noise in the data {answer:g}')
  if axes.has_data():
    plots.say_names(axes, label, ncols=2)
  else:
    plots.say(axes, label)
  plots.set_log_scale(axes)


def _draw_answered(
  axes: drawing.Axes,
  name: str,
  inner_step: np.ndarray,
  columns: Mapping[str, np.ndarray],
  answer: float,
) -> None:
  """A value of the model around its answer, close enough to see it settle."""
  values = columns[f'params/{name}']
  _draw_band(axes, inner_step, values, '', color='tab:gray')
  plots.draw_answer(axes, answer)
  last = [*_known(values[:, -1:])]
  ended = f'{plots.range_text(last)}, ' if last else ''
  plots.say(axes, f'{drawing.plain(name)}: {ended}answer {answer:g}')
  late = _known(np.abs(values[:, values.shape[1] // 10 :] - answer))
  reach = 1.2 * np.max(late, initial=0)
  if reach > 0:
    axes.set_ylim(answer - reach, answer + reach)


def _draw_band(
  axes: drawing.Axes,
  x: np.ndarray,
  values: np.ndarray,
  label: str,
  *,
  bands: bool = True,
  color: str | None = None,
) -> None:
  """The median [n] of values [M, n], and what the members differ by."""
  kept = np.flatnonzero(np.isfinite(values).any(axis=0))
  if len(kept) > plots.MOST_POINTS:
    places = np.linspace(0, len(kept) - 1, plots.MOST_POINTS)
    kept = kept[places.round().astype(int)]
  if not len(kept):
    return
  x, values = x[kept], np.where(np.isfinite(values), values, np.nan)[:, kept]
  least, low, median, high, most = np.nanquantile(values, _SHARES, axis=0)
  label = f'{drawing.plain(label)} {median[-1]:.3g}'.lstrip()
  marker = 'o' if len(x) <= _MOST_MARKED else ''
  (line,) = axes.plot(
    x, median, label=label, color=color, marker=marker, markersize=4
  )
  if bands:
    for lower, upper, alpha in ((least, most, 0.12), (low, high, 0.25)):
      axes.fill_between(
        x, lower, upper, alpha=alpha, color=line.get_color(), linewidth=0
      )


def _running_mean(values: np.ndarray) -> np.ndarray:
  """A member's running mean as far as it has values."""
  count = int(np.isfinite(values).sum())
  means = np.full(len(values), np.nan)
  means[:count] = plots.running_mean(values[:count])
  return means


def _known(values: np.ndarray) -> np.ndarray:
  return values[np.isfinite(values)]
