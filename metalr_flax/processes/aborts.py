"""Ends a process with a line of its own where JAX aborts it.

JAX's client aborts its process at once where the coordination service of
process 0 does not answer, or is gone. It has no other way to say so: its
callback cannot be a function of Python's, and a handler of `signal`'s would
run too late.
"""

from collections.abc import Callable
import contextlib
import ctypes
import os
import signal
import sys
from typing import Any

from metalr_flax import errors

_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)
_handlers: list[Any] = []  # C's own references do not count


def on_abort(action: Callable[[], None]) -> None:
  """Calls a function when the process is aborted, in the thread that is.

  Args:
    action: ends the process; where it returns, the abort goes on.
  """
  handler = _HANDLER(lambda number: action())
  _handlers.append(handler)
  ctypes.CDLL(None).signal(signal.SIGABRT, handler)


def end(error: errors.MetalrError) -> None:
  """Says why and ends the process at once, whatever its threads do."""
  with contextlib.suppress(OSError):
    print(f'metalr_flax: error: {error}', file=sys.stderr, flush=True)
  os._exit(error.status)
