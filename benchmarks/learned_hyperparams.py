"""Does learning one more hyperparameter with the rate do harm?

  python benchmarks/learned_hyperparams.py [--quick]

Each optimizer of the engine's tests is self-tuned on five problems of
configs/compare.py, 2000 updates, five seeds: the learning rate alone, and with
each of its other hyperparameters. Printed is the final training objective with
the hyperparameter over that with the rate alone, the geometric mean over the
seeds. The problems in which a set is fitted completely get 1e-3 added to both:
below it a ratio says nothing. Writes benchmarks/results/learned_hyperparams.md
and .json; `--quick` takes two optimizers, 200 updates, and writes nothing.
"""

import argparse
from collections.abc import Callable
import json
import pathlib
import runpy
from typing import Any

import jax
import numpy as np
import optax

import metalr_flax
from metalr_flax.comparison import arena as arena_lib
from metalr_flax.comparison import config as config_lib
from metalr_flax.trainer import build

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / 'benchmarks' / 'results'
FLOOR = {'digits_mlp': 1e-3, 'breast_cancer': 1e-3}
PROBLEMS = (
  'noisy_quadratic',
  'ill_conditioned_regression',
  'breast_cancer',
  'digits_mlp',
  'drifting_target',
)


def clipped(learning_rate: Any, max_norm: Any) -> optax.GradientTransformation:
  """SGD with momentum on clipped gradients."""
  return optax.chain(
    optax.clip_by_global_norm(max_norm), optax.sgd(learning_rate, 0.9)
  )


# Name: factory, what else it is given, and where its hyperparameters start.
OPTIMIZERS: dict[str, tuple[Callable, dict[str, Any], dict[str, float]]] = {
  'sgd': (optax.sgd, {}, {'momentum': 0.9}),
  'nesterov': (optax.sgd, {'nesterov': True}, {'momentum': 0.9}),
  'rmsprop': (optax.rmsprop, {}, {'decay': 0.9, 'eps': 1e-2}),
  'rmsprop_momentum': (optax.rmsprop, {}, {'momentum': 0.5}),
  'adam': (optax.adam, {}, {'b1': 0.9, 'b2': 0.99, 'eps': 1e-2}),
  'adamw': (optax.adamw, {}, {'b1': 0.9, 'b2': 0.99, 'weight_decay': 0.1}),
  'nadam': (optax.nadam, {}, {'b1': 0.9}),
  'radam': (optax.radam, {}, {'b1': 0.9}),
  'lamb': (optax.lamb, {}, {'weight_decay': 0.1}),
  'amsgrad': (optax.amsgrad, {}, {'b1': 0.9}),
  'novograd': (optax.novograd, {}, {'weight_decay': 0.1}),
  'adabelief': (optax.adabelief, {}, {'b1': 0.9}),
  'adamax': (optax.adamax, {}, {'b1': 0.9}),
  'yogi': (optax.yogi, {}, {'b1': 0.9}),
  'lion': (optax.lion, {}, {'weight_decay': 0.1}),
  'adadelta': (optax.adadelta, {}, {'rho': 0.9}),
  'clip': (clipped, {}, {'max_norm': 0.5}),
}


def train(
  arena: arena_lib.Arena, tx: optax.GradientTransformation, num_steps: int
) -> np.ndarray:
  """The final objective of each seed, [S]."""

  def run(snapshot: arena_lib.Snapshot) -> jax.Array:
    def body(carry: tuple, _: None) -> tuple[tuple, None]:
      now, state = carry
      data_state, batch = arena.next_batch(now.data_state)
      (_, (model_state, _)), grads = jax.value_and_grad(
        arena.loss_fn, has_aux=True
      )(now.params, now.model_state, batch)
      updates, state = tx.update(grads, state, now.params)
      now = now.replace(
        params=optax.apply_updates(now.params, updates),
        model_state=model_state,
        data_state=data_state,
      )
      return (now, state), None

    carry = snapshot, tx.init(snapshot.params)
    (last, _), _ = jax.lax.scan(body, carry, length=num_steps)
    return arena.objective(last)

  return np.asarray(jax.jit(jax.vmap(run))(arena.initial), np.float64)


def measure(
  problem: str, arena: arena_lib.Arena, name: str, num_steps: int
) -> list[dict[str, Any]]:
  """A row for each hyperparameter of an optimizer on a problem."""
  factory, fixed, start = OPTIMIZERS[name]
  inject = optax.inject_hyperparams(factory, static_args=tuple(fixed))
  rate = 1.0 if name == 'adadelta' else 1e-3
  inner = inject(learning_rate=rate, **start, **fixed)
  finals = {
    other: train(
      arena,
      metalr_flax.self_tuning(
        inner, learned=['learning_rate', *filter(None, [other])]
      ),
      num_steps,
    )
    + FLOOR.get(problem, 0.0)
    for other in ('', *start)
  }
  alone = finals.pop('')
  return [
    {
      'problem': problem,
      'optimizer': name,
      'hyperparameter': other,
      'ratio': float(np.exp(np.mean(np.log(final / alone)))),
      'alone': float(np.exp(np.mean(np.log(alone)))),
    }
    for other, final in finals.items()
  ]


def to_markdown(rows: list[dict[str, Any]]) -> str:
  """The table that a person reads, and what it comes to."""
  problems = list(dict.fromkeys(row['problem'] for row in rows))
  cells: dict[str, dict[str, float]] = {}
  for row in rows:
    key = f'{row["optimizer"]}, {row["hyperparameter"]}'
    cells.setdefault(key, {})[row['problem']] = row['ratio']
  lines = [
    f'| learned with the rate | {" | ".join(problems)} |',
    f'|---|{"---|" * len(problems)}',
    *(
      f'| {key} | {" | ".join(f"{by[p]:.2f}" for p in problems)} |'
      for key, by in cells.items()
    ),
  ]
  ratios = np.array([row['ratio'] for row in rows])
  mean = np.exp(np.mean(np.log(ratios)))
  lines.append('')
  lines.append(
    f'{len(ratios)} ratios: geometric mean {mean:.2f}, largest '
    f'{ratios.max():.2f}, {np.sum(ratios > 1.5)} above 1.5.'
  )
  return '\n'.join(lines) + '\n'


def main() -> None:
  """Measures, prints a line a row and the table, writes both."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--quick', action='store_true')
  quick = parser.parse_args().quick
  get_config = runpy.run_path(str(ROOT / 'configs' / 'compare.py'))
  config = config_lib.resolve(get_config['get_config']().to_dict())
  names = ['sgd', 'adam'] if quick else list(OPTIMIZERS)
  rows: list[dict[str, Any]] = []
  with build.randomness({'threefry_partitionable': True}):
    for problem in PROBLEMS:
      arena = arena_lib.build_arena(config, problem)
      for number, name in enumerate(names, 1):
        rows += measure(problem, arena, name, 200 if quick else 2000)
        print(f'{problem} {name}: {number} of {len(names)}', flush=True)
  table = to_markdown(rows)
  print(table, end='')
  if not quick:
    path = RESULTS / 'learned_hyperparams.json'
    path.write_text(json.dumps(rows, indent=1) + '\n')
    path.with_suffix('.md').write_text(table)


if __name__ == '__main__':
  main()
