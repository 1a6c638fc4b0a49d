"""configs/digits_regularized.py against a grid of rate, decay and smoothing.

  python benchmarks/digits_regularized.py [--quick]

The config learns three hyperparameters in one run. Beside it: the same with the
rate and the decay alone, with the rate alone, and a grid of 100 constants (5
rates, 4 decays, 5 smoothings) of which the held-out digits pick one. Five
seeds, each its own split; the same number of updates for all; no early
stopping. It takes about six minutes. Writes
benchmarks/results/digits_regularized.json and .md; `--quick` takes one seed and
fewer updates, and writes nothing.
"""

import argparse
import functools
import itertools
import json
import pathlib
import statistics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metalr_flax.config import flags
from metalr_flax.engine import bijections
from metalr_flax.engine import outer
from metalr_flax.trainer import build
from metalr_flax.trainer import build_named

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / 'benchmarks/results'
SEEDS = 5
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
DECAYS = (1e-4, 1e-2, 1e-1, 1.0)
SMOOTHINGS = (1e-4, 1e-3, 1e-2, 3e-2, 0.1)
GRID = 'grid of 100, picked on held-out digits'
ALL = 'rate, decay and smoothing learned'
LESS = {
  'rate and decay learned': ['--config.task.loss_kwargs={}',
    "--config.meta.learned={'learning_rate': 'log', 'weight_decay': 'log'}"],
  'rate learned': ['--config.task.loss_kwargs={}',
    "--config.meta.learned={'learning_rate': 'log'}"],
}  # fmt: skip


def build_run(seed: int, *changes: str) -> build.Experiment:
  """The config's objects, changed by flags."""
  arguments = [
    f'--config={ROOT}/configs/digits_regularized.py',
    f'--config.seed={seed}',
    *changes,
  ]
  return build.build(flags.parse('benchmark', arguments, '').config)


def learn(seed: int, steps: int, *changes: str) -> dict[str, float]:
  """Trains once, and evaluates on the test digits."""
  experiment = build_run(seed, *changes)
  run = jax.jit(_trainer(experiment, steps))
  params, model_state = run(experiment.init_state().eta)
  found = experiment.evaluate(params, model_state)
  return {name: float(value) for name, value in found.items()}


def search(seed: int, steps: int) -> dict[str, float]:
  """Trains each setting of the grid, and evaluates the one that is picked."""
  experiment = build_run(seed, '--config.meta.estimator=none',
                         '--config.meta.discount=0.0')  # fmt: skip
  kinds = experiment.problem.bijections
  etas = [
    bijections.unconstrain(
      {'learning_rate': rate, 'weight_decay': decay, 'label_smoothing': share},
      kinds,
    )
    for rate, decay, share in itertools.product(RATES, DECAYS, SMOOTHINGS)
  ]
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *etas)
  run = jax.jit(jax.vmap(_trainer(experiment, steps)))
  models = run(stacked)
  held_out = jax.jit(jax.vmap(functools.partial(_held_out_loss, seed)))(*models)
  best = int(np.nanargmin(np.asarray(held_out)))
  params, model_state = jax.tree.map(lambda x: x[best], models)
  found = experiment.evaluate(params, model_state)
  return {name: float(value) for name, value in found.items()}


def _trainer(experiment: build.Experiment, steps: int) -> Any:
  """`eta -> (params, model_state)`: a run that starts from an eta."""

  def train(eta: Any) -> Any:
    state = experiment.init_state().replace(eta=eta)
    state, _ = outer.outer_steps(
      state, jnp.int32(steps), step_fn=experiment.step_fn, max_steps=steps
    )
    return state.params, state.model_state

  return train


def _held_out_loss(seed: int, params: Any, model_state: Any) -> jax.Array:
  """The loss on all held-out digits."""
  arguments = [f'--config={ROOT}/configs/digits_regularized.py',
               f'--config.seed={seed}']  # fmt: skip
  config = flags.parse('benchmark', arguments, '').config
  task = build_named.build_task(config['task'])
  experiment = build.build(config)
  return task.loss(experiment.make_model(params, model_state), task.meta)[0]


def main() -> None:
  """Runs the command line."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--quick', action='store_true')
  quick = parser.parse_args().quick
  seeds, steps = (1, 50) if quick else (SEEDS, 500)
  rows = {
    ALL: [learn(seed, steps) for seed in range(seeds)],
    **{
      name: [learn(seed, steps, *changes) for seed in range(seeds)]
      for name, changes in LESS.items()
    },
    GRID: [search(seed, steps) for seed in range(seeds)],
  }
  table = to_markdown(rows)
  print(table, end='')
  if not quick:
    text = json.dumps(rows, indent=1) + '\n'
    (RESULTS / 'digits_regularized.json').write_text(text)
    (RESULTS / 'digits_regularized.md').write_text(table)


def to_markdown(rows: dict[str, list[dict[str, float]]]) -> str:
  """The table that a person reads: means over the seeds, and their range."""
  lines = ['| digits, test split | loss | accuracy |', '|---|---|---|']
  for name, found in rows.items():
    losses = [run['loss'] for run in found]
    accuracy = statistics.mean(run['accuracy'] for run in found)
    lines.append(
      f'| {name} | {statistics.mean(losses):.3f} ({min(losses):.3f} to '
      f'{max(losses):.3f}) | {100 * accuracy:.1f} % |'
    )
  return '\n'.join(lines) + '\n'


if __name__ == '__main__':
  main()
