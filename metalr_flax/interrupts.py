"""Signals that ask a run to stop: the first does, the second stops at once.

A terminal that is closed sends SIGHUP, once or several times; nobody is there
to be impatient, so that a second one is ignored.
"""

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
    """Takes over SIGTERM, SIGINT and SIGHUP from their default handlers.

    SIGHUP is left alone where it is ignored, as `nohup` arranges it.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, self._handle)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
      signal.signal(signal.SIGHUP, self._handle)
    return self

  def _handle(self, number: int, frame: types.FrameType | None) -> None:
    del frame
    if not self.name:
      self._time = time.monotonic()
      self.name = signal.Signals(number).name
    elif (
      number != signal.SIGHUP and time.monotonic() - self._time >= _SAME_SECS
    ):
      signal.signal(number, signal.SIG_DFL)
      os.kill(os.getpid(), number)

  def __bool__(self) -> bool:
    return bool(self.name)
