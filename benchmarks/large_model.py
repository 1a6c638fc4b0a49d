"""What a transformer of 1B parameters takes of 8 and of 256 accelerators.

  python benchmarks/large_model.py [--quick]

The arithmetic is in `large_model_arithmetic.py`. Here it is compared with
programs that XLA compiled for 8 virtual devices, of transformers of 10M and
100M parameters, from shapes alone: nothing is allocated or run, so batches can
be large. What a block's backward pass holds a token was calibrated at 10M (rows
marked so); all else, and all of 100M, is a check. Then it is applied to 1B.

It takes about ten minutes on two cores. Writes
benchmarks/results/large_model.{json,md}; `--quick` compiles two programs of 10M
and writes nothing. The exit status is 1 where the arithmetic misses a compiled
figure by more than `MARGINS`.

XLA's CPU compiler drops the barriers that keep what is computed again from
being computed once, so a flag keeps them.
"""

import argparse
from collections.abc import Iterator
import dataclasses
import functools
import json
import math
import os
import pathlib
import sys
from typing import Any

from flax import nnx
import hlo
import jax
import jax.numpy as jnp
import large_model_arithmetic as arithmetic
from large_model_arithmetic import Model
from large_model_arithmetic import MODES
from large_model_arithmetic import Work
import large_model_report as report
import optax

import metalr_flax
from metalr_flax import models
from metalr_flax.engine import microbatches
from metalr_flax.engine import sharding

DEVICES = 8
FLAGS = '--xla_disable_hlo_passes=cse_barrier_expander'
RESULTS = pathlib.Path(__file__).parent / 'results'
TRAINERS = {
  'plain': metalr_flax.Estimator(kind='none'),
  'Hessian-free': metalr_flax.Estimator(
    kind='forward', curvature='none', discount=0.9
  ),
  'exact': metalr_flax.Estimator(kind='forward'),
}
RATE = {'learning_rate': 1e-3}
# How far the arithmetic may be from a compiled figure, relative.
MARGINS = {
  'params': 0.0, 'state': 0.01, 'gathered': 0.05, 'summed': 0.05,
  'operations': 0.05, 'temporary': 0.15,
}  # fmt: skip
SMALL = Model(vocab_size=256, d_model=512, num_layers=3, num_heads=8)
MIDDLE = Model(vocab_size=24576, d_model=1024, num_layers=6, num_heads=16)
BILLION = Model(vocab_size=50304, d_model=2048, num_layers=18, num_heads=16)
SPLIT = (1, 8)
# By what the table calls them: each device's share.
WORKS = {
  '8 as (1, 8)': Work(mesh=(1, 8), length=2048, sequences=8),
  '256 as (32, 8)': Work(mesh=(32, 8), length=2048, sequences=1),
  '256 as (1, 256)': Work(mesh=(1, 256), length=2048, sequences=1),
}
# One NVIDIA H100 SXM of 80 GB: the data sheet's dense bfloat16, memory, and
# NVLink one way; one port of 400 Gbit/s. What training reaches is assumed.
MACHINE = arithmetic.Machine(
  operations=989e12, reached=0.4, memory=3.35e12, group_link=450e9, link=50e9
)
GROUP = 8
WINDOW = 8  # K


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
  """A program to compile.

  Attributes:
    role: 'calibrated' or 'checked', or 'shown' where nothing is compared.
    mode: a key of `MODES`.
    model, work: its sizes.
    parts: microbatches; the arithmetic has none.
  """

  role: str = 'checked'
  mode: str
  model: Model
  work: Work
  parts: int = 1

  @property
  def name(self) -> str:
    """What a fault is called by."""
    size = f'{self.model.params / 1e6:.1f}M'
    tokens = f'{self.work.sequences} x {self.work.length} tokens'
    parts = f', {self.parts} microbatches' * (self.parts > 1)
    return f'{self.mode}, {size}, mesh {self.work.mesh}, {tokens}{parts}'


