"""The drop-in on eight devices: params spread, and data-parallel loops."""

import json
import os

import numpy as np
import pytest
import runs

pytestmark = pytest.mark.thorough
PROGRAM = """
import functools, json
import jax
import jax.numpy as jnp
import optax
import metalr_flax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

mesh = jax.make_mesh((2, 4), ('data', 'model'), axis_types=(AxisType.Auto,) * 2)
line = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
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


def step(params, opt_state, batch, held_out, i, mean=lambda tree: tree):
  grads = mean(jax.grad(loss_fn)(params, batch))
  meta_grads = mean(jax.grad(loss_fn)(params, held_out))
  meta_grads = jax.tree.map(
    lambda g: jnp.where(i % 4 == 0, g, jnp.nan), meta_grads
  )
  given = {'meta_grads': meta_grads} if HELD_OUT else {}
  updates, opt_state = tx.update(grads, opt_state, params, **given)
  return optax.apply_updates(params, updates), opt_state


def train(step, params, place):
  opt_state = jax.jit(tx.init)(params)
  batch, held_out = place((x[:32], y[:32])), place((x[32:], y[32:]))
  for i in range(40):
    # One at a time: several in flight may wait for each other on few cores.
    params, opt_state = jax.block_until_ready(
      step(params, opt_state, batch, held_out, i)
    )
  return params, opt_state


def alone():
  return train(jax.jit(step), first, lambda tree: tree)


def on_a_mesh():
  params = {
    'a': spread(first['a'], None, 'model'), 'b': spread(first['b'], 'model', None)
  }
  place = lambda tree: jax.tree.map(lambda leaf: spread(leaf, 'data'), tree)
  return train(jax.jit(step), params, place)


averaged = functools.partial(
  step, mean=lambda tree: jax.lax.pmean(tree, 'data')
)


def in_shard_map():
  mapped = jax.shard_map(
    averaged,
    mesh=line,
    in_specs=(P(), P(), P('data'), P('data'), P()),
    out_specs=P(),
  )
  return train(jax.jit(mapped), first, lambda tree: tree)


def in_pmap():
  mapped = jax.pmap(
    averaged,
    axis_name='data',
    in_axes=(None, None, 0, 0, None),
    out_axes=None,
  )
  parts = lambda leaf: leaf.reshape(8, 4, *leaf.shape[1:])
  return train(mapped, first, lambda tree: jax.tree.map(parts, tree))


out = {}
for HELD_OUT, ways in (
  (False, (alone, on_a_mesh)), (True, (alone, on_a_mesh, in_shard_map, in_pmap))
):
  for run in ways:
    params, opt_state = run()
    tangents = opt_state.tangents[:2]
    out[f'{run.__name__}, {HELD_OUT}'] = {
      'params': [p.tolist() for p in jax.tree.leaves(params)],
      'hyperparams': metalr_flax.hyperparams_of(opt_state),
      'pieces': sorted(
        str(z.sharding.shard_shape(z.shape)) for z in tangents
      ),
    }
  jax.clear_caches()  # HELD_OUT changes
print(json.dumps(out))
"""
CASES = [  # and whether held-out gradients are given
  ('on_a_mesh', False),
  ('on_a_mesh', True),
  ('in_shard_map', True),
  ('in_pmap', True),
]


@pytest.fixture(scope='module')
def ends():
  devices = '--xla_force_host_platform_device_count=8'
  flags = f'{os.environ.get("XLA_FLAGS", "")} {devices}'
  return json.loads(runs.script('-c', PROGRAM, XLA_FLAGS=flags))


@pytest.mark.parametrize(('way', 'held_out'), CASES)
def test_eight_devices_agree_with_one(ends, way, held_out):
  alone, found = ends[f'alone, {held_out}'], ends[f'{way}, {held_out}']
  for one, eight in zip(alone['params'], found['params'], strict=True):
    np.testing.assert_allclose(eight, one, rtol=1e-4, atol=1e-6)
  one, eight = alone['hyperparams'], found['hyperparams']
  assert one == pytest.approx(eight, rel=1e-4)
  assert one['learning_rate'] > 1e-4  # it has learned


@pytest.mark.parametrize('held_out', [False, True])
def test_tangents_are_spread_as_their_parameters(ends, held_out):
  """Two directions of [16, 32 / 4] and of [32 / 4, 8]."""
  pieces = ends[f'on_a_mesh, {held_out}']['pieces']
  assert pieces == ['(2, 16, 8)', '(2, 8, 8)']
