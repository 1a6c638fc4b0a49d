"""Ends a process of several with its own line and status, whatever JAX does.

JAX's client aborts its process at once where the coordination service of
process 0 does not answer, or is gone. It has no other way to say so: its
callback cannot be a function of Python's, and a handler of `signal`'s would
run too late.
"""

import atexit
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


def skip_finalization(status: int) -> None:
  """Ends the process with a status where the interpreter would be torn down.

  Threads that wait in JAX's C++ code come back to Python during the teardown
  and are ended there; C++ then aborts the process, now and then.

  Args:
    status: of the process.
  """
  atexit.register(_exit, status)


def _exit(status: int) -> None:
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError, ValueError):
      stream.flush()
  os._exit(status)


def end(error: errors.MetalrError) -> None:
  """Says why and ends the process at once, whatever its threads do."""
  with contextlib.suppress(OSError):
    print(f'metalr_flax: error: {error}', file=sys.stderr, flush=True)
  os._exit(error.status)
