"""A process of several ends with its own status, whatever JAX does."""

import subprocess
import sys

import runs

PROGRAM = """
import atexit
from metalr_flax.processes import aborts

atexit.register(print, 'torn down')  # runs after those that come later
aborts.skip_finalization(3)
print('said', end='')
"""


def test_the_interpreter_is_not_torn_down_and_nothing_said_is_lost():
  done = subprocess.run(
    [sys.executable, '-c', PROGRAM],
    env=runs.environment(),
    stdout=subprocess.PIPE,
    text=True,
    check=False,
  )
  assert (done.returncode, done.stdout) == (3, 'said')
