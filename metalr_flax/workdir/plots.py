"""Pictures of a run."""

from collections.abc import Mapping
import io
import pathlib

import numpy as np

from metalr_flax.workdir import drawing
from metalr_flax.workdir import files


def plot_learned(
  path: pathlib.Path,
  *,
  optimizer: str,
  learned: Mapping[str, tuple[np.ndarray, np.ndarray]],
  progress: tuple[str, np.ndarray, np.ndarray],
) -> np.ndarray:
  """Draws what was learned above and what came of it below.

  Args:
    path: the PNG file to write.
    optimizer: the inner optimizer's name for the title, e.g. 'RMSProp'.
    learned: by hyperparameter name, inner steps and values.
    progress: label, inner steps and values of the lower panel.

  Returns:
    The picture, uint8 [height, width, 4].
  """
  fig = drawing.figure.Figure(figsize=(8, 6), dpi=120, layout='constrained')
  canvas = drawing.FigureCanvasAgg(fig)
  upper, lower = fig.subplots(2, 1, sharex=True)
  names = [name.replace('_', ' ') for name in learned]
  whose = names[0] if len(names) == 1 else 'hyperparameters'
  fig.suptitle(f"Meta-learning {optimizer}'s {whose}")
  for name, (steps, values) in zip(names, learned.values(), strict=True):
    upper.step(steps, values, where='post', color=None, label=name)
  upper.set_ylabel(names[0] if len(names) == 1 else 'value')
  if len(names) > 1:
    upper.legend()
  label, steps, values = progress
  lower.plot(steps, values, color='tab:orange', linewidth=0.8)
  lower.set_ylabel(label)
  lower.set_xlabel('inner updates')
  for axes in (upper, lower):
    _set_log_scale(axes)
  canvas.draw()
  pixels = np.asarray(canvas.buffer_rgba())
  png = io.BytesIO()
  drawing.image.imsave(png, pixels, format='png')
  files.write_bytes(path, png.getvalue())
  return pixels


def _set_log_scale(axes: drawing.Axes) -> None:
  """A log scale with plain numbers, several of them on a short range too."""
  if not np.isfinite(axes.dataLim.minposy):
    return  # nothing to show yet, or nothing above 0
  axes.set_yscale('log')
  axes.grid(True, which='both', alpha=0.25)
  axes.yaxis.set_major_formatter(drawing.ticker.StrMethodFormatter('{x:g}'))
  low, high = axes.get_ylim()
  if high < 10 * low:
    axes.yaxis.set_major_locator(drawing.ticker.MaxNLocator(6))
    axes.yaxis.set_minor_locator(drawing.ticker.NullLocator())