def compile_case(case: Case) -> dict[str, float]:
  """XLA's figures of one device's program."""
  layout = sharding.Layout(
    mesh=sharding.make_mesh(case.work.mesh), annotations={}
  )
  parts = metalr_flax.split(nnx.eval_shape(lambda: _make(case.model)))
  loss_fn = microbatches.split(
    metalr_flax.make_loss_fn(parts.train, _loss),
    case.parts,
    functools.partial(layout.split_batches, axis=1),
  )
  rows = case.work.sequences * math.prod(case.work.mesh)
  tokens = jax.ShapeDtypeStruct((rows, case.work.length), jnp.int32)
  data = {'x': tokens, 'y': tokens}
  make = _make_outer if case.mode in TRAINERS else _make_loop
  step, state, shardings = make(case.mode, layout, loss_fn, parts, data)
  placed = (shardings, layout.of_batches(data))
  step = jax.jit(
    step, donate_argnums=0, in_shardings=placed, out_shardings=shardings
  )
  compiled = step.lower(state, data).compile(
    {'xla_backend_optimization_level': 0}  # the machine code is not wanted
  )
  size = sum(leaf.size for leaf in jax.tree.leaves(parts.params))
  batch = 8 * case.work.tokens
  return {'params': size, **_read(compiled, batch)}


def _read(compiled: Any, batch: int) -> dict[str, float]:
  memory = compiled.memory_analysis()
  found = [
    c for c in hlo.find_collectives(compiled.as_text()) if not c.is_small
  ]
  by_kind = {
    kind: sum(each.nbytes for each in found if each.kind == kind)
    for kind in sorted({each.kind for each in found})
  }
  return {
    'state': memory.argument_size_in_bytes - batch,
    'temporary': memory.temp_size_in_bytes,
    'operations': compiled.cost_analysis()['flops'],
    'gathered': by_kind.pop('all-gather', 0),
    'summed': by_kind.pop('all-reduce', 0) + by_kind.pop('reduce-scatter', 0),
    'others': sum(by_kind.values()),
  }


def _make(model: Model) -> models.Transformer:
  return models.Transformer(
    **dataclasses.asdict(model),
    dtype='bfloat16',
    remat='full',
    rngs=nnx.Rngs(0),
  )


def _loss(model: nnx.Module, batch: Any) -> tuple[jax.Array, dict]:
  losses = optax.softmax_cross_entropy_with_integer_labels(
    model(batch['x']), batch['y']
  )
  return jnp.mean(losses), {}


def _make_loop(
  mode: str, layout: sharding.Layout, loss_fn: Any, parts: Any, data: Any
) -> tuple[Any, Any, Any]:
  """A step of a user's own loop: its function, its state, and where it lies."""
  del data
  tx: Any = optax.adamw(1e-3)
  if mode == 'drop-in':
    tx = metalr_flax.self_tuning(optax.inject_hyperparams(optax.adamw)(1e-3))
  gradient = jax.grad(layout.gathering(loss_fn), has_aux=True)

  def step(state: Any, batch: Any) -> Any:
    params, opt_state = state
    grads, _ = gradient(params, parts.model_state, layout.split_batches(batch))
    grads = jax.lax.with_sharding_constraint(grads, layout.of_params(grads))
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  state = jax.eval_shape(lambda p: (p, tx.init(p)), parts.params)
  by_size = functools.partial(
    sharding.by_size, count=layout.mesh.shape['model']
  )
  shardings = jax.tree.map(
    lambda leaf: jax.sharding.NamedSharding(layout.mesh, by_size(leaf.shape)),
    state,
  )
  return step, state, shardings


def _make_outer(
  mode: str, layout: sharding.Layout, loss_fn: Any, parts: Any, data: Any
) -> tuple[Any, Any, Any]:
  """The same of the trainer's outer step, a window of K updates."""
  estimator, meta_tx = TRAINERS[mode], optax.adam(1e-3)
  tx = metalr_flax.make_injected('adamw', RATE, RATE)

  def problem(batch: Any) -> metalr_flax.Problem:
    draw = lambda count: (count + 1, batch)
    return metalr_flax.Problem(
      loss_fn=loss_fn,
      meta_loss_fn=loss_fn,
      next_batch=draw,
      next_meta_batch=draw,
      tx=tx,
      bijections=dict.fromkeys(RATE, 'log'),
      unroll_length=WINDOW,
    )

  def init(params: Any, model_state: Any) -> Any:
    return metalr_flax.init_state(
      problem(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), data)),
      params=params,
      model_state=model_state,
      data_state=jnp.zeros((), jnp.int32),
      hyperparams=RATE,
      meta_tx=meta_tx,
      estimator=estimator,
    )

  def step(state: Any, batch: Any) -> Any:
    spread = layout.spread(problem(batch))
    return metalr_flax.outer_step(
      state, spread, meta_tx=meta_tx, estimator=estimator
    )[0]

  state = jax.eval_shape(init, parts.params, parts.model_state)
  return step, state, layout.of_state(state)


