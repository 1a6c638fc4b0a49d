"""How soon the first outer step is logged, and what that costs by itself.

  python benchmarks/start_up.py [--quick]

A start is timed from the process's first instant to the first row of
`metrics.csv` that a reader can see, for configs/default.py. Beside it stands
what no trainer could avoid: a process that imports jax, flax, optax and orbax
and compiles the same program, its other work not counted. Both are done in
turn, with nothing compiled before (cold) and with JAX's compilation cache
(warm); medians of the rounds, and of the ratios of the pairs. The processor's
seconds stand beside those of the clock: they are steadier where the machine has
other work. Writes benchmarks/results/start_up.json and .md.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / 'benchmarks/results'
CONFIG = ROOT / 'configs/default.py'
ROUNDS = 11
_POLL_SECS = 0.005
# Only what is between the marks is counted; the rest builds the program.
ALONE = """
import sys, time
begun = float(sys.argv[1])
import flax
from flax import nnx
import jax
import optax
import orbax.checkpoint
imported, used = time.monotonic(), time.process_time()
from metalr_flax.config import flags
from metalr_flax.trainer import build, launch
arguments = flags.parse('benchmark', ['--config=' + sys.argv[2]], '')
with build.randomness(arguments.config):
  experiment = build.build(arguments.config)
  rows = launch.max_rows(arguments.config)
  state = experiment.init_state()
  before, used_before = time.monotonic(), time.process_time()
  launch.lower_chunk(experiment, state, rows).compile()
  done, used_done = time.monotonic(), time.process_time()
print(imported - begun + done - before, used + used_done - used_before)
"""
CACHE = {
  'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
}
Secs = tuple[float, float]  # of the clock, of the processor


def environment(**changes: str) -> dict[str, str]:
  """This process's environment without its own compilation cache."""
  kept = {
    name: value
    for name, value in os.environ.items()
    if name not in ('JAX_COMPILATION_CACHE_DIR', *CACHE)
  }
  return {**kept, 'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu', **changes}


def time_alone(cache: pathlib.Path | None) -> Secs:
  """What the imports and the compilation take by themselves."""
  changes = {**CACHE, 'JAX_COMPILATION_CACHE_DIR': str(cache)} if cache else {}
  begun = time.monotonic()
  done = subprocess.run(
    [sys.executable, '-c', ALONE, repr(begun), str(CONFIG)],
    env=environment(**changes),
    capture_output=True,
    text=True,
    check=True,
  )
  clock, processor = map(float, done.stdout.split())
  return clock, processor


def time_start(caches: pathlib.Path) -> Secs:
  """Until the trainer's first row can be read."""
  with tempfile.TemporaryDirectory(dir=ROOT / 'checkpoints') as folder:
    metrics = pathlib.Path(folder) / 'run/metrics.csv'
    command = ['-m', 'metalr_flax.main', f'--config={CONFIG}']
    begun = time.monotonic()
    with subprocess.Popen(
      [
        *(sys.executable, *command),
        f'--workdir={metrics.parent}',
        '--config.num_outer_steps=100',  # it compiles the same program
      ],
      env=environment(XDG_CACHE_HOME=str(caches)),
      stdout=subprocess.DEVNULL,
    ) as process:
      while not _has_row(metrics):
        if process.poll():
          raise RuntimeError(f'status {process.returncode}')
        time.sleep(_POLL_SECS)
      clock = time.monotonic() - begun
      processor = _processor_secs(process.pid)
  return clock, processor


def _has_row(metrics: pathlib.Path) -> bool:
  try:
    return metrics.read_bytes().count(b'\n') > 1
  except FileNotFoundError:
    return False


def _processor_secs(process: int) -> float:
  """Of all threads of a process, so far."""
  stat = pathlib.Path(f'/proc/{process}/stat').read_text()
  ticks = stat.rpartition(')')[2].split()[11:13]
  return sum(map(int, ticks)) / os.sysconf('SC_CLK_TCK')


def measure(kind: str, rounds: int) -> dict[str, float]:
  """Starts of one kind, 'cold' or 'warm', in pairs."""
  starts: list[Secs] = []
  alones: list[Secs] = []
  with tempfile.TemporaryDirectory(dir=ROOT / 'checkpoints') as folder:
    ours, theirs = pathlib.Path(folder) / 'ours', pathlib.Path(folder) / 'jax'
    if kind == 'warm':
      time_start(ours)
      time_alone(theirs)
    for number in range(rounds):
      cold = pathlib.Path(folder) / f'cold{number}'
      starts.append(time_start(cold if kind == 'cold' else ours))
      alones.append(time_alone(None if kind == 'cold' else theirs))
      print(f'{kind}: {starts[-1][0]:.2f} s, alone {alones[-1][0]:.2f} s')
  pairs = [*zip(starts, alones, strict=True)]
  return {
    'seconds': statistics.median(clock for clock, _ in starts),
    'alone_seconds': statistics.median(clock for clock, _ in alones),
    'ratio': statistics.median(s[0] / a[0] for s, a in pairs),
    'smallest_ratio': min(s[0] / a[0] for s, a in pairs),
    'largest_ratio': max(s[0] / a[0] for s, a in pairs),
    'processor_ratio': statistics.median(s[1] / a[1] for s, a in pairs),
    'rounds': rounds,
  }


def to_markdown(results: dict[str, dict[str, float]]) -> str:
  """The table of the results."""
  head = (
    '| start | first row after | imports and compilation alone | ratio | '
    "ratio of the processor's seconds |\n|---|---|---|---|---|\n"
  )
  return head + ''.join(
    f'| {kind} | {row["seconds"]:.2f} s | {row["alone_seconds"]:.2f} s | '
    f'{row["ratio"]:.2f}x ({row["smallest_ratio"]:.2f} to '
    f'{row["largest_ratio"]:.2f}) | {row["processor_ratio"]:.2f}x |\n'
    for kind, row in results.items()
  )


def main() -> None:
  """Measures, prints a table, writes the JSON and the Markdown."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--quick', action='store_true', help='2 rounds, no files')
  quick = parser.parse_args().quick
  (ROOT / 'checkpoints').mkdir(exist_ok=True)
  results = {
    kind: measure(kind, 2 if quick else ROUNDS) for kind in ('cold', 'warm')
  }
  table = to_markdown(results)
  print(table, end='')
  if not quick:
    text = json.dumps(results, indent=2)
    (RESULTS / 'start_up.json').write_text(text + '\n')
    (RESULTS / 'start_up.md').write_text(table)


if __name__ == '__main__':
  main()
