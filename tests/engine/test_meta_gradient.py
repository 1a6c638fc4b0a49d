"""Every meta-gradient has two independent references."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import references
import tiers

from metalr_flax.engine import bijections as bijections_lib
from metalr_flax.engine import curvature
from metalr_flax.engine import inner
from metalr_flax.engine import meta_gradient
from metalr_flax.engine import optimizers
from metalr_flax.engine import outer
from metalr_flax.engine import records

SLOPE, DECAY, EPS = 10.0, 0.9, 1e-8


def _next_batch(key):
  key, x_key, noise_key = jax.random.split(key, 3)
  x = jax.random.uniform(x_key, (), minval=0.0, maxval=10.0)
  return key, (x, SLOPE * x + jax.random.normal(noise_key))


def _loss_fn(params, model_state, batch):
  x, y = batch
  return 0.5 * (params['theta'] * x - y) ** 2, (model_state, {})


def _problem(unroll_length):
  return records.Problem(
    loss_fn=_loss_fn,
    meta_loss_fn=_loss_fn,
    next_batch=_next_batch,
    next_meta_batch=_next_batch,
    tx=optimizers.make_injected(
      'rmsprop', {'learning_rate': 0.1}, ['learning_rate']
    ),
    bijections={'learning_rate': 'sigmoid'},
    unroll_length=unroll_length,
  )


def _start(problem, theta=0.3):
  params = {'theta': jnp.asarray(theta, jnp.zeros(()).dtype)}
  return records.InnerState(
    params=params, model_state={}, opt_state=problem.tx.init(params)
  )


def _carry(inner, data_state):
  return records.Carry(inner=inner, data_state=data_state, tangents={})


def _eta(value=0.1):
  kinds = {'learning_rate': 'sigmoid'}
  return bijections_lib.unconstrain({'learning_rate': value}, kinds)


REVERSE = meta_gradient.Estimator()
EXACT = [
  REVERSE,
  meta_gradient.Estimator(remat='step'),
  meta_gradient.Estimator(remat='sqrt'),
  meta_gradient.Estimator(kind='forward'),
]


@pytest.mark.parametrize('estimator', EXACT)
def test_closed_form_of_one_update(x64, estimator):
  """K = 1, written out by hand: theta' = theta - lambda u(g)."""
  problem = _problem(1)
  theta = 0.3
  key = jax.random.key(1)
  key_after, (x, y) = _next_batch(key)
  _, (x_meta, y_meta) = _next_batch(key_after)
  g = (theta * x - y) * x
  update = g / jnp.sqrt((1 - DECAY) * g**2 + EPS)
  rate = 0.1
  theta_new = theta - rate * update
  expected = (theta_new * x_meta - y_meta) * x_meta  # dF/dtheta'
  expected *= -update * rate * (1 - rate)  # dtheta'/dlambda dlambda/deta
  gradient, after, _ = estimator(
    _eta(rate), _carry(_start(problem, theta), key), problem
  )
  np.testing.assert_allclose(
    gradient['learning_rate'], expected, rtol=1e-6, atol=0
  )
  np.testing.assert_allclose(after.inner.params['theta'], theta_new, rtol=1e-9)


@tiers.parametrize('unroll_length', [1, 6, 30], [6])
@pytest.mark.parametrize('estimator', EXACT)
def test_central_finite_difference(x64, unroll_length, estimator):
  problem = _problem(unroll_length)
  key = jax.random.key(2)
  meta_loss = jax.jit(
    lambda eta: meta_gradient.meta_loss(
      REVERSE, eta, _carry(_start(problem), key), problem
    )[0]
  )
  gradient_of = jax.jit(
    lambda eta: estimator(eta, _carry(_start(problem), key), problem)[0]
  )
  for rate in (0.003, 0.1, 0.7):
    eta = _eta(rate)
    (difference,) = references.differences(meta_loss, eta)
    np.testing.assert_allclose(
      gradient_of(eta)['learning_rate'], difference, rtol=1e-6, atol=1e-9
    )


