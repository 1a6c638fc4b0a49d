"""The drop-in on parameters that are spread over four devices."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import runs

pytestmark = pytest.mark.thorough
PROGRAM = """
import json, sys
import jax
import jax.numpy as jnp
import optax
import metalr_flax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

mesh = jax.make_mesh((2, 2), ('data', 'model'), axis_types=(AxisType.Auto,) * 2)
spread = lambda x, *axes: jax.device_put(x, NamedSharding(mesh, P(*axes)))
keys = jax.random.split(jax.random.key(0), 4)
first = {
  'a': 0.3 * jax.random.normal(keys[0], (16, 32)),
  'b': 0.3 * jax.random.normal(keys[1], (32, 8)),
}
x = jax.random.normal(keys[2], (64, 16))
y = jnp.tanh(x[:, :8]) + jax.random.normal(keys[3], (64, 8))
tx = metalr_flax.self_tuning(
  optax.inject_hyperparams(optax.adamw)(1e-3, weight_decay=1e-2),
  learned=['learning_rate', 'weight_decay'],
)


def loss_fn(params, batch):
  x, y = batch
  return jnp.mean((jnp.tanh(x @ params['a']) @ params['b'] - y) ** 2)


@jax.jit
def step(params, opt_state, batch, held_out, i):
  grads = jax.grad(loss_fn)(params, batch)
  meta_grads = jax.lax.cond(
    i % 4 == 0,
    lambda: jax.grad(loss_fn)(params, held_out),
    lambda: jax.tree.map(lambda g: g * jnp.nan, grads),
  )
  given = {'meta_grads': meta_grads} if HELD_OUT else {}
  updates, opt_state = tx.update(grads, opt_state, params, **given)
  return optax.apply_updates(params, updates), opt_state


def train(place):
  params = {
    'a': place(first['a'], None, 'model'), 'b': place(first['b'], 'model', None)
  }
  opt_state = jax.jit(tx.init)(params)
  batch = place(x[:32], 'data'), place(y[:32], 'data')
  held_out = place(x[32:], 'data'), place(y[32:], 'data')
  for i in range(40):
    # One at a time: several in flight may wait for each other on few cores.
    params, opt_state = jax.block_until_ready(
      step(params, opt_state, batch, held_out, i)
    )
  return params, opt_state


out = {}
for HELD_OUT in (False, True):
  jax.clear_caches()
  ends = [train(place) for place in (lambda x, *_: x, spread)]
  pieces = {
    str(z.sharding.shard_shape(z.shape))
    for z in ends[1][1].tangents[:2]
  }
  out[str(HELD_OUT)] = {
    'params': [[p.tolist() for p in jax.tree.leaves(e[0])] for e in ends],
    'hyperparams': [metalr_flax.hyperparams_of(e[1]) for e in ends],
    'pieces': sorted(pieces),
  }
print(json.dumps(out))
"""


@pytest.fixture(scope='module')
def ends():
  environment = {
    **runs.environment(),
    'XLA_FLAGS': '--xla_force_host_platform_device_count=4',
    'JAX_PLATFORMS': 'cpu',
  }
  process = subprocess.run(
    [sys.executable, '-c', PROGRAM],
    env=environment,
    cwd=pathlib.Path(__file__).parent,
    capture_output=True,
    text=True,
    check=False,
  )
  assert process.returncode == 0, process.stderr[-2000:]
  return json.loads(process.stdout)


@pytest.mark.parametrize('held_out', [False, True])
def test_four_devices_agree_with_one(ends, held_out):
  found = ends[str(held_out)]
  for one, four in zip(*found['params'], strict=True):
    np.testing.assert_allclose(four, one, rtol=1e-4, atol=1e-6)
  one, four = found['hyperparams']
  assert one == pytest.approx(four, rel=1e-4)
  assert one['learning_rate'] > 1e-4  # it has learned


@pytest.mark.parametrize('held_out', [False, True])
def test_tangents_are_spread_as_their_parameters(ends, held_out):
  """Two directions of [16, 32 / 2] and of [32 / 2, 8]."""
  pieces = ends[str(held_out)]['pieces']
  assert pieces == ['(2, 16, 16)', '(2, 16, 8)']
