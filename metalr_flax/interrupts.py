"""SIGTERM and SIGINT: the first asks to stop, the second stops at once."""

import os
import signal
import types


class StopRequest:
  """Remembers that somebody asked the run to stop.

  Attributes:
    name: the signal's name, empty while nobody asked.
  """

  def __init__(self) -> None:
    self.name = ''

  def install(self) -> 'StopRequest':
    """Takes over both signals from their default handlers."""
    for number in (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, self._handle)
    return self

  def _handle(self, number: int, frame: types.FrameType | None) -> None:
    del frame
    if self.name:
      signal.signal(number, signal.SIG_DFL)
      os.kill(os.getpid(), number)
    self.name = signal.Signals(number).name

  def __bool__(self) -> bool:
    return bool(self.name)
