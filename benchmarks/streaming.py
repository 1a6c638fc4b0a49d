"""What it costs to read data as the run goes: memory, time, and kills.

  python benchmarks/streaming.py [--quick]

The net and the outer steps of configs/digits_cnn.py, its data as ArrayRecord
shards: handwritten digits, each shifted by up to a pixel and with noise, as
float32 of 8 x 8.

Memory: a process trains through shards larger than a set budget, `buffer_mb`;
what its largest resident set grows by in the training loop, from before the
first batch is read, must be below the budget; beside it the same of a process
with 2000 examples in memory. Throughput: outer steps per second on
shards and on the same examples in memory, by turns, in processes of their own;
medians and the ratio of each pair. Kills: a run is killed by SIGKILL at random
times and resumed by the same command until it is done; its last state, its rows
and its results must be those of a run that was not.

Writes benchmarks/results/streaming.json and streaming.md.
"""

import argparse
from collections.abc import Iterator
import hashlib
import json
import os
import pathlib
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
import numpy as np

from metalr_flax import interrupts
from metalr_flax.config import flags
from metalr_flax.tasks import classification
from metalr_flax.tasks import grain_data
from metalr_flax.tasks import records
from metalr_flax.trainer import launch
from metalr_flax.workdir import manifest

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / 'benchmarks/results'
CONFIG = ROOT / 'configs/digits_cnn.py'
BUDGET_MB = 64
Example = dict[str, np.ndarray]


class InMemory(classification.Classification):
  """The examples of the same shards, on the device."""

  input_name = 'image'

  def __init__(self, batch_size: int, *, path: str):
    super().__init__(
      tuple(read(path, split) for split in ('train', 'meta', 'test')),
      batch_size=batch_size,
      meta_batch_size=None,
    )


def read(path: str, split: str) -> Example:
  """All examples of a split."""
  shards = records.Shards(records.find(path, split))
  arrays = shards.read(range(len(shards.blocks)))
  return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def examples(split: str, count: int, seed: int) -> Iterator[Example]:
  """Digits of a split, shifted and noisy, as many as asked for."""
  digits = [*grain_data.in_order(grain_data.digits(split, 0))]
  rng = np.random.default_rng(seed)
  for _ in range(count):
    digit = digits[rng.integers(len(digits))]
    shift = tuple(rng.integers(-1, 2, 2))
    image = np.roll(digit['image'], shift, axis=(0, 1))
    noise = 0.05 * rng.standard_normal(image.shape, np.float32)
    yield {'image': image + noise, 'label': digit['label']}


