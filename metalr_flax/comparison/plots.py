"""Draws the pictures of a comparison.

Each is a grid of panels: a row for each problem, a column for each optimizer.
"""

from collections.abc import Callable
import functools
import pathlib
from typing import Any, NamedTuple

import numpy as np

from metalr_flax.comparison import cells
from metalr_flax.comparison import methods as methods_lib
from metalr_flax.comparison import outcomes
from metalr_flax.comparison import standings as standings_lib
from metalr_flax.workdir import drawing
from metalr_flax.workdir import files
from metalr_flax.workdir import inline_svg

_TINY = 1e-12  # where a logarithmic axis ends
DrawPanel = Callable[[drawing.Axes, standings_lib.Standings, str, str], None]


class Picture(NamedTuple):
  """A picture of the comparison: a panel for each problem and optimizer.

  Attributes:
    file: its name, without a suffix.
    draw: draws one panel.
    title: the whole picture's.
    x_label: of the lowest panels.
    y_label: of the leftmost panels.
  """

  file: str
  draw: DrawPanel
  title: str
  x_label: str
  y_label: str


def plot_all(
  folder: pathlib.Path, standings: standings_lib.Standings
) -> dict[str, str]:
  """Draws every picture there are cells for.

  Args:
    folder: where the PNG files go.
    standings: all finished cells.

  Returns:
    By title the same pictures for a page, as `inline_svg.draw` returns them.
  """
  if not standings.pairs:
    return {}
  pictures = UNSEEN_PICTURES if standings.unseen else PICTURES
  return {
    picture.title: _plot(folder / f'{picture.file}.png', standings, picture)
    for picture in pictures
  }


def _plot(
  path: pathlib.Path, standings: standings_lib.Standings, picture: Picture
) -> str:
  problems = list(dict.fromkeys(p for p, _ in standings.pairs))
  optimizers = list(dict.fromkeys(o for _, o in standings.pairs))
  rows, columns = len(problems), len(optimizers)
  fig = drawing.figure.Figure(
    figsize=(1.5 + 3.6 * columns, 1.2 + 2.3 * rows),
    dpi=100,
    layout='constrained',
  )
  panels = fig.subplots(rows, columns, squeeze=False, sharex='row')
  fig.suptitle(picture.title, fontsize=11, wrap=True)
  handles: dict[str, drawing.Artist] = {}
  for i, problem in enumerate(problems):
    for j, optimizer in enumerate(optimizers):
      axes = panels[i, j]
      if (problem, optimizer) in standings.pairs:
        picture.draw(axes, standings, problem, optimizer)
      if not axes.has_data():
        axes.set_axis_off()
      axes.set_title(f'{problem}, {optimizer}', fontsize=9)
      axes.tick_params(which='both', labelsize=7)
      axes.grid(True, alpha=0.25)
      if j == 0:
        axes.set_ylabel(_y_label(picture, standings, problem), fontsize=8)
      if i == rows - 1:
        axes.set_xlabel(picture.x_label, fontsize=8)
      lines, names = axes.get_legend_handles_labels()
      handles |= dict(zip(names, lines, strict=True))
  if handles:
    fig.legend(
      list(handles.values()),
      list(handles),
      loc='outside lower center',
      ncols=min(7, len(handles)),
      fontsize=8,
    )
  files.write_bytes(path, drawing.to_png(drawing.pixels_of(fig)))
  fig.suptitle('')  # the page says it
  return inline_svg.draw(fig, picture.title)


def _y_label(
  picture: Picture, standings: standings_lib.Standings, problem: str
) -> str:
  """A row's label; below that of a loss on unseen data is its unit."""
  of_loss = picture.y_label == standings_lib.UNSEEN
  unit = standings.loss_label(problem) if of_loss else ''
  return f'{picture.y_label}\n{unit}'.strip()


def _by_rate(outcome: outcomes.Outcome) -> tuple[np.ndarray, np.ndarray]:
  """Learning rates and scores; a rate's decay is picked by held-out loss."""
  rates, scores = np.array(outcome.cell.learning_rates), outcome.scores
  if outcome.held_out is None:
    return rates, scores
  by_loss = np.argsort(np.mean(outcome.held_out.losses, axis=1), kind='stable')
  best = {rates[i]: scores[i] for i in by_loss[::-1]}
  found = sorted(best)
  return np.array(found), np.array([best[rate] for rate in found])


def _found(
  standings: standings_lib.Standings,
  problem: str,
  optimizer: str,
  *kinds: methods_lib.Kind,
) -> list[outcomes.Outcome]:
  """The finished cells of some kinds, in the table's order."""
  keys = [(problem, optimizer, m) for m in methods_lib.of_kind(*kinds)]
  return [standings.outcomes[k] for k in keys if k in standings.outcomes]


def _style(cell: cells.Cell) -> dict[str, Any]:
  """A method's line: its color, dashed where the best of a grid counts."""
  dashed = cell.kind is methods_lib.Kind.GRID
  color = methods_lib.METHODS[cell.method].color
  return {'color': color, 'linestyle': '--' if dashed else '-'}


