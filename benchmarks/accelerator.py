"""What training and its meta-gradients do on the device that is there.

  python benchmarks/accelerator.py [--models mlp cnn ...] [--peak_flops=4e14]
      [--quick]

Of the MLP, the convolutional net and transformers of 10M and 100M parameters in
bfloat16, on JAX's first device, a GPU or TPU where there is one: inner updates
per second of plain training (RMSProp), how much of the device's peak they are
(the FLOPs of one gradient, by XLA's cost analysis, times the rate), the bytes
that a compiled window holds, and the overhead of each estimator over plain
training and of `self_tuning` over Adam alone. Windows of 8 updates are one
device call. All variants are run in turn, three rounds or more; medians of the
rounds, and of the rounds' ratios.

The peak is known of some devices, see PEAKS, given by a flag, or left blank.
A CPU takes minutes for the transformer of 10M and hours for that of 100M, which
is left out there unless `--models` names it. Writes
benchmarks/results/accelerator_<device>.json and .md; --quick takes tiny models
and one round, and writes nothing.
"""

import argparse
from collections.abc import Callable
import functools
import json
import pathlib
import re
import statistics
import time
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import measured_models
import meta_gradient
import optax

import metalr_flax
from metalr_flax import models

RESULTS = pathlib.Path(__file__).parent / 'results'
# Dense bfloat16 FLOP/s by the start of JAX's device_kind, of the vendors' data
# sheets.
PEAKS = {
  'NVIDIA A100': 312e12, 'NVIDIA H100 PCIe': 756e12, 'NVIDIA H100': 989e12,
  'NVIDIA H200': 989e12, 'TPU v4': 275e12, 'TPU v5 lite': 197e12,
  'TPU v5': 459e12, 'TPU v6': 918e12,
}  # fmt: skip
UNROLL_LENGTH = 8
ROUNDS = (3, 9)  # at least, at most
PATIENCE = 60.0  # seconds for a model's rounds beyond the least
# d_model, layers, heads
TRANSFORMERS = {
  'transformer 10M': (512, 3, 8),
  'transformer 100M': (768, 14, 12),
}
TINY = (16, 1, 2)
TOKENS = (8, 128)
PLAIN, ALONE, TUNED = 'plain', 'Adam alone', 'self_tuning'
ESTIMATORS = (PLAIN, 'forward', 'forward, no curvature', 'reverse')


def make_model(name: str, *, quick: bool) -> measured_models.Model:
  """A model that computes in bfloat16, with its loss and batches."""
  if name in TRANSFORMERS:
    width, layers, heads = TINY if quick else TRANSFORMERS[name]
    shape = (2, 2, 8) if quick else (2, *TOKENS)
    tokens = jax.random.randint(jax.random.key(1), shape, 0, 256)
    make: Callable[[], nnx.Module] = lambda: models.Transformer(
      vocab_size=256,
      d_model=width,
      num_layers=layers,
      num_heads=heads,
      dtype='bfloat16',
      rngs=nnx.Rngs(0),
    )
    data = {'x': tokens, 'y': jnp.roll(tokens, -1, axis=-1)}
    return measured_models.Model(make, measured_models.classify, data, 3.0)
  model = measured_models.make_models()[name]
  if name == 'mlp':
    widths = (784, 16, 10) if quick else (784, 512, 512, 10)
    make = lambda: models.MLP(
      features=widths, dtype='bfloat16', rngs=nnx.Rngs(0)
    )
  else:
    widths = (2, 2) if quick else (16, 32)
    make = lambda: models.CNN(
      features=widths, num_classes=10, dtype='bfloat16', rngs=nnx.Rngs(0)
    )
  return model._replace(make=make)


def make_loop(
  model: measured_models.Model, tx: optax.GradientTransformation
) -> tuple[Callable, Any]:
  """A window of plain updates `(state, data) -> state`, and its first state."""
  parts = metalr_flax.split(model.make())
  loss_fn = metalr_flax.make_loss_fn(parts.train, model.loss)

  def update(state: Any, batch: Any) -> tuple[Any, None]:
    params, model_state, opt_state = state
    (_, (model_state, _)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
      params, model_state, batch
    )
    updates, opt_state = tx.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), model_state, opt_state), None

  def window(state: Any, data: Any) -> Any:
    def body(state: Any, number: jax.Array) -> tuple[Any, None]:
      batch = jax.tree.map(lambda a: a[number % len(a)], data)
      return update(state, batch)

    return jax.lax.scan(body, state, jnp.arange(UNROLL_LENGTH))[0]

  state = parts.params, parts.model_state, jax.jit(tx.init)(parts.params)
  return window, jax.tree.map(jnp.copy, state)


def make_variants(model: measured_models.Model) -> dict[str, tuple]:
  """By name: a window, and its first state."""
  variants = {}
  for name in ESTIMATORS:
    estimator, learned = meta_gradient.ESTIMATORS[name]
    variants[name] = measured_models.make_step(
      model, estimator, learned, UNROLL_LENGTH
    )
  adam = functools.partial(optax.inject_hyperparams(optax.adam), 1e-3)
  variants[ALONE] = make_loop(model, optax.adam(1e-3))
  variants[TUNED] = make_loop(model, metalr_flax.self_tuning(adam()))
  return variants


