"""What self_tuning costs inside a real training step.

  python benchmarks/self_tuning.py [--quick]

One jitted step (loss, gradient, optimizer, new parameters; its state donated)
of an MLP on batches of 128 and of a language model on batches of 8 x 128
bytes, each of 0.7M and of 10M parameters, with the inner optimizer alone and
wrapped in `self_tuning`, in turn in one run: milliseconds as medians of the
rounds, the median of the rounds' ratios with their range, and the bytes that
the step holds (arguments but its data, temporaries and outputs, shared ones
once). Writes
benchmarks/results/self_tuning.json and .md.
"""

import argparse
from collections.abc import Callable
import functools
import json
import pathlib
import statistics
import time
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import meta_gradient
import optax

import metalr_flax
from metalr_flax import models

RESULTS = pathlib.Path(__file__).parent / 'results'
MLPS = {'MLP 0.7M': (784, 512, 512, 10), 'MLP 10M': (784, 2048, 2048, 2048, 10)}
# d_model, layers
TRANSFORMERS = {'transformer 0.7M': (128, 3), 'transformer 10M': (512, 3)}
OPTIMIZERS = {
  'sgd': functools.partial(optax.sgd, momentum=0.9),
  'adam': optax.adam,
}
BATCH = 128
TOKENS = (8, 128)


def make_variants(name: str) -> dict[str, optax.GradientTransformation]:
  """The inner optimizer alone, injected, and tuned."""
  factory = OPTIMIZERS[name]
  inject = optax.inject_hyperparams(factory)
  return {
    'alone': factory(learning_rate=1e-3),
    'self_tuning': metalr_flax.self_tuning(inject(learning_rate=1e-3)),
  }


def make_problem(size: str) -> tuple[nnx.Module, Any]:
  """A model and its batch."""
  x, y = jax.random.split(jax.random.key(1))
  if size in MLPS:
    widths = MLPS[size]
    return models.MLP(features=widths, rngs=nnx.Rngs(0)), {
      'x': jax.random.normal(x, (BATCH, widths[0])),
      'y': jax.random.randint(y, (BATCH,), 0, widths[-1]),
    }
  d_model, layers = TRANSFORMERS[size]
  model = models.Transformer(
    vocab_size=256,
    d_model=d_model,
    num_heads=4,
    num_layers=layers,
    rngs=nnx.Rngs(0),
  )
  tokens = jax.random.randint(x, TOKENS, 0, 256)
  return model, {'x': tokens, 'y': jnp.roll(tokens, -1, axis=-1)}


def compile_step(
  size: str, tx: optax.GradientTransformation
) -> tuple[Any, Any, Any]:
  """The compiled step, its first state and its batch."""
  model, batch = make_problem(size)
  split = metalr_flax.split(model)
  params, loss_fn = split.params, metalr_flax.make_loss_fn(split.train, loss)

  def step(state: Any, batch: Any) -> tuple[Any, jax.Array]:
    params, opt_state = state
    (loss, _), grads = jax.value_and_grad(loss_fn, has_aux=True)(
      params, split.model_state, batch
    )
    updates, opt_state = tx.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), loss

  state = jax.tree.map(jnp.copy, (params, tx.init(params)))
  lowered = jax.jit(step, donate_argnums=0).lower(state, batch)
  return lowered.compile(), state, batch


def loss(model: nnx.Module, batch: Any) -> tuple[jax.Array, dict]:
  """Mean cross-entropy, nats."""
  losses = optax.softmax_cross_entropy_with_integer_labels(
    model(batch['x']), batch['y']
  )
  return jnp.mean(losses), {}


def time_of(run: list[Any], steps: int) -> float:
  """Seconds of a step; the state goes on."""
  compiled, state, batch = run
  start = time.perf_counter()
  for _ in range(steps):
    state, loss = compiled(state, batch)
  jax.block_until_ready(loss)
  run[1] = state
  return (time.perf_counter() - start) / steps


def measure(
  size: str, name: str, rounds: int, report: Callable[[str], None]
) -> dict[str, Any]:
  """One row: both variants in turn."""
  runs = {
    variant: list(compile_step(size, tx))
    for variant, tx in make_variants(name).items()
  }
  steps = max(3, int(0.3 / max(time_of(r, 2) for r in runs.values())))
  secs: dict[str, list[float]] = {variant: [] for variant in runs}
  for number in range(rounds):
    order = list(runs)[:: 1 if number % 2 else -1]
    for variant in order:
      secs[variant].append(time_of(runs[variant], steps))
    report(f'{size} {name}: round {number + 1} of {rounds}')
  ratios = [
    b / a for a, b in zip(secs['alone'], secs['self_tuning'], strict=True)
  ]
  held = {
    variant: meta_gradient.memory(run[0], run[2])
    for variant, run in runs.items()
  }
  return {
    'model': size,
    'optimizer': name,
    'alone_ms': 1e3 * statistics.median(secs['alone']),
    'self_tuning_ms': 1e3 * statistics.median(secs['self_tuning']),
    'ratio': statistics.median(ratios),
    'ratio_range': [min(ratios), max(ratios)],
    'alone_mb': held['alone'] / 1e6,
    'self_tuning_mb': held['self_tuning'] / 1e6,
    'memory_ratio': held['self_tuning'] / held['alone'],
  }


def to_markdown(rows: list[dict[str, Any]]) -> str:
  """The table that a person reads."""
  lines = [
    '| model | optimizer | alone | self_tuning | time | memory |',
    '|---|---|---|---|---|---|',
  ]
  for row in rows:
    low, high = row['ratio_range']
    lines.append(
      f'| {row["model"]} | {row["optimizer"]} '
      f'| {row["alone_ms"]:.2f} ms, {row["alone_mb"]:.1f} MB '
      f'| {row["self_tuning_ms"]:.2f} ms, {row["self_tuning_mb"]:.1f} MB '
      f'| {row["ratio"]:.2f}x ({low:.2f} to {high:.2f}) '
      f'| {row["memory_ratio"]:.2f}x |'
    )
  return '\n'.join(lines) + '\n'


def main() -> None:
  """Measures, prints a table, writes the JSON and the Markdown."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--quick', action='store_true', help='3 rounds, no files')
  quick = parser.parse_args().quick
  rows = [
    measure(
      size,
      name,
      3 if quick else 15,
      lambda line: print(f'\033[K{line}', end='\r'),
    )
    for size in (*MLPS, *TRANSFORMERS)
    for name in OPTIMIZERS
  ]
  table = to_markdown(rows)
  print('\033[K' + table, end='')
  if not quick:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / 'self_tuning.json').write_text(json.dumps(rows, indent=1) + '\n')
    (RESULTS / 'self_tuning.md').write_text(table)


if __name__ == '__main__':
  main()
