"""The results of held_out.py as tables and as a plot."""

import pathlib
from typing import Any

from held_out_scores import LIMIT
from held_out_scores import MODES
from held_out_scores import SEARCHES
from held_out_searches import BATCH
from held_out_searches import COST
from held_out_searches import DRAWS
from matplotlib import figure


def to_markdown(results: dict[str, Any]) -> str:
  """What a person reads."""
  parts = [f'# Learning rate and weight decay from held-out data\n\n{INTRO}']
  for mode, title in MODES.items():
    parts.append(f'## {title[0].upper()}{title[1:]}\n')
    parts.append(overall_table(results['overall'][mode]))
    parts.append(cell_table(results['cells'], mode))
  versions = ', '.join(f'{k} {v}' for k, v in results['versions'].items())
  parts.append(
    f'{results["seeds"]} seeds, {results["steps"]} updates, batches of '
    f'{BATCH}; {versions}.\n'
  )
  return '\n'.join(parts)


INTRO = f"""`self_tuning` learns both in one run, from a held-out gradient at
every fourth update; searches pick from {DRAWS} settings by held-out loss. All
numbers but the draws are ratios of test losses, geometric means over seeds
and, for `self_tuning`, over two starts, which come to the same: below 1,
`self_tuning` is better. One
run of it costs {COST} T gradient evaluations (T is one training run), a grid or
random search 30 T, successive halving 9.6 T. One draw: a single random setting,
what a search gets for about the same cost. Draws until level: how many random
settings must be tried until the best of them by held-out loss is as good, in
the mean over all orders; 1 where one run of `self_tuning` is no better than a
single draw. Everyone trains on the training examples alone.
Training gradient: `self_tuning` of the rate alone, without held-out data, over
the grid. A test loss counts as at most {LIMIT:g} times the untrained model's.

    python benchmarks/held_out.py
"""


def overall_table(found: dict[str, Any]) -> str:
  """The figures over all cells."""
  names = {**SEARCHES, 'one_draw': 'one draw'}
  lines = [
    '| ratio of test losses | mean | worst | 1.005 or less |',
    '|---|---|---|---|',
  ]
  rows = {f'ours / {names[k]}': v for k, v in found['ours_over'].items()}
  rows['training gradient / grid'] = found['training_over_grid']
  lines += [
    f'| {k} | {v["mean"]:.3f} | {v["worst"]:.3f} | {v["level"]:.0%} |'
    for k, v in rows.items()
  ]
  until = found['runs_until_level']
  shown = '; '.join(
    f'{SEARCHES[k]} {n or f"more than {DRAWS}"}' for k, n in until.items()
  )
  return '\n'.join(lines) + (
    f'\n\nRuns until a search is level over all cells: {shown}. By cell, '
    f'random search is not level within {DRAWS} draws in '
    f'{found["cells_never_level"]} of {found["cells"]}, and is with a single '
    f'draw in {found["cells_level_at_one_draw"]}.\n'
  )


def cell_table(cells: list[dict[str, Any]], mode: str) -> str:
  """A row for each task and optimizer."""
  titles = [f'/ {title}' for title in SEARCHES.values()]
  head = ['task', 'optimizer', 'test loss', *titles, '/ one draw']
  head += ['draws until level', 'training gradient / grid']
  lines = [f'| {" | ".join(head)} |', f'|{"---|" * len(head)}']
  for cell in cells:
    row = cell[mode]
    ratios = [*row['ours_over'].values(), row['ours_over_one_draw']]
    shown = [cell['task'], cell['optimizer'], f'{row["test_loss"]["ours"]:.4f}']
    shown += [f'{ratio:.3f}' for ratio in ratios]
    shown.append(str(row['draws_until_level'] or f'> {DRAWS}'))
    shown.append(f'{row["training_over_grid"]:.3f}')
    lines.append(f'| {" | ".join(shown)} |')
  return '\n'.join(lines) + '\n'


def plot(results: dict[str, Any], path: pathlib.Path) -> None:
  """Draws test loss against cost, a panel for each mode."""
  fig = figure.Figure(figsize=(10, 4.2), layout='constrained')
  panels = fig.subplots(1, 2)
  for axes, (mode, title) in zip(panels, MODES.items(), strict=True):
    draw_panel(axes, results['overall'][mode])
    axes.set_title(title[0].upper() + title[1:])
  handles, labels = panels[0].get_legend_handles_labels()
  fig.legend(handles, labels, loc='outside lower center', ncols=5)
  fig.savefig(path, dpi=120)


def draw_panel(axes: Any, found: dict[str, Any]) -> None:
  """Draws the searches' curves, and halving and ours as points."""
  styles = {'random': '-', 'grid': '--', 'cosine': ':'}
  for key, style in styles.items():
    losses = found['over_grid_by_runs'][key]
    axes.plot(range(1, len(losses) + 1), losses, style, label=SEARCHES[key])
  halved = found['halving_cost'], found['halving_over_grid']
  axes.plot(*halved, 's', label=SEARCHES['halving'])
  ours = found['ours_over']['grid']['mean']
  axes.plot(COST, ours, '*', markersize=13, label='self_tuning, held-out')
  axes.set(xscale='log', yscale='log')
  ticks = (1, 2, 5, 10, 30)
  axes.set_xticks(ticks, [str(t) for t in ticks])
  low, high = axes.get_ylim()
  heights = [h for h in (0.9, 1, 1.2, 1.5, 2, 3, 5) if low <= h <= high]
  axes.set_yticks(heights, [str(h) for h in heights])
  axes.minorticks_off()
  axes.set_xlabel('gradient evaluations (training runs T)')
  axes.set_ylabel("test loss (ratio to the full grid's pick)")
  axes.axhline(1, color='gray', linewidth=0.8)
  axes.grid(True, alpha=0.3)
