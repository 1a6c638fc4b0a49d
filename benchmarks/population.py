"""What a member of a population costs, beside the same run alone.

  python benchmarks/population.py [--quick] [--rounds=5]

Both sides are done in turn, medians and ratios of the pairs:
1. whole commands, from the process's start to its end, with all that they
   write: configs/default.py with 64 seeds in one population, and with one seed;
2. the training loops alone: the compiled chunks of the same two, one after the
   other, their metrics fetched; and those of configs/digits_mlp.py with 16
   seeds, whose step keeps a core busy by itself.
A ratio is the time of the population, divided by its members, over that of the
run alone: of the clock, and of the processor, whose seconds are steadier where
the machine has other work. Writes benchmarks/results/population.json and .md.
"""

import argparse
from collections.abc import Callable
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np

from metalr_flax.config import flags
from metalr_flax.trainer import build
from metalr_flax.trainer import launch

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / 'benchmarks/results'
LOOPS = {'default': (64, 2000), 'digits_mlp': (16, 100)}  # members, outer steps
COMMAND = 'default'
QUICK = {'default': (4, 200), 'digits_mlp': (2, 4)}
Secs = tuple[float, float]  # of the clock, of the processor


def arguments(name: str, members: int) -> list[str]:
  """The command line of a config, as a population where there are members."""
  own = [f'--config.population={{"seed": {members}}}'] if members else []
  return [f'--config={ROOT}/configs/{name}.py', *own]


def time_command(name: str, members: int, steps: int) -> Secs:
  """Seconds of a whole command."""
  with tempfile.TemporaryDirectory() as folder:
    command = [
      *(sys.executable, '-m', 'metalr_flax.main', *arguments(name, members)),
      f'--config.num_outer_steps={steps}',
      f'--workdir={folder}/run',
    ]
    begun, used = time.perf_counter(), _used_by_children()
    subprocess.run(
      command,
      check=True,
      cwd=ROOT,
      env={**os.environ, 'PYTHONPATH': str(ROOT)},
      capture_output=True,
    )
    return time.perf_counter() - begun, _used_by_children() - used


def _used_by_children() -> float:
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  return used.ru_utime + used.ru_stime


def make_loop(name: str, members: int, steps: int) -> Callable[[], Secs]:
  """Returns a function that trains so many steps and returns the seconds."""
  config = flags.parse('benchmark', arguments(name, members), '').config
  with build.randomness(config):
    experiment = build.build(config)
    state = experiment.init_state()
    rows = min(launch.max_rows(config), steps)
    outer_steps = launch.lower_chunk(experiment, state, rows).compile()

  def measure() -> Secs:
    nonlocal state
    begun, used = time.perf_counter(), time.process_time()
    pending = None
    for _ in range(steps // rows):
      state, chunk = outer_steps(state, np.int32(rows))
      if pending is not None:
        jax.device_get(pending)
      pending = chunk
    jax.device_get(pending)
    return time.perf_counter() - begun, time.process_time() - used

  measure()  # warm
  return measure


def compare(
  members: int,
  rounds: int,
  together: Callable[[], Secs],
  alone: Callable[[], Secs],
) -> dict[str, float]:
  """Both in turn; medians, and the ratios of the pairs for one member."""
  pairs = [(together(), alone()) for _ in range(rounds)]
  ratios, of_processor = (
    [population[i] / members / run[i] for population, run in pairs]
    for i in (0, 1)
  )
  return {
    'members': members,
    'population_secs': statistics.median(p[0] for p, _ in pairs),
    'alone_secs': statistics.median(run[0] for _, run in pairs),
    'ratio': statistics.median(ratios),
    'ratio_min': min(ratios),
    'ratio_max': max(ratios),
    'processor_ratio': statistics.median(of_processor),
    'rounds': rounds,
  }


def measure_all(
  loops: dict[str, tuple[int, int]], rounds: int
) -> dict[str, dict]:
  """Every comparison, by what is compared."""
  members, steps = loops[COMMAND]
  found = {
    f'{COMMAND}, the whole command': compare(
      members,
      rounds,
      lambda: time_command(COMMAND, members, steps),
      lambda: time_command(COMMAND, 0, steps),
    )
  }
  for name, (members, steps) in loops.items():
    found[f'{name}, the training loop'] = compare(
      members,
      rounds,
      make_loop(name, members, steps),
      make_loop(name, 0, steps),
    )
  return found


def to_markdown(results: dict[str, dict]) -> str:
  """The table of the results."""
  head = (
    '| config | members | population | run alone | a member over a run | of '
    "the processor's seconds |\n|---|---|---|---|---|---|\n"
  )
  return head + ''.join(
    f'| {name} | {row["members"]} | {row["population_secs"]:.3g} s '
    f'| {row["alone_secs"]:.3g} s | {row["ratio"]:.3f}x '
    f'({row["ratio_min"]:.3f} to {row["ratio_max"]:.3f}) '
    f'| {row["processor_ratio"]:.3f}x |\n'
    for name, row in results.items()
  )


def main() -> None:
  """Measures, prints a table, writes the JSON and the Markdown."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument(
    '--quick', action='store_true', help='few steps, no files'
  )
  parser.add_argument('--rounds', type=int, default=5)
  given = parser.parse_args()
  quick = given.quick
  results = measure_all(*((QUICK, 1) if quick else (LOOPS, given.rounds)))
  table = to_markdown(results)
  print(table, end='')
  if quick:
    return
  machine = (
    f'{platform.machine()}, {os.cpu_count()} cores, jax {jax.__version__}'
  )
  content = {'results': results, 'machine': machine}
  (RESULTS / 'population.json').write_text(json.dumps(content, indent=2) + '\n')
  (RESULTS / 'population.md').write_text(table)


if __name__ == '__main__':
  main()