def count_flops(model: measured_models.Model) -> float:
  """FLOPs of a gradient on one batch, as XLA counts them."""
  parts = metalr_flax.split(model.make())
  loss_fn = metalr_flax.make_loss_fn(parts.train, model.loss)
  batch = jax.tree.map(lambda a: a[0], model.data)
  grad = jax.jit(jax.grad(loss_fn, has_aux=True))
  lowered = grad.lower(parts.params, parts.model_state, batch)
  return lowered.compile().cost_analysis()['flops']


def measure(name: str, peak: float | None, *, quick: bool) -> dict[str, Any]:
  """One model: all variants in turn."""
  model = make_model(name, quick=quick)
  runs, held = {}, {}
  for variant, (step, state) in make_variants(model).items():
    compiled, _ = meta_gradient.compile_step(step, state, model.data)
    held[variant] = meta_gradient.memory(compiled, model.data)
    runs[variant] = [compiled, compiled(state, model.data)]
  secs = time_in_turn(runs, model.data, quick=quick)
  rate = 1 / statistics.median(secs[PLAIN])
  flops = count_flops(model)
  params = metalr_flax.split(model.make()).params
  return {
    'parameters': sum(leaf.size for leaf in jax.tree.leaves(params)),
    'updates_per_sec': rate,
    'flops_per_update': flops,
    'utilisation': rate * flops / peak if peak else None,
    'bytes': held,
    'overhead': {
      variant: statistics.median(
        t / p for t, p in zip(times, secs[base_of(variant)], strict=True)
      )
      for variant, times in secs.items()
    },
  }


def time_in_turn(
  runs: dict[str, list[Any]], data: Any, *, quick: bool
) -> dict[str, list[float]]:
  """Seconds of an inner update by variant, one of each round."""
  secs: dict[str, list[float]] = {variant: [] for variant in runs}
  least, most = (1, 1) if quick else ROUNDS
  begun = time.monotonic()
  for number in range(most):
    if number >= least and time.monotonic() - begun > PATIENCE:
      break
    for variant in list(runs)[:: 1 if number % 2 else -1]:
      secs[variant].append(time_window(runs[variant], data))
  return secs


def base_of(variant: str) -> str:
  """What a variant's time is compared with."""
  return ALONE if variant in (ALONE, TUNED) else PLAIN


def time_window(run: list[Any], data: Any) -> float:
  """Seconds of an inner update; the state goes on."""
  jax.block_until_ready(run[1])
  begun = time.perf_counter()
  run[1] = jax.block_until_ready(run[0](run[1], data))
  return (time.perf_counter() - begun) / UNROLL_LENGTH


def find_peak(kind: str) -> float | None:
  """The peak of a device that is in the table."""
  return next((p for n, p in PEAKS.items() if kind.startswith(n)), None)


def to_markdown(device: str, rows: dict[str, dict]) -> str:
  """The table that a person reads."""
  names = [*ESTIMATORS[1:], TUNED]
  lines = [
    f'{device}; overheads as time / memory',
    '',
    f'| model | updates/s | utilisation | plain, MB | {" | ".join(names)} |',
    f'|---|---|---|---|{"---|" * len(names)}',
  ]
  for model, row in rows.items():
    used = row['utilisation']
    shares = (
      f'{row["overhead"][n]:.2f} / '
      f'{row["bytes"][n] / row["bytes"][base_of(n)]:.2f}'
      for n in names
    )
    lines.append(
      f'| {model}, {row["parameters"] / 1e6:.1f}M '
      f'| {row["updates_per_sec"]:,.1f} | {f"{used:.1%}" if used else ""} '
      f'| {row["bytes"][PLAIN] / 1e6:,.1f} | {" | ".join(shares)} |'
    )
  return '\n'.join(lines) + '\n'


def main() -> None:
  """Measures, prints a table, writes the JSON and the Markdown."""
  known = ['mlp', 'cnn', *TRANSFORMERS]
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--quick', action='store_true')
  parser.add_argument('--models', nargs='+', choices=known)
  parser.add_argument('--peak_flops', type=float)
  given = parser.parse_args()
  device = jax.devices()[0]
  peak = given.peak_flops or find_peak(device.device_kind)
  skipped = () if given.quick or device.platform != 'cpu' else known[-1:]
  rows = {}
  for name in given.models or [n for n in known if n not in skipped]:
    rows[name] = measure(name, peak, quick=given.quick)
    print(name, rows[name]['overhead'], flush=True)
  stats = device.memory_stats() or {}
  content = {
    'device': device.device_kind,
    'platform': device.platform,
    'jax': jax.__version__,
    'peak_flops': peak,
    'peak_bytes_in_use': stats.get('peak_bytes_in_use'),
    'models': rows,
  }
  table = to_markdown(f'{device.device_kind}, jax {jax.__version__}', rows)
  print(table, end='')
  if not given.quick:
    name = re.sub(r'\W+', '_', device.device_kind).lower()
    path = RESULTS / f'accelerator_{name}'
    path.with_suffix('.json').write_text(json.dumps(content, indent=1) + '\n')
    path.with_suffix('.md').write_text(table)


if __name__ == '__main__':
  main()
