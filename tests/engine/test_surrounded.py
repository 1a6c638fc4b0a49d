"""Gradients clipped before the optimizer, updates multiplied after it."""

import dataclasses

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import references

from metalr_flax.engine import meta_gradient
from metalr_flax.engine import optimizers

Estimator = meta_gradient.Estimator
MODES = {'reverse': Estimator(), 'forward': Estimator(kind='forward')}
CASE = cases.BY_NAME['surrounded_adamw']
LABELS = {'w1': 'body', 'b1': 'body', 'w2': 'head', 'embedding': 'head'}


def window(estimator, parts, state):
  return jax.jit(lambda s: estimator(s.eta, s.carry, parts))(state)


def without_gradient(parts):
  """The problem with a training loss whose gradient is 0 everywhere."""

  def nothing(params, model_state, batch):
    loss, aux = cases.loss_fn(params, model_state, batch)
    return loss * jnp.sum(batch['x'][:, 0]), aux  # the blank pixel

  return dataclasses.replace(parts, loss_fn=nothing)


@pytest.mark.thorough
@pytest.mark.parametrize('mode', MODES)
def test_a_gradient_of_zero_has_a_meta_gradient_of_zero(mode):
  parts, state = cases.start(cases.BY_NAME['surrounded_momentum'], MODES[mode])
  gradient, _, _ = window(MODES[mode], without_gradient(parts), state)
  assert all(value == 0 for value in gradient.values())


@pytest.mark.thorough
@pytest.mark.parametrize('mode', MODES)
def test_a_gradient_of_zero_has_exact_derivatives(x64, mode):
  parts, state = cases.start(CASE, MODES['reverse'])
  parts = without_gradient(parts)
  loss = jax.jit(
    lambda eta: meta_gradient.meta_loss(
      MODES['reverse'], eta, state.carry, parts
    )[0]
  )
  differences = dict(
    zip(sorted(state.eta), references.differences(loss, state.eta), strict=True)
  )
  gradient, _, _ = window(MODES[mode], parts, state)
  # What moves the parameters is the weight decay, by the rate.
  assert abs(differences['learning_rate']) > 1e-6
  for name, value in gradient.items():
    np.testing.assert_allclose(
      value, differences[name], rtol=1e-6, atol=1e-12, err_msg=name
    )


@pytest.mark.thorough
def test_the_norm_is_that_of_all_groups():
  labels = {name: LABELS[name] for name in cases.params()}
  grouped, state = cases.start(CASE, MODES['reverse'], labels=labels)
  whole, expected = cases.start(CASE, MODES['reverse'])
  _, one, _ = window(Estimator(kind='none'), grouped, state)
  _, other, _ = window(Estimator(kind='none'), whole, expected)
  for name, value in one.inner.params.items():
    np.testing.assert_allclose(value, other.inner.params[name], rtol=1e-6)


@pytest.mark.thorough
def test_without_curvature_groups_share_one_tree_and_agree(x64):
  """The norm mixes the groups' gradients, which then count as constants."""
  labels = {name: LABELS[name] for name in cases.params()}
  gradients = []
  for kind in MODES:
    estimator = Estimator(kind=kind, curvature='none')
    parts, state = cases.start(CASE, estimator, labels=labels)
    gradients.append(window(estimator, parts, state)[0])
  for one, other in zip(*map(jax.tree.leaves, gradients), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-9)


def test_the_multiplier_scales_the_whole_update():
  params = cases.params()
  grads = jax.tree.map(jnp.ones_like, params)
  arguments = {'learning_rate': 0.1, 'weight_decay': 0.5}
  plain = optimizers.make_injected('adamw', arguments, ['learning_rate'])
  half = optimizers.surrounded(plain, multiplier=optax.constant_schedule(0.5))
  whole, _ = plain.update(grads, plain.init(params), params)
  scaled, _ = half.update(grads, half.init(params), params)
  for name, value in scaled.items():
    np.testing.assert_array_equal(value, 0.5 * whole[name])


def test_with_neither_it_is_the_optimizer_itself():
  tx = optimizers.make_injected('sgd', {'learning_rate': 0.1}, [])
  assert optimizers.surrounded(tx) is tx
