"""Hyperparameters of the loss, found where the right answer is known.

  python benchmarks/known_answers.py [--quick]

Three of them, each learned by the trainer together with the learning rate: a
label smoothing where a known share of the held-out labels is random, the weight
of a class that is rare in training only, and the rate of a dropout whose best
value a closed form gives (`known_answers_tasks.py` says why each is known).
Five seeds, from a start far below and one far above; exact forward-mode
meta-gradients of windows of 8 updates, the outer optimizer 'steering'. It takes
four minutes. Writes
benchmarks/results/known_answers.json, .md and .png; `--quick` takes one seed,
the start above and fewer windows, and writes nothing.
"""

import argparse
from collections.abc import Callable
import json
import pathlib
import statistics
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import known_answers_tasks as tasks_lib
from matplotlib import figure
import numpy as np

from metalr_flax.config import check
from metalr_flax.engine import outer
from metalr_flax.trainer import build

RESULTS = pathlib.Path(__file__).parent / 'results'
SEEDS = 5
UNROLL_LENGTH = 8


class Case(NamedTuple):
  """One hyperparameter of a loss, and the task that says its best value.

  Attributes:
    name: of the hyperparameter, in words.
    key: of its column among a run's metrics.
    known: from a seed to its best value.
    starts: where it starts, far below and far above.
    make_config: `(start, seed) -> ` the fields of the config that are its own.
    discount: of the tangents, per window. A network's may explode where little
      of them is forgotten.
    steps: windows of a run.
    quick_steps: windows that do for a test, from the start above.
  """

  name: str
  key: str
  known: Callable[[int], float]
  starts: tuple[float, float]
  make_config: Callable[[float, int], dict[str, Any]]
  discount: float
  steps: int
  quick_steps: int


def _smoothing(start: float, seed: int) -> dict[str, Any]:
  return {
    'task': _task('NoisyLabels', {'label_smoothing': start}, 256),
    'model': {'name': 'mlp', 'kwargs': {'features': [5, 32, 5]}},
    'learned': {'label_smoothing': 'sigmoid'},
    'optimizer': 'adam',
  }


def _weight(start: float, seed: int) -> dict[str, Any]:
  return {
    'task': _task('RareClass', {'class_weights': {'1': start}}, 256),
    'model': {'name': 'mlp', 'kwargs': {'features': [2, 2]}},
    'learned': {'class_weights': 'log'},
    'optimizer': 'adam',
  }


def _dropout(start: float, seed: int) -> dict[str, Any]:
  name = 'known_answers_tasks:NoisyInputs'
  size = tasks_lib.FewExamples.size
  kwargs = {'split_seed': seed}
  return {
    'task': _task('FewExamples', {'dropout_rate': start}, 1, kwargs),
    'model': {'name': name, 'kwargs': {'size': size}},
    'learned': {'dropout_rate': 'sigmoid'},
    'optimizer': 'sgd',
  }


CASES = (
  Case(
    'label smoothing',
    'label_smoothing',
    lambda seed: tasks_lib.NoisyLabels.share,
    (0.01, 0.7),
    _smoothing,
    0.9,
    2000,
    400,
  ),
  Case(
    'weight of the rare class',
    'class_weights/1',
    lambda seed: tasks_lib.RareClass.best_weight,
    (1.0, 100.0),
    _weight,
    0.99,
    2000,
    400,
  ),
  Case(
    'dropout rate',
    'dropout_rate',
    lambda seed: tasks_lib.FewExamples(seed).best_rate(),
    (0.02, 0.5),
    _dropout,
    0.99,
    4000,
    800,
  ),
)


def _task(
  name: str, loss_kwargs: dict, batch_size: int, kwargs: dict | None = None
) -> dict[str, Any]:
  return {
    'name': f'known_answers_tasks:{name}',
    'batch_size': batch_size,
    'path': '',
    'kwargs': kwargs or {},
    'loss_kwargs': loss_kwargs,
  }


def make_config(case: Case, start: float, seed: int) -> dict[str, Any]:
  """The resolved config of a case's run."""
  own = case.make_config(start, seed)
  return check.resolve(
    {
      'seed': seed,
      'num_outer_steps': case.steps,
      'log_every': 1,
      'eval_every': 1,
      'checkpoint_every': 1,
      'threefry_partitionable': True,
      'task': own['task'],
      'model': own['model'],
      'inner': {
        'optimizer': own['optimizer'],
        'learning_rate': 1e-2,
        'kwargs': {},
      },
      'meta': {
        'learned': {'learning_rate': 'log', **own['learned']},
        'unroll_length': UNROLL_LENGTH,
        'estimator': 'forward',
        'remat': 'none',
        'curvature': 'exact',
        'subsample': 1.0,
        'discount': case.discount,
        'objective': 'held_out',
        'optimizer': 'steering',
        'learning_rate': 0.0,
      },
    }
  )


