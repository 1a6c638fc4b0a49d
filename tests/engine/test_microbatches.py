"""A loss in parts is the loss of the whole batch, with all its derivatives."""

import dataclasses

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiers

from metalr_flax.engine import meta_gradient
from metalr_flax.engine import microbatches

Estimator = meta_gradient.Estimator
ESTIMATORS = {
  'forward': Estimator(kind='forward'),
  'reverse': Estimator(),
  'reverse_sqrt': Estimator(remat='sqrt'),
  'forward_none': Estimator(kind='forward', curvature='none'),
  'reverse_none': Estimator(curvature='none'),
  'online': Estimator(kind='forward', objective='online', discount=0.9),
}


def in_parts(parts, count):
  return dataclasses.replace(
    parts,
    loss_fn=microbatches.split(parts.loss_fn, count),
    meta_loss_fn=microbatches.split(parts.meta_loss_fn, count),
  )


@tiers.parametrize('name', ESTIMATORS, ['forward'])
def test_windows_and_meta_gradients_are_those_of_whole_batches(x64, name):
  estimator = ESTIMATORS[name]
  whole, state = cases.start(cases.BY_NAME['momentum'], estimator)
  expected, one, metrics = jax.jit(lambda s: estimator(s.eta, s.carry, whole))(
    state
  )
  cut = in_parts(whole, 4)
  found, other, of_parts = jax.jit(lambda s: estimator(s.eta, s.carry, cut))(
    state
  )
  for a, b in zip(
    jax.tree.leaves((expected, one.inner.params, one.tangents, metrics)),
    jax.tree.leaves((found, other.inner.params, other.tangents, of_parts)),
    strict=True,
  ):
    np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-12)


def _loss(params, model_state, batch, *, scale=1.0):
  hidden = jnp.tanh(batch['x'] @ params['w'])
  loss = scale * batch['weight'] * jnp.mean((hidden @ params['v']) ** 2)
  count = model_state['count'] + 1
  return loss, ({'count': count}, {'first': batch['x'][0, 0]})


def _arguments(size=64, width=64):
  keys = jax.random.split(jax.random.key(0), 3)
  params = {
    'w': jax.random.normal(keys[0], (width, width)) / 8,
    'v': jax.random.normal(keys[1], (width, 3)),
  }
  batch = {
    'x': jax.random.normal(keys[2], (size, width)),
    'weight': jnp.float32(0.5),
  }
  return params, {'count': jnp.int32(3)}, batch


@tiers.parametrize('count', [1, 2, 8, 64], [8])
def test_loss_gradient_state_and_metrics(count):
  params, model_state, batch = _arguments()
  derive = lambda f: jax.jit(jax.value_and_grad(f, has_aux=True))
  (expected, _), slopes = derive(_loss)(params, model_state, batch)
  (loss, (after, metrics)), grads = derive(microbatches.split(_loss, count))(
    params, model_state, batch
  )
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
  for name, slope in slopes.items():
    largest = float(jnp.max(jnp.abs(slope)))
    np.testing.assert_allclose(grads[name], slope, atol=1e-6 * largest, rtol=0)
  assert after['count'] == 3 + count  # the state went through every part
  firsts = batch['x'][:: 64 // count, 0]
  np.testing.assert_allclose(metrics['first'], np.mean(firsts), rtol=1e-5)


def test_its_hyperparameters_reach_every_part():
  arguments = _arguments()
  loss, _ = microbatches.split(_loss, 4)(*arguments, scale=3.0)
  np.testing.assert_allclose(loss, 3 * _loss(*arguments)[0], rtol=1e-6)


def test_one_parts_activations_are_alive_at_a_time():
  arguments = _arguments(size=4096)

  def peak(count):
    loss = microbatches.split(_loss, count)
    step = jax.jit(jax.grad(loss, has_aux=True))
    return step.lower(*arguments).compile().memory_analysis().temp_size_in_bytes

  assert peak(16) < 0.15 * peak(1)


def test_a_batch_that_cannot_be_cut_is_refused():
  loss = microbatches.split(_loss, 3)
  with pytest.raises(
    microbatches.UnevenError, match='microbatches=3: must divide the 64'
  ):
    loss(*_arguments())


def test_one_part_is_the_loss_itself():
  assert microbatches.split(_loss, 1) is _loss