def predict(case: Case) -> dict[str, float]:
  """The arithmetic's figures of the same."""
  mode, work = MODES[case.mode], case.work
  return {
    'params': case.model.params,
    'state': arithmetic.state(case.model, work.mesh, mode),
    'temporary': arithmetic.temporary(case.model, work, mode),
    'operations': arithmetic.operations(case.model, work, mode),
    **arithmetic.exchanged(case.model, work.mesh, mode),
  }


def cases() -> Iterator[Case]:
  """What is compiled, in the order of the table."""
  short = Work(mesh=SPLIT, length=128, sequences=1)
  long = Work(mesh=SPLIT, length=1024, sequences=4)
  for mode in MODES:
    role = 'calibrated' if mode == 'exact' else 'checked'
    yield Case(role=role, mode=mode, model=SMALL, work=short)
  grouped = dataclasses.replace(short, mesh=(2, 4))
  yield Case(mode='Hessian-free', model=SMALL, work=grouped)
  for mode in ('plain', 'exact'):
    yield Case(role='calibrated', mode=mode, model=SMALL, work=long)
  words = dataclasses.replace(SMALL, vocab_size=16384)
  wide = Work(mesh=SPLIT, length=256, sequences=16)
  yield Case(role='calibrated', mode='plain', model=words, work=wide)
  for mode in ('drop-in', 'Hessian-free', 'exact'):
    yield Case(mode=mode, model=MIDDLE, work=short)
  longer = Work(mesh=SPLIT, length=2048, sequences=4)
  for mode in ('plain', 'exact'):
    yield Case(mode=mode, model=MIDDLE, work=longer)
  parts = dataclasses.replace(short, sequences=4)
  yield Case(role='shown', mode='plain', model=SMALL, work=parts, parts=4)


def measure(case: Case) -> dict[str, Any]:
  """A row of the results."""
  return {
    **dataclasses.asdict(case),
    'name': case.name,
    'arithmetic': predict(case),
    'compiled': compile_case(case),
  }


def find_faults(rows: list[dict[str, Any]]) -> list[str]:
  """What the arithmetic misses by more than its margin, in words."""
  faults = []
  for row in rows:
    if row['role'] == 'shown':
      continue
    for key, margin in MARGINS.items():
      found, said = row['compiled'][key], row['arithmetic'][key]
      if abs(said - found) > margin * found:
        share = said / found if found else math.inf
        faults.append(f'{row["name"]}: {key} is {share:.3f} of the compiled')
  return faults


def apply() -> dict[str, Any]:
  """The arithmetic of 1B parameters: bytes, and seconds of an update."""
  found: dict[str, Any] = {'params': BILLION.params, 'devices': {}}
  for name, work in WORKS.items():
    found['devices'][name] = {
      mode: {
        'memory': arithmetic.memory(BILLION, work, MODES[mode]),
        'received': arithmetic.received(BILLION, work.mesh, MODES[mode]),
        'seconds': arithmetic.seconds(
          BILLION, work, MODES[mode], MACHINE, group=GROUP
        ),
        'over plain': arithmetic.over_plain(
          BILLION, work, MODES[mode], MACHINE, group=GROUP, window=WINDOW
        ),
      }
      for mode in MODES
    }
  return found


def main() -> int:
  """Runs the command line; returns its exit status."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--quick', action='store_true')
  quick = parser.parse_args().quick
  os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {FLAGS}'
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', DEVICES)
  rows = []
  for case in list(cases())[: 2 if quick else None]:
    rows.append(measure(case))
    print(rows[-1], flush=True)
    jax.clear_caches()
  billion = apply()
  table = report.to_markdown(rows, billion, margins=MARGINS, window=WINDOW)
  print(table)
  faults = find_faults(rows)
  print('\n'.join(faults) or 'the arithmetic is within its margins')
  if not quick:
    found = {'jax': jax.__version__, 'rows': rows, 'billion': billion}
    path = RESULTS / 'large_model.json'
    path.write_text(json.dumps(found) + '\n')
    path.with_suffix('.md').write_text(table)
  return int(bool(faults))


if __name__ == '__main__':
  sys.exit(main())