def find(case: Case, *, start: float, seed: int, steps: int) -> np.ndarray:
  """The learned value after each window, float [steps].

  Raises:
    FloatingPointError: where something was not finite.
  """
  experiment = build.build(make_config(case, start, seed))
  run = jax.jit(
    lambda state, count: outer.outer_steps(
      state, count, step_fn=experiment.step_fn, max_steps=steps
    )
  )
  _, chunk = run(experiment.init_state(), jnp.int32(steps))
  if not chunk.finite:
    raise FloatingPointError(f'{case.name}: not finite at {int(chunk.count)}')
  return np.asarray(chunk.rows[f'hyperparams/{case.key}'])


def measure(case: Case, *, quick: bool) -> dict[str, Any]:
  """All runs of a case: curves of found over known, and the last of each."""
  seeds, steps = (1, case.quick_steps) if quick else (SEEDS, case.steps)
  curves = []
  for start in case.starts[1:] if quick else case.starts:
    for seed in range(seeds):
      values = find(case, seed=seed, steps=steps, start=start)
      curves.append((values / case.known(seed)).tolist())
  ends = [curve[-1] for curve in curves]
  return {
    'name': case.name,
    'known': [case.known(seed) for seed in range(seeds)],
    'starts': case.starts,
    'updates': steps * UNROLL_LENGTH,
    'ratio': statistics.median(ends),
    'least': min(ends),
    'most': max(ends),
    'within_a_tenth': sum(abs(end - 1) <= 0.1 for end in ends),
    'runs': len(ends),
    'curves': curves,
  }


def write_table(results: list[dict[str, Any]]) -> str:
  """The table, Markdown."""
  lines = [
    '# Hyperparameters of the loss, found where the right answer is known',
    '',
    'Found over known at the end of a run, over five seeds and two starts.',
    '',
    '    python benchmarks/known_answers.py',
    '',
    '| learned | known | from | found / known, median | range | within 10 % |',
    '|---|---|---|---|---|---|',
  ]
  for r in results:
    low, high = min(r['known']), max(r['known'])
    known = f'{low:.3g}' if low == high else f'{low:.3g} to {high:.3g}'
    starts = ' and '.join(f'{s:g}' for s in r['starts'])
    lines.append(
      f'| {r["name"]} | {known} | {starts} | {r["ratio"]:.3f} | '
      f'{r["least"]:.3f} to {r["most"]:.3f} | {r["within_a_tenth"]} of '
      f'{r["runs"]} |'
    )
  return '\n'.join(lines) + '\n'


def draw(results: list[dict[str, Any]]) -> figure.Figure:
  """A panel for each: all runs from both starts to the known answer."""
  fig = figure.Figure(figsize=(11, 3.6), layout='constrained')
  for axes, r in zip(fig.subplots(1, len(results)), results, strict=True):
    updates = UNROLL_LENGTH * np.arange(1, len(r['curves'][0]) + 1)
    seeds = len(r['curves']) // len(r['starts'])
    for i, curve in enumerate(r['curves']):
      color = ('tab:blue', 'tab:orange')[i // seeds]
      label = f'from {r["starts"][i // seeds]:g}' if i % seeds == 0 else None
      axes.plot(updates, curve, color=color, lw=1, alpha=0.8, label=label)
    axes.axhline(1, color='black', lw=1, ls='--', label='the right answer')
    axes.axhspan(0.9, 1.1, color='black', alpha=0.08, lw=0)
    axes.set_yscale('log')
    axes.set_title(r['name'])
    axes.set_xlabel('inner updates')
    axes.legend(fontsize=8)
  fig.axes[0].set_ylabel('learned value over the right one')
  return fig


def main() -> None:
  """Runs the command line."""
  parser = argparse.ArgumentParser()
  parser.add_argument('--quick', action='store_true')
  quick = parser.parse_args().quick
  began, results = time.perf_counter(), []
  for case in CASES:
    results.append(measure(case, quick=quick))
    print(write_table(results).splitlines()[-1], flush=True)
  print(f'{time.perf_counter() - began:.0f} s')
  if quick:
    return
  figures = draw(results)
  figures.savefig(RESULTS / 'known_answers.png', dpi=110)
  for r in results:  # one point in twenty is enough to draw them again
    r['curves'] = [[round(v, 4) for v in c[::20]] for c in r['curves']]
  text = json.dumps({'results': results})
  (RESULTS / 'known_answers.json').write_text(text + '\n')
  (RESULTS / 'known_answers.md').write_text(write_table(results))


if __name__ == '__main__':
  main()
