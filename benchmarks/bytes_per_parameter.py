"""What learning costs in bytes of memory for each parameter of a model.

  python benchmarks/bytes_per_parameter.py

What is kept from step to step is counted exactly, array by array, without
running anything: parameters, the inner optimizer's state, and what the drop-in
(`self_tuning`) or the trainer adds. What a step holds while it runs is asked of
the compiler, for the MLP of 0.7M parameters of self_tuning.py on batches of 128
(arguments but its data, temporaries and outputs, shared ones once), gradients
and activations included. Writes benchmarks/results/bytes_per_parameter.json and
.md.
"""

from collections.abc import Callable
import functools
import json
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import measured_models
import meta_gradient
import optax
import self_tuning

import metalr_flax

RESULTS = pathlib.Path(__file__).parent / 'results'
MLP = 'MLP 0.7M'
OPTIMIZERS: dict[str, tuple[Callable, tuple[str, ...]]] = {
  'sgd': (optax.sgd, ('learning_rate',)),
  'sgd, momentum': (
    functools.partial(optax.sgd, momentum=0.9),
    ('learning_rate',),
  ),
  'adam': (optax.adam, ('learning_rate',)),
  'adamw': (optax.adamw, ('learning_rate',)),
  'adamw, rate and decay': (optax.adamw, ('learning_rate', 'weight_decay')),
  'adamw, rate and b1': (optax.adamw, ('learning_rate', 'b1')),
}
ESTIMATORS = (
  'plain',
  'forward',
  'forward, no curvature',
  'forward, 3 learned',
  'reverse',
)
LENGTHS = (8, 64)


def count_bytes(tree: Any) -> int:
  """Bytes of a tree's arrays, or of their shapes."""
  return sum(
    math.prod(leaf.shape) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
    if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
  )


def make_tuned(name: str) -> optax.GradientTransformationExtraArgs:
  """The drop-in around one of the optimizers."""
  factory, learned = OPTIMIZERS[name]
  inject = optax.inject_hyperparams(factory, hyperparam_dtype=jnp.float32)
  return metalr_flax.self_tuning(inject(1e-3), learned=learned)


def count_kept(name: str, dtype: jax.typing.DTypeLike) -> dict[str, float]:
  """Bytes per parameter that the drop-in's loop keeps, by part."""
  size = 10**6
  params = {'w': jax.ShapeDtypeStruct((size,), dtype)}
  state = jax.eval_shape(make_tuned(name).init, params)
  parts = {
    'params': params,
    'inner state': state.opt_state,
    'tangents': state.tangents,
    'displacement': state.displacement,
  }
  return {part: count_bytes(tree) / size for part, tree in parts.items()}


def measure_drop_in(name: str) -> dict[str, float]:
  """Bytes per parameter that a running step holds, alone and tuned."""
  factory, _ = OPTIMIZERS[name]
  held = {}
  for variant, tx in (('alone', factory(1e-3)), ('tuned', make_tuned(name))):
    compiled, (params, _), batch = self_tuning.compile_step(MLP, tx)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    held[variant] = meta_gradient.memory(compiled, batch) / count
  return held


def measure_trainer(name: str) -> dict[str, Any]:
  """Bytes per parameter of the trainer's state, and of a running outer step."""
  model = measured_models.make_models()['mlp']
  estimator, learned = meta_gradient.ESTIMATORS[name]
  held, kept = {}, {}
  for length in LENGTHS:
    step, state = measured_models.make_step(model, estimator, learned, length)
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    kept = {
      'params': count_bytes(state.params) / count,
      'inner state': count_bytes(state.opt_state) / count,
      'tangents': count_bytes(state.tangents) / count,
    }
    compiled, _ = meta_gradient.compile_step(step, state, model.data)
    held[str(length)] = meta_gradient.memory(compiled, model.data) / count
  return {'kept': kept, 'running': held}


def measure() -> dict[str, Any]:
  """All figures."""
  return {
    'kept': {
      dtype: {name: count_kept(name, dtype) for name in OPTIMIZERS}
      for dtype in ('float32', 'bfloat16')
    },
    'running': {name: measure_drop_in(name) for name in OPTIMIZERS},
    'trainer': {name: measure_trainer(name) for name in ESTIMATORS},
  }


def to_markdown(results: dict[str, Any]) -> str:
  """The tables that a person reads."""
  lines = ['Bytes per parameter.', '', '## The drop-in: kept between steps', '']
  lines += [
    '| params | inner optimizer, learned | params | inner state | tangents '
    '| last updates | together | over the optimizer alone |',
    '|---|---|---|---|---|---|---|---|',
  ]
  for dtype, rows in results['kept'].items():
    for name, parts in rows.items():
      total, alone = sum(parts.values()), parts['params'] + parts['inner state']
      figures = ' | '.join(f'{value:.0f}' for value in parts.values())
      lines.append(
        f'| {dtype} | {name} | {figures} | {total:.0f} | {total / alone:.2f}x |'
      )
  lines += ['', '## The drop-in: held by a running step', '']
  lines += [
    '| inner optimizer, learned | alone | in self_tuning |',
    '|---|---|---|',
  ]
  for name, held in results['running'].items():
    lines.append(f'| {name} | {held["alone"]:.1f} | {held["tuned"]:.1f} |')
  lines += ['', '## The trainer (inner RMSProp)', '']
  lines += [
    '| estimator | params | inner state | tangents '
    + ''.join(f'| running, K = {k} ' for k in LENGTHS)
    + '|',
    '|---|---|---|---' + '|---' * len(LENGTHS) + '|',
  ]
  for name, row in results['trainer'].items():
    kept = ' | '.join(f'{value:.0f}' for value in row['kept'].values())
    held = ' | '.join(f'{value:.1f}' for value in row['running'].values())
    lines.append(f'| {name} | {kept} | {held} |')
  return '\n'.join(lines) + '\n'


def main() -> None:
  """Counts, measures, prints the tables and writes both files."""
  results = measure()
  table = to_markdown(results)
  print(table, end='')
  RESULTS.mkdir(exist_ok=True)
  path = RESULTS / 'bytes_per_parameter.json'
  path.write_text(json.dumps(results, indent=1) + '\n')
  path.with_suffix('.md').write_text(table)


if __name__ == '__main__':
  main()
