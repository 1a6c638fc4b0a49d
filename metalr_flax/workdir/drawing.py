"""The only import of matplotlib, which draws into files and nowhere else.

Jupyter names a module of its own in MPLBACKEND, for every process that it
starts, and matplotlib cannot be imported where that module is not installed.
"""

import contextlib
import io
import os

import numpy as np

_backend = os.environ.pop('MPLBACKEND', None)
try:
  import matplotlib
  from matplotlib import figure
  from matplotlib import image
  from matplotlib import rc_context
  from matplotlib import ticker
  from matplotlib.artist import Artist
  from matplotlib.axes import Axes
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.backends.backend_svg import FigureCanvasSVG
finally:
  if _backend is not None:
    os.environ['MPLBACKEND'] = _backend
if _backend:
  with contextlib.suppress(ValueError):  # what matplotlib itself would do
    matplotlib.rcParams['backend'] = _backend

# An SVG file's own account of itself names pages of the network.
_NO_METADATA = dict.fromkeys(('Creator', 'Date', 'Format', 'Type'))

__all__ = [
  'Artist', 'Axes', 'FigureCanvasAgg', 'figure', 'pixels_of', 'plain',
  'rc_context', 'thousands', 'ticker', 'to_png', 'to_svg',
]  # fmt: skip


def plain(text: str) -> str:
  """A text to be drawn letter by letter: between two $ would be a formula."""
  return text.replace('$', r'\$')


def thousands() -> ticker.Formatter:
  """Whole numbers with a comma before each three digits."""
  return ticker.StrMethodFormatter('{x:,.0f}')


def pixels_of(fig: figure.Figure) -> np.ndarray:
  """Draws a figure as pixels, uint8 [height, width, 4]."""
  canvas = FigureCanvasAgg(fig)
  canvas.draw()
  return np.asarray(canvas.buffer_rgba())


def to_png(pixels: np.ndarray) -> bytes:
  """The PNG file of pixels, uint8 [height, width, 4]."""
  png = io.BytesIO()
  image.imsave(png, pixels, format='png')
  return png.getvalue()


def to_svg(fig: figure.Figure, salt: str) -> str:
  """The SVG file of a figure, its letters as text.

  Args:
    fig: the figure.
    salt: what the file's ids are made with: the same, the same ids.

  Returns:
    The file's content.
  """
  svg = io.StringIO()
  with rc_context({'svg.fonttype': 'none', 'svg.hashsalt': salt}):
    FigureCanvasSVG(fig).print_svg(svg, metadata=_NO_METADATA)
  return svg.getvalue()
