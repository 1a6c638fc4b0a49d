"""Runs trainings in forks of a process that has imported everything.

Reads a JSON object a line: `argv`, `output` (a file), and optionally `fault`
(arguments of the shim), `after` (seconds until `signal` is sent, twice where
`again`), `retry_secs`, `patience` (instead of the program's own),
`devices` (how many). Answers each with a line: exit status (negative: killed by
that signal), seconds. JAX starts its threads in the child alone.
"""

import ctypes
import json
import os
import sys
import time

import jax
import sklearn.datasets  # noqa: F401

from metalr_flax import audit  # noqa: F401  imports all there is
from metalr_flax import main
from metalr_flax.config import flags  # noqa: F401
from metalr_flax.processes import joining
from metalr_flax.trainer import launch  # noqa: F401
from metalr_flax.trainer import loop  # noqa: F401
from metalr_flax.trainer import run_page  # noqa: F401
from metalr_flax.workdir import files
from metalr_flax.workdir import report  # noqa: F401

ACTIONS = {'nothing': 0, 'kill': 1, 'torn': 2, 'fail': 3, 'signal': 4}


def arm(fault):
  log = -1
  if fault.get('log'):
    log = os.open(fault['log'], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
  ctypes.CDLL(None).shim_arm(
    fault.get('kind', '*').encode(),
    fault['pattern'].encode(),
    ctypes.c_long(fault.get('ordinal', 0)),
    ACTIONS[fault.get('action', 'nothing')],
    fault.get('errno', 0),
    int(fault.get('persistent', False)),
    fault.get('fired', '/dev/null').encode(),
    log,
  )


def child(order):
  output = os.open(order['output'], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
  os.dup2(output, 1)
  os.dup2(output, 2)
  if order.get('x64'):
    jax.config.update('jax_enable_x64', True)
  if order.get('retry_secs'):
    files.RETRY_SECS = tuple(order['retry_secs'])
  if order.get('patience'):
    joining.JOIN_SECS, joining.HEARTBEAT_SECS = order['patience']
  if order.get('devices'):
    jax.config.update('jax_num_cpu_devices', order['devices'])
  if order.get('fault'):
    arm(order['fault'])
  status = 1
  try:
    status = main.main(order['argv'])
  except SystemExit as error:
    status = error.code
  except BaseException:
    import traceback

    traceback.print_exc()
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


def wait(process, order):
  begun = time.monotonic()
  pending = []
  if 'after' in order:
    pending = [(order['after'], order['signal'])]
    if order.get('again') is not None:
      pending.append((order['after'] + order['again'], order['signal']))
  while True:
    done, status = os.waitpid(process, os.WNOHANG if pending else 0)
    if done:
      return os.waitstatus_to_exitcode(status), time.monotonic() - begun
    if time.monotonic() - begun >= pending[0][0]:
      os.kill(process, pending.pop(0)[1])
    else:
      time.sleep(0.002)


def serve():
  for line in sys.stdin:
    order = json.loads(line)
    process = os.fork()
    if not process:
      child(order)
    status, secs = wait(process, order)
    print(json.dumps({'status': status, 'secs': secs}), flush=True)


if __name__ == '__main__':
  print('ready', flush=True)
  serve()