def _draw_finals(
  axes: drawing.Axes,
  standings: standings_lib.Standings,
  problem: str,
  optimizer: str,
) -> None:
  """Draws lines over the rates; a diverged run is a cross at the upper edge."""
  axes.set(xscale='log', yscale='log')
  kinds = methods_lib.Kind.GRID, methods_lib.Kind.STARTS
  for outcome in _found(standings, problem, optimizer, *kinds):
    cell, style = outcome.cell, _style(outcome.cell)
    rates, scores = _by_rate(outcome)
    fine = np.isfinite(scores)
    axes.plot(
      rates,
      np.where(fine, np.maximum(scores, _TINY), np.nan),
      marker='.',
      label=cell.method,
      **style,
    )
    axes.plot(
      rates[~fine],
      np.full(np.sum(~fine), 0.97),
      'x',
      color=style['color'],
      transform=axes.get_xaxis_transform(),
    )
  best = standings.best(problem, optimizer, methods_lib.BASELINE)
  if best is not None and np.isfinite(best.score):
    level = max(best.score, _TINY)
    label = 'picked constant' if standings.unseen else 'best constant'
    axes.axhline(level, color='black', linewidth=0.6, label=label)


def _draw_schedules(
  axes: drawing.Axes,
  standings: standings_lib.Standings,
  problem: str,
  optimizer: str,
) -> None:
  axes.set(yscale='log')
  found = _found(standings, problem, optimizer, methods_lib.Kind.STARTS)
  for outcome in found:
    for i, rates in enumerate(outcome.learned_rates):
      axes.plot(
        outcome.steps,
        rates,
        linewidth=1,
        label=outcome.cell.method if i == 0 else None,
        **_style(outcome.cell),
      )
  best = standings.best(problem, optimizer, methods_lib.BASELINE)
  if found and best is not None and np.isfinite(best.score):
    axes.axhline(
      best.learning_rate,
      color='black',
      linestyle=':',
      linewidth=1,
      label=f'{"picked" if standings.unseen else "best"} constant rate',
    )


def _draw_curves(
  axes: drawing.Axes,
  standings: standings_lib.Standings,
  problem: str,
  optimizer: str,
  *,
  gradients: bool,
) -> None:
  """Draws a line for each method, and a band over its starts."""
  axes.set(yscale='log', xscale='log' if gradients else 'linear')
  kinds = methods_lib.Kind.GRID, methods_lib.Kind.STARTS
  for outcome in _found(standings, problem, optimizer, *kinds):
    cell, style = outcome.cell, _style(outcome.cell)
    x = outcome.steps * (cell.cost if gradients else 1.0)
    curves = np.where(outcome.curves > 0, outcome.curves, _TINY)
    order = np.argsort(outcome.scores, kind='stable')
    if cell.kind is methods_lib.Kind.STARTS:
      shown = curves[order[len(order) // 2]]
      low, high = curves.min(axis=0), curves.max(axis=0)
      axes.fill_between(
        x,
        low,
        np.minimum(
          high, 3 * outcome.initial_objective
        ),  # the diverged end up there
        color=style['color'],
        alpha=0.12,
        linewidth=0,
      )
    else:
      shown = curves[outcome.picked]
    axes.plot(
      x,
      np.where(np.isfinite(shown), shown, np.nan),
      linewidth=1.2,
      label=cell.method,
      **style,
    )


PICTURES = (
  Picture(
    'final_vs_initial_rate',
    _draw_finals,
    title='Final objective against the learning rate that a run starts from',
    x_label='initial learning rate',
    y_label='final objective',
  ),
  Picture(
    'learned_schedules',
    _draw_schedules,
    title='Learning rates learned from each initial rate '
    '(geometric mean over seeds; dotted: the best constant)',
    x_label='inner updates',
    y_label='learning rate',
  ),
  Picture(
    'loss_curves',
    functools.partial(_draw_curves, gradients=False),
    title='Objective while training (mean over seeds; grids: best rate; the '
    'others: median start, and the range of all starts)',
    x_label='inner updates',
    y_label='objective',
  ),
  Picture(
    'loss_curves_by_cost',
    functools.partial(_draw_curves, gradients=True),
    title='Objective by what it cost (a grid pays for all its rates)',
    x_label='gradient evaluations',
    y_label='objective',
  ),
)
UNSEEN_PICTURES = (
  Picture(
    'unseen_vs_initial_rate',
    _draw_finals,
    title='Loss on unseen data where the held-out loss was least, against the '
    'learning rate that a run starts from (weight decays: picked by held-out '
    'loss)',
    x_label='initial learning rate',
    y_label=standings_lib.UNSEEN,
  ),
  Picture(
    'unseen_learned_schedules',
    _draw_schedules,
    title='Learning rates learned from each initial rate '
    '(geometric mean over seeds; dotted: the picked constant)',
    x_label='inner updates',
    y_label='learning rate',
  ),
  Picture(
    'unseen_curves',
    functools.partial(_draw_curves, gradients=False),
    title='Loss on unseen data while training (mean over seeds; grids: picked '
    'by held-out loss; the others: median start, and the range of all starts)',
    x_label='inner updates',
    y_label=standings_lib.UNSEEN,
  ),
  Picture(
    'unseen_curves_by_cost',
    functools.partial(_draw_curves, gradients=True),
    title='Loss on unseen data by what it cost (a grid pays for all its '
    'settings)',
    x_label='gradient evaluations',
    y_label=standings_lib.UNSEEN,
  ),
)
