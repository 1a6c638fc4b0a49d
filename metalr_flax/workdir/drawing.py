"""The only import of matplotlib, which draws into files and nowhere else.

Jupyter names a module of its own in MPLBACKEND, for every process that it
starts, and matplotlib cannot be imported where that module is not installed.
"""

import contextlib
import os

_backend = os.environ.pop('MPLBACKEND', None)
try:
  import matplotlib
  from matplotlib import figure
  from matplotlib import image
  from matplotlib import ticker
  from matplotlib.artist import Artist
  from matplotlib.axes import Axes
  from matplotlib.backends.backend_agg import FigureCanvasAgg
finally:
  if _backend is not None:
    os.environ['MPLBACKEND'] = _backend
if _backend:
  with contextlib.suppress(ValueError):  # what matplotlib itself would do
    matplotlib.rcParams['backend'] = _backend

__all__ = [
  'Artist', 'Axes', 'FigureCanvasAgg', 'figure', 'image', 'ticker',
]  # fmt: skip
