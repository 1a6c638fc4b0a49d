"""Draws the pictures of a comparison.

Each is a grid of panels: a row for each problem, a column for each optimizer,
and a second row where a loss on unseen data stands beside the objective. Every
method is in every picture; those without an inner optimizer are in all panels
of a problem.
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
_HIGH = 3.0  # times the initial objective: where curves that diverge end
_NO_RATE = methods_lib.Kind.WRAPPER, methods_lib.Kind.WHOLE


class Panel(NamedTuple):
  """What a panel shows.

  Attributes:
    problem: its name.
    optimizer: the inner optimizer's, '' where a problem has none.
    beside: whether of the loss on unseen data beside the objective.
    found: the finished cells, in the table's order.
    unseen: whether losses on unseen data are compared themselves.
  """

  problem: str
  optimizer: str
  beside: bool
  found: list[outcomes.Outcome]
  unseen: bool

  def scores(self, outcome: outcomes.Outcome) -> np.ndarray:
    """What is shown of each setting, inf where a seed diverged, [R]."""
    beside = outcome.test_scores if self.beside else None
    return outcome.scores if beside is None else beside

  def curves(self, outcome: outcomes.Outcome) -> tuple[np.ndarray, np.ndarray]:
    """Updates done, [E], and what is shown of each setting there, [R, E]."""
    test = outcome.test if self.beside else None
    shown = outcome if test is None else test
    return shown.steps, shown.curves


DrawPanel = Callable[[drawing.Axes, Panel], None]


class Picture(NamedTuple):
  """A picture of the comparison: a panel for each problem and optimizer.

  Attributes:
    file: its name, without a suffix.
    draw: draws one panel.
    title: the whole picture's.
    x_label: of the lowest panels.
    y_label: of the leftmost panels.
    of_loss: whether losses are drawn; those on unseen data have a row, too.
  """

  file: str
  draw: DrawPanel
  title: str
  x_label: str
  y_label: str
  of_loss: bool = True


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
  if not standings.panels:
    return {}
  pictures = UNSEEN_PICTURES if standings.unseen else PICTURES
  return {
    picture.title: _plot(folder / f'{picture.file}.png', standings, picture)
    for picture in pictures
  }


def _plot(
  path: pathlib.Path, standings: standings_lib.Standings, picture: Picture
) -> str:
  fig = _draw(standings, picture)
  files.write_bytes(path, drawing.to_png(drawing.pixels_of(fig)))
  fig.suptitle('')  # the page says it
  return inline_svg.draw(fig, picture.title)


def _draw(
  standings: standings_lib.Standings, picture: Picture
) -> drawing.figure.Figure:
  rows = _list_rows(standings, picture)
  optimizers = list(dict.fromkeys(o for _, o in standings.panels))
  width = 1.5 + max(7.0, 4.2 * len(optimizers))
  fig = drawing.figure.Figure(
    figsize=(width, 1.4 + 2.7 * len(rows)),
    dpi=100,
    layout='constrained',
  )
  panels = fig.subplots(len(rows), len(optimizers), squeeze=False, sharex='row')
  fig.suptitle(picture.title, fontsize=11, wrap=True)
  handles: dict[str, drawing.Artist] = {}
  for i, (problem, beside) in enumerate(rows):
    for j, optimizer in enumerate(optimizers):
      axes = panels[i, j]
      if (problem, optimizer) not in standings.panels:
        axes.set_axis_off()
        continue
      panel = _make_panel(standings, problem, optimizer, beside)
      picture.draw(axes, panel)
      parts = problem, optimizer, 'unseen data' if beside else ''
      _label(axes, ', '.join(filter(None, parts)))
      if j == 0:
        label = _y_label(picture, standings, problem, beside)
        axes.set_ylabel(label, fontsize=9)
      if i == len(rows) - 1:
        axes.set_xlabel(picture.x_label, fontsize=9)
      lines, names = axes.get_legend_handles_labels()
      handles |= dict(zip(names, lines, strict=True))
  fig.legend(
    list(handles.values()),
    list(handles),
    loc='outside lower center',
    ncols=max(1, min(int(width / 2.4), len(handles))),
    fontsize=9,
  )
  return fig


def _list_rows(
  standings: standings_lib.Standings, picture: Picture
) -> list[tuple[str, bool]]:
  """The problems, each again where the loss on unseen data is beside."""
  tested = {
    problem
    for (problem, _, _), outcome in standings.outcomes.items()
    if outcome.test is not None and picture.of_loss
  }
  return [
    (problem, beside)
    for problem in dict.fromkeys(p for p, _ in standings.panels)
    for beside in ((False, True) if problem in tested else (False,))
  ]


def _make_panel(
  standings: standings_lib.Standings,
  problem: str,
  optimizer: str,
  beside: bool,
) -> Panel:
  keys = [
    (problem, name, method)
    for method in methods_lib.METHODS
    for name in dict.fromkeys((optimizer, ''))
  ]
  known = standings.outcomes
  found = [known[key] for key in keys if key in known]
  if beside:
    found = [outcome for outcome in found if outcome.test is not None]
  return Panel(problem, optimizer, beside, found, standings.unseen)


def _label(axes: drawing.Axes, title: str) -> None:
  axes.set_title(title, fontsize=10)
  axes.tick_params(which='both', labelsize=8)
  axes.grid(True, alpha=0.25)


def _y_label(
  picture: Picture,
  standings: standings_lib.Standings,
  problem: str,
  beside: bool,
) -> str:
  """A row's label; below that of a loss is its unit, where it is known."""
  name = standings_lib.UNSEEN if beside else picture.y_label
  unit = standings.loss_label(problem) if picture.of_loss else ''
  return f'{name}\n{unit}'.strip()