def write_shards(folder: pathlib.Path, count: int) -> int:
  """Writes all splits; returns the bytes of the training shards' examples."""
  paths = records.write(folder, 'train', examples('train', count, 0), shards=8)
  records.write(folder, 'meta', examples('meta', count // 8, 1), shards=2)
  records.write(folder, 'test', examples('test', 360, 2))
  return records.Shards([*map(str, paths)]).record_bytes * count


def command(path: pathlib.Path, workdir: pathlib.Path, **fields: Any) -> list:
  """The trainer's arguments for the shards in `path`."""
  fields = {
    'task.name': 'stream',
    'task.path': path,
    'task.kwargs': {'buffer_mb': BUDGET_MB},
    'num_outer_steps': 100,
    'eval_every': 1000,
    'checkpoint_every': 1000,
    **fields,
  }
  overrides = [f'--config.{name}={value}' for name, value in fields.items()]
  return [f'--config={CONFIG}', f'--workdir={workdir}', *overrides]


class Watch(interrupts.StopRequest):
  """Reads the resident set where the loop asks whether it is to stop.

  It asks first when all is compiled and reading begins, and then before each
  chunk.
  """

  def __init__(self):
    super().__init__()
    self.peaks: list[float] = []

  def __bool__(self) -> bool:
    if not self.peaks:
      pathlib.Path('/proc/self/clear_refs').write_text('5')  # peak := now
    self.peaks.append(_peak_mb())
    return False


def _peak_mb() -> float:
  status = pathlib.Path('/proc/self/status').read_text()
  (line,) = (n for n in status.splitlines() if n.startswith('VmHWM'))
  return int(line.split()[1]) / 1024


def train(argv: list[str]) -> list[float]:
  """Trains in this process; the largest resident set so far, in MB."""
  watch = Watch()
  parsed = flags.parse('metalr_flax.main', argv, '')
  launch.train(
    parsed.config,
    parsed.workdir,
    command=parsed.command,
    stop=watch,
  )
  return watch.peaks


def start(argv: list[str]) -> subprocess.Popen:
  """A process with this folder on its path, quiet."""
  paths = [
    str(ROOT),
    str(ROOT / 'benchmarks'),
    os.environ.get('PYTHONPATH', ''),
  ]
  environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(paths)}
  return subprocess.Popen(
    [sys.executable, *argv],
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
  )


def ask(kind: str, path: pathlib.Path, steps: int) -> dict[str, float]:
  """What `part` returns in a process of its own."""
  process = start([__file__, '--part', kind, str(path), str(steps)])
  answer, _ = process.communicate()
  assert process.returncode == 0, kind
  return json.loads(answer.splitlines()[-1])


def part(kind: str, path: str, steps: str) -> dict[str, float]:
  """Trains; the growth of the resident set, the rate after a first quarter."""
  fields = {'num_outer_steps': int(steps)}
  if kind == 'memory':
    fields |= {'task.name': 'streaming:InMemory', 'task.kwargs': {}}
  with tempfile.TemporaryDirectory() as folder:
    workdir = pathlib.Path(folder) / 'run'
    peaks = train(command(pathlib.Path(path), workdir, **fields))
    lines = (workdir / 'metrics.csv').read_text().splitlines()
  column = lines[0].split(',').index('perf/outer_steps_per_sec')
  rates = [float(line.split(',')[column]) for line in lines[1:]]
  rates = rates[len(rates) // 4 :]
  return {
    'rate': len(rates) / sum(1 / rate for rate in rates),
    'growth_mb': max(peaks) - peaks[0],
  }


def measure_memory(here: pathlib.Path, quick: bool) -> dict[str, Any]:
  """Trains through shards larger than the budget."""
  count = 60_000 if quick else 400_000
  small, large = here / 'few', here / 'many'
  write_shards(small, 2000)
  size = write_shards(large, count)
  # Once through all of them: 8 batches of 64 in an outer step.
  steps = count // (8 * 64)
  rounds = range(1 if quick else 3)
  paths = {'memory': small, 'stream': large}
  growth = {
    kind: max(ask(kind, path, steps)['growth_mb'] for _ in rounds)
    for kind, path in paths.items()
  }
  return {
    'examples': count,
    'shards_mb': size / 2**20,
    'budget_mb': BUDGET_MB,
    'outer_steps': steps,
    'growth_mb': growth['stream'],
    'growth_in_memory_mb': growth['memory'],
    'under_budget': growth['stream'] < BUDGET_MB,
  }


def measure_rates(here: pathlib.Path, quick: bool) -> dict[str, Any]:
  """Both kinds by turns, the first one another one each time."""
  path, pairs, steps = here / 'rates', 2 if quick else 7, 40 if quick else 200
  write_shards(path, 20_000)
  rates: dict[str, list[float]] = {'stream': [], 'memory': []}
  for pair in range(pairs):
    for kind in sorted(rates, reverse=pair % 2 == 0):
      rates[kind].append(ask(kind, path, steps)['rate'])
  ratios = [
    stream / memory
    for stream, memory in zip(rates['stream'], rates['memory'], strict=True)
  ]
  return {
    'outer_steps_per_sec': rates,
    'median': {kind: statistics.median(found) for kind, found in rates.items()},
    'ratios': ratios,
    'median_ratio': statistics.median(ratios),
    'cores': os.cpu_count(),
    'load': os.getloadavg()[0],
  }


def remains(workdir: pathlib.Path) -> dict[str, str]:
  """What must be the same however a run was cut."""
  newest = max((workdir / 'state').iterdir(), key=lambda p: int(p.name))
  notes = manifest.verify(newest)
  rows = [
    line.rsplit(',', 1)[0]
    for line in (workdir / 'metrics.csv').read_text().splitlines()
  ]
  return {
    'state': notes['sha256'],
    'stream': json.dumps(notes['record']['stream'], sort_keys=True),
    'rows': hashlib.sha256('\n'.join(rows).encode()).hexdigest(),
    'results': (workdir / 'results.json').read_text(),
  }


def measure_kills(here: pathlib.Path, quick: bool) -> dict[str, Any]:
  """Kills a run again and again; resumed it must end in the same bits."""
  path, wanted = here / 'kills', 3 if quick else 20
  write_shards(path, 3000)  # an epoch is 5.9 outer steps
  fields = {'num_outer_steps': 120, 'checkpoint_every': 2, 'eval_every': 15}
  run = lambda workdir: start(
    ['-m', 'metalr_flax.main', *command(path, workdir, **fields)]
  )
  with run(here / 'whole') as process:
    process.communicate()
  expected, draw = remains(here / 'whole'), random.Random(0)
  kills, equal, runs, cut_at = 0, 0, 0, []
  while kills < wanted:
    workdir = here / f'cut{runs}'
    done = False
    while not done:
      with run(workdir) as process:
        done = kills == wanted or not _kill_later(process, workdir, draw)
        process.communicate()
      if not done:
        kills += 1
        cut_at.append(_newest(workdir))
    assert process.returncode == 0
    equal += remains(workdir) == expected
    runs += 1
  return {
    'kills': kills,
    'runs': runs,
    'identical_runs': equal,
    'newest_saved_outer_step_at_each_kill': cut_at,
    'outer_steps_in_an_epoch': 3000 / (8 * 64),
  }


def _kill_later(
  process: subprocess.Popen, workdir: pathlib.Path, draw: random.Random
) -> bool:
  """Kills it at most 24 outer steps later; False if it ended before that."""
  target = _newest(workdir) + draw.randint(1, 24)
  while _newest(workdir) < target:
    if process.poll() is not None:
      return False
    time.sleep(0.002)
  time.sleep(draw.uniform(0, 0.1))  # two outer steps and a save, about
  process.send_signal(signal.SIGKILL)
  return process.wait() == -signal.SIGKILL


def _newest(workdir: pathlib.Path) -> int:
  names = [p.name for p in (workdir / 'state').glob('*')]
  return max((int(name) for name in names if name.isdecimal()), default=0)


def report(found: dict[str, Any]) -> str:
  """The results as a page."""
  memory, rates = found['memory'], found['throughput']
  ratios = ', '.join(f'{ratio:.2f}' for ratio in rates['ratios'])
  median = rates['median']
  rows = {
    'shards; budget (`buffer_mb`)': (
      f'{memory["shards_mb"]:.0f} MB; {memory["budget_mb"]} MB'
    ),
    'growth of the resident set in the loop; of 2000 examples in memory': (
      f'{memory["growth_mb"]:.1f} MB; {memory["growth_in_memory_mb"]:.1f} MB'
    ),
    'outer steps per second, stream / in memory (medians)': (
      f'{median["stream"]:.2f} / {median["memory"]:.2f}'
    ),
    'ratio of each pair; their median': (
      f'{ratios}; {rates["median_ratio"]:.3f}'
    ),
  }
  after, kills = '', found.get('kills')
  if kills:
    rows['kills by SIGKILL; runs; runs that ended in the same bits'] = (
      f'{kills["kills"]}; {kills["runs"]}; {kills["identical_runs"]}'
    )
    after = (
      f' A killed run has 120 outer steps and saves every second one; an epoch '
      f'is {kills["outer_steps_in_an_epoch"]:.1f} of them.'
    )
  table = '\n'.join(f'| {name} | {value} |' for name, value in rows.items())
  return (
    '# Streaming\n\nMade by `python benchmarks/streaming.py`: the net of '
    'configs/digits_cnn.py on ArrayRecord shards.\n\n| what | measured |\n'
    f'|---|---|\n{table}\n\n{rates["cores"]} cores, load average '
    f'{rates["load"]:.1f} after the rates were measured.{after}\n'
  )


MEASURES = {
  'memory': measure_memory,
  'throughput': measure_rates,
  'kills': measure_kills,
}


def main() -> None:
  """Measures all of it, or what is asked for."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--quick', action='store_true', help='prints; no files')
  parser.add_argument('--only', choices=[*MEASURES], action='append')
  parser.add_argument('--part', nargs=3, help='used by the program itself')
  given = parser.parse_args()
  if given.part:
    print(json.dumps(part(*given.part)))
    return
  path = RESULTS / 'streaming.json'
  found = json.loads(path.read_text()) if given.only and path.exists() else {}
  for name in given.only or MEASURES:
    with tempfile.TemporaryDirectory() as folder:
      found[name] = MEASURES[name](pathlib.Path(folder), given.quick)
    print(json.dumps({name: found[name]}, indent=1), flush=True)
  if not given.quick:
    found['jax'] = jax.__version__
    path.write_text(json.dumps(found, indent=1) + '\n')
    if {'memory', 'throughput'} <= {*found}:
      path.with_suffix('.md').write_text(report(found))


if __name__ == '__main__':
  main()
