"""Stops a run on a signal: the first saves the state, the second kills.

A closed terminal sends SIGHUP, once or several times: a second SIGHUP is
ignored, because no person sent it.
"""

import os
import signal
import time
import types

# `timeout` and some schedulers signal a process and then its whole group.
_SAME_SECS = 0.3


class StopRequest:
  """Remembers the first signal that asked the run to stop.

  Attributes:
    name: that signal's name, empty before it came.
  """

  def __init__(self) -> None:
    self.name = ''
    self._time = 0.0

  def install(self) -> 'StopRequest':
    """Takes over SIGTERM, SIGINT and SIGHUP from their default handlers.

    SIGHUP stays ignored where it was, as under `nohup`.
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
