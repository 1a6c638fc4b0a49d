"""Several processes of the trainer on loopback, each with devices of its own."""

import collections
import concurrent.futures
import socket
import subprocess
import sys
import time

import runs

LIMIT = 300.0
PATIENCE = (60, 15)  # seconds for those that are missing, and that are silent
Ended = collections.namedtuple('Ended', 'status out err')
# The same program, with less patience for processes that are missing.
PROGRAM = """
import sys
from metalr_flax import main
from metalr_flax.processes import joining
joining.JOIN_SECS = {join_secs}
sys.exit(main.main())
"""


def free_port():
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    return free.getsockname()[1]


def cluster(index, count, port):
  """The flags of one of several processes."""
  return [
    '--distributed',
    f'--coordinator=127.0.0.1:{port}',
    f'--num_processes={count}',
    f'--process_id={index}',
  ]


def start(argv, join_secs=120):
  """Starts one process, as a user would."""
  return subprocess.Popen(
    [sys.executable, '-c', PROGRAM.format(join_secs=join_secs), *argv],
    cwd=runs.ROOT,
    env=runs.environment(),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def wait(processes):
  """How each of them ended; LIMIT ends them all."""
  end = time.monotonic() + LIMIT
  try:
    texts = [
      p.communicate(timeout=max(0.1, end - time.monotonic())) for p in processes
    ]
  finally:
    for process in processes:
      process.kill()
  return [
    Ended(p.returncode, *text) for p, text in zip(processes, texts, strict=True)
  ]


def together(
  servers,
  workdir,
  count=2,
  devices=2,
  *,
  config='digits_mlp',
  fields=None,
  **orders,
):
  """Trains in `count` processes of the torture's servers, at most two.

  One process, too, adds up with gloo: in another order than XLA alone does.

  Args:
    servers: see `harness.Servers`.
    workdir: of the run.
    count: how many processes.
    devices: of each.
    config: its name.
    fields: of it.
    **orders: what to do to process 0 (`first`) or 1 (`second`).

  Returns:
    What came of each of them.
  """
  port = free_port()

  def run(index):
    return servers.run(
      workdir,
      fields,
      config=config,
      flags=cluster(index, count, port),
      devices=devices,
      patience=PATIENCE,
      **orders.get(('first', 'second')[index], {}),
    )

  with concurrent.futures.ThreadPoolExecutor(count) as pool:
    return [*pool.map(run, range(count))]


def line(text):
  """The error line of a process: ours, beside what JAX itself says."""
  assert 'Traceback' not in text, text
  ours = [t for t in text.splitlines() if t.startswith('metalr_flax: ')]
  found = [t for t in ours if ': error: ' in t or ': interrupted: ' in t]
  assert len(found) == 1, text
  return found[0]
