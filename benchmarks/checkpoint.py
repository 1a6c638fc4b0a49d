"""What a checkpoint's safety costs: manifest and fsync, with and without.

  python benchmarks/checkpoint.py [--quick]

For states of three sizes, seconds until a save is all on the disk, in turn in
one run, medians of the rounds and ratios: as it is; without fsync; without the
manifest; without both; and Orbax's own CheckpointManager. Then the seconds that
`save` holds up the training, and a whole run of the digits MLP that saves every
20 outer steps, with and without both. Writes
benchmarks/results/checkpoint.json.
"""

import argparse
from collections.abc import Callable, Iterator
import contextlib
import json
import os
import pathlib
import statistics
import tempfile
import time
from unittest import mock

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from metalr_flax import interrupts
from metalr_flax.config import flags
from metalr_flax.engine import records
from metalr_flax.trainer import launch
from metalr_flax.workdir import arrays
from metalr_flax.workdir import checkpoint
from metalr_flax.workdir import files
from metalr_flax.workdir import manifest
from metalr_flax.workdir import saving

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / 'benchmarks/results'


@contextlib.contextmanager
def without(*, fsync: bool = False, sealing: bool = False) -> Iterator[None]:
  """Saves without fsync, or without manifest, as asked for."""
  with contextlib.ExitStack() as stack:
    if fsync:
      stack.enter_context(mock.patch.object(os, 'fsync'))
    if sealing:
      for module, name in (
        (manifest, 'seal'),
        (checkpoint.fingerprint, 'digest'),
        (files, 'sync_directory'),
        (arrays, 'check_complete'),
        (arrays, 'check_equal'),
      ):
        stack.enter_context(mock.patch.object(module, name))
    yield


VARIANTS: dict[str, Callable[[], contextlib.AbstractContextManager]] = {
  'as it is': without,
  'without fsync': lambda: without(fsync=True),
  'without manifest': lambda: without(sealing=True),
  'without both': lambda: without(fsync=True, sealing=True),
}


def make_state(count: int, step: int) -> records.MetaTrainState:
  """A state of `count` float32 numbers, two thirds of it the optimizer's."""
  key = jax.random.key(step)
  third = jax.random.normal(key, (count // 3,))
  return records.MetaTrainState(
    step=jnp.int32(step),
    params={'w': third},
    model_state={},
    opt_state={'nu': third + 1, 'tangent': third + 2},
    eta={'learning_rate': jnp.zeros(())},
    meta_opt_state={},
    tangents={},
    data_state={},
  )


def time_saves(count: int, rounds: int) -> dict[str, dict[str, float]]:
  """Seconds of a save by variant: until it is done, and until it returns."""
  done: dict[str, list[float]] = {n: [] for n in (*VARIANTS, 'Orbax alone')}
  held: dict[str, list[float]] = {name: [] for name in VARIANTS}
  with (
    tempfile.TemporaryDirectory(dir=ROOT / 'checkpoints') as folder,
    contextlib.ExitStack() as stack,
  ):
    opened = {}
    for name in VARIANTS:
      path = pathlib.Path(folder) / name
      path.mkdir()
      # One for all rounds: its first save and each tenth are compared.
      opened[name] = stack.enter_context(saving.opened(path))
    for step in range(1, rounds + 1):
      state = jax.block_until_ready(make_state(count, step))
      for name, variant in VARIANTS.items():
        checkpoints = opened[name]
        with variant():
          begun = time.perf_counter()
          checkpoints.save(state, {})
          held[name].append(time.perf_counter() - begun)
          checkpoints.wait()
          done[name].append(time.perf_counter() - begun)
      options = ocp.CheckpointManagerOptions(max_to_keep=3)
      path = pathlib.Path(folder) / 'orbax'
      with ocp.CheckpointManager(path, options=options) as manager:
        begun = time.perf_counter()
        manager.save(step, args=ocp.args.StandardSave(state))
        manager.wait_until_finished()
        done['Orbax alone'].append(time.perf_counter() - begun)
  base = done['without both']
  return {
    name: {
      'ms': statistics.median(times) * 1e3,
      'ratio to without both': statistics.median(
        t / b for t, b in zip(times, base, strict=True)
      ),
      'held up ms': statistics.median(held.get(name, times)) * 1e3,
    }
    for name, times in done.items()
  }


def time_run() -> float:
  """Seconds of the digits run, 25 checkpoints in it."""
  with tempfile.TemporaryDirectory(dir=ROOT / 'checkpoints') as folder:
    arguments = flags.parse(
      'benchmark',
      [
        f'--config={ROOT}/configs/digits_mlp.py',
        f'--workdir={folder}/run',
        '--config.checkpoint_every=20',
      ],
      '',
    )
    begun = time.perf_counter()
    launch.train(
      arguments.config,
      arguments.workdir,
      command=arguments.command,
      stop=interrupts.StopRequest(),
    )
    return time.perf_counter() - begun


def main() -> None:
  """Measures, prints and writes the results."""
  parser = argparse.ArgumentParser()
  parser.add_argument('--quick', action='store_true')
  quick = parser.parse_args().quick
  results: dict[str, object] = {}
  counts = (10_000, 1_000_000) if quick else (10_000, 1_000_000, 30_000_000)
  for count in counts:
    name = f'{count * 4 / 1e6:g} MB'
    table = time_saves(count, 3 if quick else 9 if count < 10**7 else 5)
    results[name] = table
    for variant, row in table.items():
      shown = ', '.join(f'{k} {v:.2f}' for k, v in row.items())
      print(f'{name:>8} {variant}: {shown}', flush=True)
  pairs = []
  time_run()  # the first one compiles and imports
  for _ in range(1 if quick else 5):
    safe = time_run()
    with without(fsync=True, sealing=True):
      pairs.append((safe, time_run()))
  results['a whole run'] = {
    'seconds': statistics.median(s for s, _ in pairs),
    'ratio to without both': statistics.median(s / b for s, b in pairs),
  }
  print(f'a whole run: {results["a whole run"]}')
  if not quick:
    text = json.dumps(results, indent=2)
    (RESULTS / 'checkpoint.json').write_text(text + '\n')


if __name__ == '__main__':
  main()
