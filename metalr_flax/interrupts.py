"""SIGTERM and SIGINT: the first asks to stop, the second stops at once."""

import os
import signal
import time
import types

# `timeout` and some schedulers signal a process and then its whole group.
_SAME_SECS = 0.3


class StopRequest:
  """Remembers that somebody asked the run to stop.

  Attributes:
    name: the signal's name, empty while nobody asked.
  """

  def __init__(self) -> None:
    self.name = ''
    self._time = 0.0

  def install(self) -> 'StopRequest':
    """Takes over both signals from their default handlers."""
    for number in (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, self._handle)
    return self

  def _handle(self, number: int, frame: types.FrameType | None) -> None:
    del frame
    if not self.name:
      self._time = time.monotonic()
      self.name = signal.Signals(number).name
    elif time.monotonic() - self._time >= _SAME_SECS:
      signal.signal(number, signal.SIG_DFL)
      os.kill(os.getpid(), number)

  def __bool__(self) -> bool:
    return bool(self.name)
