"""Pictures of a comparison.

Each is a grid of panels, a row for a problem and a column for an optimizer,
which a run's single panel has nothing in common with.
"""

from collections.abc import Callable, Sequence
import io
import pathlib

import numpy as np

from metalr_flax.comparison import cells
from metalr_flax.comparison import outcomes
from metalr_flax.comparison import standings as standings_lib
from metalr_flax.workdir import drawing
from metalr_flax.workdir import files

COLORS = {
  'constant': 'tab:gray',
  'cosine': 'tab:blue',
  'self_tuning': 'tab:orange',
  'trainer': 'tab:green',
}
_DASHES = {**dict.fromkeys(cells.GRID, '--')}
_TINY = 1e-12  # where a logarithmic axis ends
DrawPanel = Callable[[drawing.Axes, str, str], None]


def plot_all(folder: pathlib.Path, standings: standings_lib.Standings) -> None:
  """Draws every picture there are cells for.

  Args:
    folder: where the PNG files go.
    standings: all finished cells.
  """
  if not standings.pairs:
    return

  def finals(axes: drawing.Axes, problem: str, optimizer: str) -> None:
    _draw_finals(axes, standings, problem, optimizer)

  def schedules(axes: drawing.Axes, problem: str, optimizer: str) -> None:
    _draw_schedules(axes, standings, problem, optimizer)

  def curves(axes: drawing.Axes, problem: str, optimizer: str) -> None:
    _draw_curves(axes, standings, problem, optimizer, gradients=False)

  def costs(axes: drawing.Axes, problem: str, optimizer: str) -> None:
    _draw_curves(axes, standings, problem, optimizer, gradients=True)

  _plot(
    folder / 'final_vs_initial_rate.png',
    standings,
    finals,
    title='Final objective against the learning rate that a run starts from',
    x_label='initial learning rate',
    y_label='final objective',
  )
  _plot(
    folder / 'learned_schedules.png',
    standings,
    schedules,
    title='Learning rates learned from each initial rate '
    '(geometric mean over seeds; dotted: the best constant)',
    x_label='inner updates',
    y_label='learning rate',
  )
  _plot(
    folder / 'loss_curves.png',
    standings,
    curves,
    title='Objective while training (mean over seeds; grids: best rate; the '
    'others: median start, and the range of all starts)',
    x_label='inner updates',
    y_label='objective',
  )
  _plot(
    folder / 'loss_curves_by_cost.png',
    standings,
    costs,
    title='Objective by what it cost (a grid pays for all its rates)',
    x_label='gradient evaluations',
    y_label='objective',
  )


def _plot(
  path: pathlib.Path,
  standings: standings_lib.Standings,
  draw: DrawPanel,
  *,
  title: str,
  x_label: str,
  y_label: str,
) -> None:
  problems = list(dict.fromkeys(p for p, _ in standings.pairs))
  optimizers = list(dict.fromkeys(o for _, o in standings.pairs))
  rows, columns = len(problems), len(optimizers)
  fig = drawing.figure.Figure(
    figsize=(1.5 + 3.6 * columns, 1.2 + 2.3 * rows),
    dpi=100,
    layout='constrained',
  )
  canvas = drawing.FigureCanvasAgg(fig)
  panels = fig.subplots(rows, columns, squeeze=False, sharex='row')
  fig.suptitle(title, fontsize=11, wrap=True)
  handles: dict[str, drawing.Artist] = {}
  for i, problem in enumerate(problems):
    for j, optimizer in enumerate(optimizers):
      axes = panels[i, j]
      if (problem, optimizer) in standings.pairs:
        draw(axes, problem, optimizer)
      if not axes.has_data():
        axes.set_axis_off()
      axes.set_title(f'{problem}, {optimizer}', fontsize=9)
      axes.tick_params(which='both', labelsize=7)
      axes.grid(True, alpha=0.25)
      if j == 0:
        axes.set_ylabel(y_label, fontsize=8)
      if i == rows - 1:
        axes.set_xlabel(x_label, fontsize=8)
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
  png = io.BytesIO()
  canvas.print_png(png)
  files.write_bytes(path, png.getvalue())


def _found(
  standings: standings_lib.Standings,
  problem: str,
  optimizer: str,
  methods: Sequence[str],
) -> list[tuple[str, outcomes.Outcome]]:
  keys = [(method, (problem, optimizer, method)) for method in methods]
  return [
    (method, standings.outcomes[key])
    for method, key in keys
    if key in standings.outcomes
  ]


def _draw_finals(
  axes: drawing.Axes,
  standings: standings_lib.Standings,
  problem: str,
  optimizer: str,
) -> None:
  """Lines over the rate; a diverged one is a cross at the upper edge."""
  axes.set(xscale='log', yscale='log')
  methods = (*cells.GRID, *cells.STARTED)
  for method, outcome in _found(standings, problem, optimizer, methods):
    rates = np.array(outcome.cell.learning_rates)
    scores = outcome.scores
    fine = np.isfinite(scores)
    axes.plot(
      rates,
      np.where(fine, np.maximum(scores, _TINY), np.nan),
      _DASHES.get(method, '-'),
      color=COLORS[method],
      marker='.',
      label=method,
    )
    axes.plot(
      rates[~fine],
      np.full(np.sum(~fine), 0.97),
      'x',
      color=COLORS[method],
      transform=axes.get_xaxis_transform(),
    )
  best = standings.best(problem, optimizer, 'constant')
  if best is not None and np.isfinite(best.score):
    level = max(best.score, _TINY)
    axes.axhline(level, color='black', linewidth=0.6, label='best constant')


def _draw_schedules(
  axes: drawing.Axes,
  standings: standings_lib.Standings,
  problem: str,
  optimizer: str,
) -> None:
  axes.set(yscale='log')
  found = _found(standings, problem, optimizer, cells.STARTED)
  for method, outcome in found:
    for i, rates in enumerate(outcome.learned):
      axes.plot(
        outcome.steps,
        rates,
        color=COLORS[method],
        linewidth=1,
        label=method if i == 0 else None,
      )
  best = standings.best(problem, optimizer, 'constant')
  if found and best is not None and np.isfinite(best.score):
    axes.axhline(
      best.learning_rate,
      color='black',
      linestyle=':',
      linewidth=1,
      label='best constant rate',
    )


def _draw_curves(
  axes: drawing.Axes,
  standings: standings_lib.Standings,
  problem: str,
  optimizer: str,
  *,
  gradients: bool,
) -> None:
  """A line for each method, and a band over its starts."""
  axes.set(yscale='log', xscale='log' if gradients else 'linear')
  methods = (*cells.GRID, *cells.STARTED)
  for method, outcome in _found(standings, problem, optimizer, methods):
    cell = outcome.cell
    x = outcome.steps.astype(float)
    if gradients:
      rates = len(cell.learning_rates) if method in cells.GRID else 1
      x = x * rates * cell.gradient_evaluations / cell.num_steps
    curves = np.where(outcome.curves > 0, outcome.curves, _TINY)
    order = np.argsort(outcome.scores, kind='stable')
    if method in cells.STARTED:
      shown = curves[order[len(order) // 2]]
      low, high = curves.min(axis=0), curves.max(axis=0)
      axes.fill_between(
        x,
        low,
        np.minimum(high, 3 * outcome.start),  # the diverged end up there
        color=COLORS[method],
        alpha=0.12,
        linewidth=0,
      )
    else:
      shown = curves[order[0]]
    axes.plot(
      x,
      np.where(np.isfinite(shown), shown, np.nan),
      _DASHES.get(method, '-'),
      color=COLORS[method],
      linewidth=1.2,
      label=method,
    )