def _by_rate(
  outcome: outcomes.Outcome, scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Learning rates and scores; a rate's decay is picked by held-out loss."""
  rates = np.array(outcome.cell.learning_rates)
  if outcome.held_out is None:
    return rates, scores
  by_loss = np.argsort(np.mean(outcome.held_out.losses, axis=1), kind='stable')
  best = {rates[i]: scores[i] for i in by_loss[::-1]}
  found = sorted(best)
  return np.array(found), np.array([best[rate] for rate in found])


def _style(cell: cells.Cell) -> dict[str, Any]:
  """A method's line: its colour, dashed where the best of a grid counts."""
  method = methods_lib.METHODS[cell.method]
  subject = cell.method == methods_lib.SUBJECT
  return {
    'color': method.color,
    'linestyle': method.line,
    'linewidth': 2.0 if subject else 1.2,
    'zorder': 3 if subject else 2,
  }


def _baseline(panel: Panel) -> outcomes.Outcome | None:
  """The constant rates of a panel's optimizer, unless all have diverged."""
  for outcome in panel.found:
    if outcome.cell.method == methods_lib.BASELINE:
      return outcome if np.isfinite(outcome.scores.min()) else None
  return None


def _draw_finals(axes: drawing.Axes, panel: Panel) -> None:
  """Draws lines over the rates; a diverged run is a cross at the upper edge.

  A method without a rate is a level line, its crosses are at the right.
  """
  axes.set(xscale='log', yscale='log')
  for place, outcome in enumerate(panel.found):
    style, scores = _style(outcome.cell), panel.scores(outcome)
    if outcome.cell.kind in _NO_RATE:
      axes.plot([], [], label=outcome.cell.method, **style)
      if np.isfinite(scores[0]):
        axes.axhline(max(scores[0], _TINY), **style)
      else:
        _cross(axes, [0.98], place, style, axes.transAxes)
    else:
      rates = _draw_over_rates(axes, outcome, scores, style)
      _cross(axes, rates, place, style, axes.get_xaxis_transform())
  best = _baseline(panel)
  if best is not None:
    axes.axhline(
      max(panel.scores(best)[best.picked], _TINY),
      color='black',
      linewidth=0.6,
      label=f'{_chosen(panel)} constant',
    )


def _chosen(panel: Panel) -> str:
  return 'picked' if panel.unseen else 'best'


def _draw_over_rates(
  axes: drawing.Axes,
  outcome: outcomes.Outcome,
  scores: np.ndarray,
  style: dict[str, Any],
) -> np.ndarray:
  """Draws a line over the rates; returns those that diverged."""
  rates, scores = _by_rate(outcome, scores)
  fine = np.isfinite(scores)
  axes.plot(
    rates,
    np.where(fine, np.maximum(scores, _TINY), np.nan),
    marker='.',
    label=outcome.cell.method,
    **style,
  )
  return rates[~fine]


def _cross(
  axes: drawing.Axes,
  at: Any,
  place: int,
  style: dict[str, Any],
  transform: Any,
) -> None:
  """Draws what diverged near the upper edge, each method at its own height.

  Args:
    axes: the panel's.
    at: along the axis of rates, one for each that diverged.
    place: the method's among those of the panel, from 0.
    style: the method's.
    transform: of the coordinates; the height is a share of the panel's.
  """
  height = np.full(len(at), 0.97 - 0.055 * place)
  axes.plot(at, height, 'x', color=style['color'], transform=transform)


def _draw_schedules(axes: drawing.Axes, panel: Panel) -> None:
  """Draws learned rates, and those that grids follow from their best rate.

  Methods with neither stay in the legend, which says so.
  """
  axes.set(yscale='log')
  for outcome in panel.found:
    cell, style = outcome.cell, _style(outcome.cell)
    if cell.kind is methods_lib.Kind.STARTS:
      curves = [outcome.learned_rates[i] for i in outcome.distinct]
    else:
      curves = _known_schedule(outcome)
    label = cell.method if curves else f'{cell.method} (no rate)'
    axes.plot([], [], label=label, **style)
    for rates in curves:
      axes.plot(outcome.steps, rates, **{**style, 'linewidth': 1})


def _known_schedule(outcome: outcomes.Outcome) -> list[np.ndarray]:
  """The schedule of a grid's best rate at each evaluation; [] without."""
  schedule = methods_lib.METHODS[outcome.cell.method].schedule
  if schedule is None or not np.isfinite(outcome.scores.min()):
    return []
  rate = outcome.cell.learning_rates[outcome.picked]
  shares = np.array(
    [schedule(s / outcome.cell.num_steps) for s in outcome.steps]
  )
  # The last is that of no update any more: 0 has no place on the axis.
  return [np.where(shares > 0, rate * shares, np.nan)]


def _draw_curves(axes: drawing.Axes, panel: Panel, *, gradients: bool) -> None:
  """Draws a line for each method, and a band over its starts.

  What diverges is cut, and has a cross at its end.
  """
  axes.set(yscale='log', xscale='log' if gradients else 'linear')
  for outcome in panel.found:
    cell, style = outcome.cell, _style(outcome.cell)
    steps, curves = panel.curves(outcome)
    x = steps * (cell.cost if gradients else 1.0)
    high = _HIGH * outcome.initial_objective or np.inf
    curves = np.clip(curves, _TINY, high)
    if cell.kind is methods_lib.Kind.STARTS:
      low, top = curves.min(axis=0), curves.max(axis=0)
      axes.fill_between(
        x, low, top, color=style['color'], alpha=0.12, linewidth=0
      )
    axes.plot(x, curves[outcome.shown], label=cell.method, **style)
    if not np.isfinite(outcome.scores[outcome.shown]):
      axes.plot(x[-1:], curves[outcome.shown, -1:], 'x', color=style['color'])


PICTURES = (
  Picture(
    'final_vs_initial_rate',
    _draw_finals,
    title='Final training objective against the learning rate that a run '
    'starts from (level lines: methods without one; crosses: diverged)',
    x_label='initial learning rate',
    y_label='final training objective',
  ),
  Picture(
    'learned_schedules',
    _draw_schedules,
    title='Learning rates learned from each initial rate (geometric mean over '
    'seeds), and the best ones of the grids',
    x_label='inner updates',
    y_label='learning rate',
    of_loss=False,
  ),
  Picture(
    'loss_curves',
    functools.partial(_draw_curves, gradients=False),
    title='Training objective along a run (mean over seeds; grids: best rate; '
    'starts: the median one, and the range of all; crosses: diverged)',
    x_label='inner updates',
    y_label='training objective',
  ),
  Picture(
    'loss_curves_by_cost',
    functools.partial(_draw_curves, gradients=True),
    title='Training objective by what it cost (a grid pays for all its rates)',
    x_label='gradient evaluations',
    y_label='training objective',
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
    title='Learning rates learned from each initial rate (geometric mean over '
    'seeds), and the picked ones of the grids',
    x_label='inner updates',
    y_label='learning rate',
    of_loss=False,
  ),
  Picture(
    'unseen_curves',
    functools.partial(_draw_curves, gradients=False),
    title='Loss on unseen data while training (mean over seeds; grids: picked '
    'by held-out loss; starts: the median one, and the range of all; crosses: '
    'diverged)',
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
