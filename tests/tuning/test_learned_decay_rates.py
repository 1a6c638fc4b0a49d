"""A momentum or decay rate learned with the rate does no harm.

Without the Hessian the slope of a momentum says too much: it once ran to 0.9997
and took the run with it. `benchmarks/learned_hyperparams.py` has all of them.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiers

import metalr_flax
from metalr_flax.tuning import factors

CURVATURES = np.logspace(0, 2, 20)
RATE = {'learning_rate': 'log'}
INNER = {
  'b1': (optax.adam, {'b1': 0.9}),
  'momentum': (optax.sgd, {'momentum': 0.9}),
  'decay': (optax.rmsprop, {'decay': 0.9}),
}


@functools.cache
def final_losses(name, learned):
  """After 800 updates on a quadratic with noise in its gradients, 8 seeds."""
  factory, arguments = INNER[name]
  inner = optax.inject_hyperparams(factory)(1e-3, **arguments)
  tx = metalr_flax.self_tuning(inner, learned=dict(learned))
  loss = lambda w: 0.5 * jnp.sum(CURVATURES * w**2)

  def run(key):
    start, noise = jax.random.split(key)
    w = jax.random.normal(start, (20,))

    def body(carry, key):
      w, state = carry
      grads = jax.grad(loss)(w) + 0.1 * jax.random.normal(key, (20,))
      updates, state = tx.update(grads, state, w)
      return (optax.apply_updates(w, updates), state), None

    carry = w, tx.init(w)
    (w, state), _ = jax.lax.scan(body, carry, jax.random.split(noise, 800))
    return loss(w), state.opt_state.hyperparams[name]

  return jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), 8))


@pytest.mark.thorough
@tiers.parametrize('name', INNER, ['momentum'])
def test_learned_with_the_rate_it_is_no_worse_than_the_rate_alone(name):
  alone, _ = final_losses(name, tuple(RATE.items()))
  both = (*RATE.items(), (name, 'one_minus_log'))
  losses, values = final_losses(name, both)
  ratio = np.exp(np.mean(np.log(losses / alone)))
  assert ratio < 1.5
  assert np.all((values > 0) & (values < 1))


@pytest.mark.parametrize('base', [0.0, 0.5, 0.9, 0.999, 1 - 1e-7])
@pytest.mark.parametrize('age', [0, 10, 1000, 10**7, np.inf])
def test_eta_stays_where_a_decay_rate_moves(base, age):
  base = {'b1': jnp.asarray(base)}
  learned = {'b1': 'one_minus_log'}
  for eta in (-100.0, 100.0):
    edge = factors.clip({'b1': jnp.asarray(eta)}, base, learned, age)

    def value(eta):
      return factors.constrain(base, {'b1': eta}, learned)['b1']

    found, slope = jax.value_and_grad(value)(edge['b1'])
    assert 0 <= found < 1
    assert slope != 0
    memory = 1 / (1 - float(found))
    allowed = max(1 / (1 - float(base['b1'])), 0.05 * age + 1)
    assert memory <= 1.01 * min(allowed, 1.1e6) or found == base['b1']


@pytest.mark.parametrize('base', [1e-20, 1e-5, 1.0, 1e10, 1e20])
def test_eta_stays_where_a_positive_value_moves(base):
  base = {'eps': jnp.asarray(base)}
  learned = {'eps': 'log'}
  for eta in (-200.0, 200.0):
    edge = factors.clip({'eps': jnp.asarray(eta)}, base, learned, 0)

    def value(eta):
      return factors.constrain(base, {'eps': eta}, learned)['eps']

    found, slope = jax.value_and_grad(value)(edge['eps'])
    assert 0 < found < np.inf
    assert 0 < slope < np.inf