def test_the_callers_state_is_left_alone():
  """Writing hyperparameters must not put tracers into the caller's dicts."""
  problem = _problem(2)
  state = _start(problem)
  before = state.opt_state.hyperparams['learning_rate']
  REVERSE(_eta(0.5), _carry(state, jax.random.key(0)), problem)
  assert state.opt_state.hyperparams['learning_rate'] is before


def _outer_state(problem, meta_tx):
  return outer.init_state(
    problem,
    params={'theta': jnp.float32(0.3)},
    model_state={},
    data_state=jax.random.key(0),
    hyperparams={'learning_rate': 0.1},
    meta_tx=meta_tx,
  )


def test_outer_step_moves_eta_against_the_gradient():
  problem, meta_tx = _problem(6), optax.sgd(1e-4)
  state = _outer_state(problem, meta_tx)
  gradient, _, _ = REVERSE(state.eta, state.carry, problem)
  after, metrics = outer.outer_step(state, problem, meta_tx=meta_tx)
  expected = state.eta['learning_rate'] - 1e-4 * gradient['learning_rate']
  np.testing.assert_allclose(after.eta['learning_rate'], expected, rtol=1e-6)
  np.testing.assert_allclose(
    metrics['hyperparams/learning_rate'],
    jax.nn.sigmoid(after.eta['learning_rate']),
  )
  assert after.step == 1


def test_eta_stays_where_phi_has_a_slope():
  problem, meta_tx = _problem(2), optax.sgd(1e9)
  state = _outer_state(problem, meta_tx)
  for _ in range(3):
    state, metrics = outer.outer_step(state, problem, meta_tx=meta_tx)
  eta = state.eta['learning_rate']
  slope = jax.grad(jax.nn.sigmoid)(eta)
  assert slope > 0
  assert 0 < metrics['hyperparams/learning_rate'] < 1


@functools.cache
def _chunk(max_steps):
  problem, meta_tx = _problem(6), optax.adam(0.03)
  step_fn = functools.partial(
    outer.outer_step, problem=problem, meta_tx=meta_tx
  )
  jitted = jax.jit(
    functools.partial(outer.outer_steps, step_fn=step_fn, max_steps=max_steps)
  )
  return _outer_state(problem, meta_tx), jitted


@pytest.mark.parametrize('cuts', [(40,), (1, 39), (7, 13, 20), (39, 1)])
def test_bits_do_not_depend_on_the_cuts(cuts):
  """One executable for all lengths, and the same rows and state."""
  start, chunk = _chunk(40)
  whole, expected = chunk(start, np.int32(40))
  state, rows = start, []
  for count in cuts:
    state, part = chunk(state, np.int32(count))
    assert part.count == count
    rows.append(jax.tree.map(lambda r, n=count: r[:n], part.rows))
  assert chunk._cache_size() == 1
  joined = jax.tree.map(lambda *r: np.concatenate(r), *rows)
  for key, row in joined.items():
    assert row.tobytes() == np.asarray(expected.rows[key]).tobytes(), key
  assert state.eta['learning_rate'] == whole.eta['learning_rate']
  assert state.params['theta'] == whole.params['theta']


def test_loop_ends_at_the_first_step_that_is_not_finite():
  start, chunk = _chunk(40)
  bad = start.replace(params={'theta': jnp.float32(jnp.inf)})
  _, record = chunk(bad, np.int32(40))
  assert record.count == 1
  assert not record.finite
  _, record = chunk(start, np.int32(40))
  assert record.count == 40
  assert record.finite


def test_hyperparameters_reach_the_optimizer():
  problem = _problem(1)
  state = _start(problem)
  stepped = {}
  for rate in (0.1, 0.2):
    after, _, _ = inner.inner_step(
      state,
      {'learning_rate': jnp.float32(rate)},
      (jnp.float32(1.0), jnp.float32(10.0)),
      grad_fn=curvature.exact(problem.loss_fn),
      tx=problem.tx,
    )
    stepped[rate] = float(after.params['theta'] - state.params['theta'])
  assert stepped[0.2] == pytest.approx(2 * stepped[0.1], rel=1e-5)
