"""Shows on a terminal which cell is trained, how far, and what is left."""

import time

from metalr_flax import console
from metalr_flax.comparison import cells


class Progress:
  """The line of a comparison; where stdout is no terminal it shows nothing.

  Attributes:
    num_cells: all that are selected, those of earlier commands too.
  """

  def __init__(self, num_cells: int):
    """Opens the line."""
    self.num_cells = num_cells
    self._line = console.open_line()
    self._left: tuple[float, float] | None = None  # seconds, and when

  def begin(self, number: int, cell: cells.Cell) -> None:
    """Shows a cell that is compiled first.

    Args:
      number: from 1, of all cells.
      cell: the cell.
    """
    self._number, self._cell = number, cell
    self._begun = time.monotonic()
    self.note(0)

  def note(self, updates: int) -> None:
    """Shows how many updates of the cell's runs are done."""
    if not self._line:
      return
    from metalr_flax import terminal

    before, total = self._number - 1, self.num_cells
    state = f'{updates}/{self._cell.num_steps}' if updates else 'compiling'
    share = (before + updates / self._cell.num_steps) / total
    self._line.show(
      lambda: terminal.Parts(
        f'cell {self._number}/{total} {100 * before // total:3}%',
        share,
        (self._cell.id, state, terminal.duration(self._elapsed())),
        self._tail(),
      )
    )

  def end(self, seconds_left: float) -> None:
    """Notes a finished cell, and the time that the others will take."""
    self._left = seconds_left, time.monotonic()

  def wait_for(self, what: str) -> None:
    """Says what is done now, instead of cells."""
    if self._line:
      self._line.show_word(what)

  def close(self) -> None:
    """Removes the line."""
    if self._line:
      self._line.close()

  def _elapsed(self) -> float:
    return time.monotonic() - self._begun

  def _tail(self) -> str:
    from metalr_flax import terminal

    if self._left is None:
      return ''
    seconds, since = self._left
    left = max(0.0, seconds - (time.monotonic() - since))
    return f'{terminal.duration(left)} left'
