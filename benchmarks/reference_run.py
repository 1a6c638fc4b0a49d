"""The trainer against the notebook's bare loop, on the reference run.

  python benchmarks/reference_run.py [--rounds=9] [--processes=5]

Two comparisons, each of both sides in turn in one run, medians and ratios:
1. outer steps per second in one process: the notebook's way (one jitted outer
   step, samples drawn in Python) against the trainer's own executable in the
   chunks of configs/default.py, their metrics fetched;
2. wall-clock time of two whole commands: the bare loop's script against the
   default command with its event files, checkpoints and plot.
Writes benchmarks/results/reference_run.json.
"""

import argparse
from collections.abc import Callable
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

import jax
import notebook_loop
import numpy as np

from metalr_flax.config import flags
from metalr_flax.trainer import build
from metalr_flax.trainer import launch

ROOT = pathlib.Path(__file__).parent.parent
CONFIG = ROOT / 'configs/default.py'
NOTEBOOK_STEPS = 200
TRAINER_STEPS = 2000


def time_notebook() -> Callable[[], float]:
  """Returns a function that measures the notebook's steps per second."""
  outer_step, carry, stream = notebook_loop.start()
  carry, _ = notebook_loop.loop(outer_step, carry, stream, 20)  # compiles

  def measure() -> float:
    nonlocal carry
    begun = time.perf_counter()
    carry, _ = notebook_loop.loop(outer_step, carry, stream, NOTEBOOK_STEPS)
    jax.block_until_ready(carry)
    return NOTEBOOK_STEPS / (time.perf_counter() - begun)

  return measure


def time_trainer() -> Callable[[], float]:
  """Returns a function that measures the trainer's steps per second."""
  config = flags.parse('benchmark', [f'--config={CONFIG}'], '').config
  experiment = build.build(config)
  state = experiment.init_state()
  rows = launch.max_rows(config)
  outer_steps = launch.lower_chunk(experiment, state, rows).compile()

  def measure() -> float:
    nonlocal state
    begun = time.perf_counter()
    pending = None
    for _ in range(TRAINER_STEPS // rows):
      state, chunk = outer_steps(state, np.int32(rows))
      if pending is not None:
        jax.device_get(pending)
      pending = chunk
    jax.device_get(pending)
    return TRAINER_STEPS / (time.perf_counter() - begun)

  return measure


def compare_loops(rounds: int) -> dict[str, float]:
  """Both loops in turn; medians and the median of the rounds' ratios."""
  with jax.threefry_partitionable(False):
    notebook, trainer = time_notebook(), time_trainer()
    pairs = [(notebook(), trainer()) for _ in range(rounds)]
  ratios = [fast / slow for slow, fast in pairs]
  return {
    'notebook_steps_per_sec': statistics.median(slow for slow, _ in pairs),
    'trainer_steps_per_sec': statistics.median(fast for _, fast in pairs),
    'ratio': statistics.median(ratios),
    'ratio_min': min(ratios),
    'ratio_max': max(ratios),
  }


def run_command(arguments: list[str]) -> float:
  """Seconds that a command takes."""
  path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
  begun = time.perf_counter()
  subprocess.run(
    [sys.executable, *arguments],
    check=True,
    cwd=ROOT,
    env={**os.environ, 'PYTHONPATH': path},
    capture_output=True,
  )
  return time.perf_counter() - begun


def compare_commands(count: int) -> dict[str, float]:
  """Both whole commands in turn, after one uncounted run of each."""
  pairs = []
  with tempfile.TemporaryDirectory() as folder:
    for i in range(count + 1):
      script = run_command(['benchmarks/notebook_loop.py'])
      command = ['-m', 'metalr_flax.main', f'--config={CONFIG}']
      trainer = run_command([*command, f'--workdir={folder}/{i}'])
      pairs.append((script, trainer))
  ratios = [trainer / script for script, trainer in pairs[1:]]
  return {
    'script_secs': statistics.median(script for script, _ in pairs[1:]),
    'command_secs': statistics.median(trainer for _, trainer in pairs[1:]),
    'ratio': statistics.median(ratios),
    'ratio_min': min(ratios),
    'ratio_max': max(ratios),
  }


def main() -> None:
  """Measures, prints a table and writes the JSON."""
  parser = argparse.ArgumentParser()
  parser.add_argument('--rounds', type=int, default=9)
  parser.add_argument('--processes', type=int, default=5)
  arguments = parser.parse_args()
  loops = compare_loops(arguments.rounds)
  print('outer steps per second, one process, in turn')
  print(f'  notebook loop  {loops["notebook_steps_per_sec"]:12,.0f}')
  print(f'  this trainer   {loops["trainer_steps_per_sec"]:12,.0f}')
  print(
    f'  ratio          {loops["ratio"]:12.0f}x   '
    f'({loops["ratio_min"]:.0f} to {loops["ratio_max"]:.0f})'
  )
  commands = compare_commands(arguments.processes)
  print('wall-clock seconds of the whole command, in turn')
  print(f'  bare script    {commands["script_secs"]:12.2f}')
  print(f'  this trainer   {commands["command_secs"]:12.2f}')
  print(
    f'  ratio          {commands["ratio"]:12.2f}    '
    f'({commands["ratio_min"]:.2f} to {commands["ratio_max"]:.2f})'
  )
  results = {
    'loops': loops,
    'commands': commands,
    'jax': jax.__version__,
    'machine': f'{platform.machine()}, {os.cpu_count()} cores',
  }
  path = ROOT / 'benchmarks/results/reference_run.json'
  path.write_text(json.dumps(results, indent=2) + '\n')


if __name__ == '__main__':
  main()
