"""What held-out gradients cost inside a real training step.

  python benchmarks/held_out_cost.py [--quick]

One jitted step as in self_tuning.py, of the same MLPs and transformers, with
AdamW alone and wrapped in `self_tuning`, which learns rate and weight decay:
without held-out data, and with the gradient of a held-out batch of the same
size at every update, every fourth and every sixteenth: NaN where there is none,
or a `jax.lax.cond` around the whole update.
Milliseconds as medians of the rounds, in turn in one run; ratios to AdamW
alone; the bytes that the step holds. Writes
benchmarks/results/held_out_cost.json and .md.
"""

import argparse
import functools
import json
import pathlib
import statistics
from typing import Any

import jax
import jax.numpy as jnp
import meta_gradient
import optax
import self_tuning

import metalr_flax

RESULTS = pathlib.Path(__file__).parent / 'results'
ALONE = 'AdamW alone'
# By variant: a held-out gradient at every m-th update, 0 for none.
WHOLE = 'm = 4, update in the cond'
EVERY = {'no held-out data': 0, 'm = 16': 16, 'm = 4': 4, 'm = 1': 1, WHOLE: 4}
STEPS = 16  # of a timing, or a multiple of it


def make_tx(variant: str) -> optax.GradientTransformation:
  """The optimizer of a variant."""
  if variant == ALONE:
    return optax.adamw(1e-3, weight_decay=1e-2)
  return metalr_flax.self_tuning(
    optax.inject_hyperparams(optax.adamw)(1e-3, weight_decay=1e-2),
    learned=['learning_rate', 'weight_decay'],
  )


def compile_step(size: str, variant: str) -> list[Any]:
  """The compiled step, its first state and its batch."""
  model, batch = self_tuning.make_problem(size)
  split = metalr_flax.split(model)
  loss_fn = metalr_flax.make_loss_fn(split.train, self_tuning.loss)
  grad_fn = functools.partial(
    jax.value_and_grad(loss_fn, has_aux=True), model_state=split.model_state
  )
  tx, every = make_tx(variant), EVERY.get(variant, 0)

  def step(state: Any, batch: Any) -> tuple[Any, jax.Array]:
    params, opt_state, count = state
    (loss, _), grads = grad_fn(params, batch=batch)
    update = functools.partial(tx.update, grads, opt_state, params)
    held_out = lambda: grad_fn(params, batch=reversed_rows(batch))[1]
    due = count % max(1, every) == 0
    if not every:
      updates, opt_state = update()
    elif variant == WHOLE:
      updates, opt_state = jax.lax.cond(
        due, lambda: update(meta_grads=held_out()), update
      )
    else:
      none = lambda: jax.tree.map(lambda g: g * jnp.nan, grads)
      meta_grads = jax.lax.cond(due, held_out, none)
      updates, opt_state = update(meta_grads=meta_grads)
    return (optax.apply_updates(params, updates), opt_state, count + 1), loss

  first = split.params, tx.init(split.params), jnp.int32(0)
  state = jax.tree.map(jnp.copy, first)
  lowered = jax.jit(step, donate_argnums=0).lower(state, batch)
  return [lowered.compile(), state, batch]


def reversed_rows(batch: Any) -> Any:
  """Another batch of the same shapes."""
  return jax.tree.map(lambda x: x[::-1], batch)


def measure(size: str, rounds: int) -> dict[str, Any]:
  """All variants of a model in turn."""
  runs = {v: compile_step(size, v) for v in (ALONE, *EVERY)}
  slowest = max(self_tuning.time_of(run, 2) for run in runs.values())
  steps = STEPS * max(1, int(0.3 / slowest) // STEPS)
  secs: dict[str, list[float]] = {variant: [] for variant in runs}
  for number in range(rounds):
    for variant in list(runs)[:: 1 if number % 2 else -1]:
      secs[variant].append(self_tuning.time_of(runs[variant], steps))
    print(f'\033[K{size}: round {number + 1} of {rounds}', end='\r')
  held = {v: meta_gradient.memory(run[0], run[2]) for v, run in runs.items()}
  return {
    'model': size,
    'ms': {v: 1e3 * statistics.median(s) for v, s in secs.items()},
    'ratio': {v: _over(secs[v], secs[ALONE]) for v in EVERY},
    'mb': {v: bytes_held / 1e6 for v, bytes_held in held.items()},
    'memory_ratio': {v: held[v] / held[ALONE] for v in EVERY},
  }


def _over(secs: list[float], alone: list[float]) -> float:
  return statistics.median(a / b for a, b in zip(secs, alone, strict=True))


def to_markdown(rows: list[dict[str, Any]]) -> str:
  """The table that a person reads: time and memory over AdamW alone."""
  lines = [
    f'| model | {ALONE} | {" | ".join(EVERY)} |',
    f'|---|---|{"---|" * len(EVERY)}',
  ]
  for row in rows:
    cells = [
      f'{row["ratio"][v]:.2f}x, {row["memory_ratio"][v]:.2f}x' for v in EVERY
    ]
    alone = f'{row["ms"][ALONE]:.2f} ms, {row["mb"][ALONE]:.1f} MB'
    lines.append(f'| {row["model"]} | {alone} | {" | ".join(cells)} |')
  return '\n'.join(lines) + '\n'


def main() -> None:
  """Measures, prints a table, writes the JSON and the Markdown."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--quick', action='store_true', help='3 rounds, no files')
  quick = parser.parse_args().quick
  sizes = (*self_tuning.MLPS, *self_tuning.TRANSFORMERS)
  rows = [measure(size, 3 if quick else 9) for size in sizes]
  print('\033[K' + to_markdown(rows), end='')
  if not quick:
    text = json.dumps(rows, indent=1) + '\n'
    (RESULTS / 'held_out_cost.json').write_text(text)
    (RESULTS / 'held_out_cost.md').write_text(to_markdown(rows))


if __name__ == '__main__':
  main()
