"""Hyperparameters of the loss: their meta-gradients have two references."""

import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import references

from metalr_flax.engine import bijections
from metalr_flax.engine import meta_gradient
from metalr_flax.engine import optimizers
from metalr_flax.engine import outer
from metalr_flax.engine import records

KINDS = {'learning_rate': 'log', 'l2': 'log', 'shares': 'sigmoid'}
INITIAL = {'l2': 0.1, 'shares': {'first': 0.3, 'second': 0.6}}
NAMES = ('l2', 'shares')


def _loss_fn(params, model_state, batch, *, l2, shares):
  """A weight on each half of the batch, and a penalty of the weights."""
  half = batch['y'].shape[0] // 2
  parts = {
    'first': jax.tree.map(lambda x: x[:half], batch),
    'second': jax.tree.map(lambda x: x[half:], batch),
  }
  losses = [
    shares[name] * cases.loss_fn(params, model_state, part)[0]
    for name, part in parts.items()
  ]
  penalty = sum(jnp.sum(p**2) for p in (params['w1'], params['w2']))
  return sum(losses) + 0.5 * l2 * penalty, (model_state, {})


def _problem(unroll_length, factory='adam', labels=None, **changed):
  arguments = {'learning_rate': 0.02}
  make = functools.partial(optimizers.make_grouped, labels=labels)
  make = optimizers.make_injected if labels is None else make
  fields = {
    'loss_fn': _loss_fn,
    'meta_loss_fn': cases.loss_fn,
    'next_batch': cases.next_batch,
    'next_meta_batch': cases.next_batch,
    'tx': make(factory, arguments, ['learning_rate']),
    'bijections': KINDS,
    'unroll_length': unroll_length,
    'labels': labels,
    'loss_hyperparams': NAMES,
  }
  return records.Problem(**{**fields, **changed})


def _state(problem, estimator):
  rate = 0.02
  if problem.labels is not None:
    rate = dict.fromkeys(sorted(set(jax.tree.leaves(problem.labels))), 0.02)
  return outer.init_state(
    problem,
    params=cases.params(),
    model_state={},
    data_state=jax.random.key(3),
    hyperparams={'learning_rate': rate, **INITIAL},
    meta_tx=optax.sgd(0.1),
    estimator=estimator,
  )


LABELS = {'w1': 'body', 'b1': 'body', 'w2': 'head', 'embedding': 'head'}
FORWARD = meta_gradient.Estimator(kind='forward')
HESSIAN_FREE = meta_gradient.Estimator(kind='forward', curvature='none')
REVERSE = meta_gradient.Estimator()


SLOW = pytest.mark.thorough


@pytest.mark.parametrize(
  ('estimator', 'unroll_length', 'factory', 'labels'),
  [
    (FORWARD, 3, 'adam', None),
    pytest.param(FORWARD, 3, 'sgd', LABELS, marks=SLOW),
    pytest.param(REVERSE, 3, 'adam', LABELS, marks=SLOW),
    pytest.param(
      meta_gradient.Estimator(remat='sqrt'), 3, 'sgd', None, marks=SLOW
    ),
    # One update has no Hessian term; Adam's first is a sign.
    pytest.param(HESSIAN_FREE, 1, 'sgd', None, marks=SLOW),
    (HESSIAN_FREE, 1, 'sgd', LABELS),
    pytest.param(
      meta_gradient.Estimator(curvature='none'), 1, 'sgd', LABELS, marks=SLOW
    ),
    pytest.param(
      meta_gradient.Estimator(curvature='subsample', subsample=1.0),
      3,
      'sgd',
      None,
      marks=SLOW,
    ),
  ],
)
def test_slopes_equal_finite_differences(
  x64, estimator, unroll_length, factory, labels
):
  problem = _problem(unroll_length, factory, labels)
  state = _state(problem, estimator)
  slopes, _, _ = jax.jit(lambda e: estimator(e, state.carry, problem))(
    state.eta
  )
  loss = jax.jit(
    lambda e: meta_gradient.meta_loss(REVERSE, e, state.carry, problem)[0]
  )
  found = np.array(jax.tree.leaves(slopes))
  assert np.all(np.abs(found) > 1e-6)  # each of them says something
  np.testing.assert_allclose(
    found, references.differences(loss, state.eta), rtol=1e-6, atol=0
  )


@pytest.mark.parametrize('estimator', [FORWARD, REVERSE, HESSIAN_FREE])
def test_closed_form_of_one_update(x64, estimator):
  """theta' = theta - a (x (theta x - y) + l2 theta), F = (theta' x - y)^2/2."""
  x, y, rate, l2, theta = 2.0, 3.0, 0.1, 0.5, 0.7

  def loss_fn(params, model_state, batch, *, l2=0.0):
    residual = params['theta'] * batch[0] - batch[1]
    loss = 0.5 * residual**2 + 0.5 * l2 * params['theta'] ** 2
    return loss, (model_state, {})

  next_batch = lambda state: (state, (jnp.asarray(x), jnp.asarray(y)))
  problem = records.Problem(
    loss_fn=loss_fn,
    meta_loss_fn=loss_fn,
    next_batch=next_batch,
    next_meta_batch=next_batch,
    tx=optimizers.make_injected(
      'sgd', {'learning_rate': rate}, ['learning_rate']
    ),
    bijections={'learning_rate': 'log', 'l2': 'log'},
    unroll_length=1,
    loss_hyperparams=['l2'],
  )
  state = outer.init_state(
    problem,
    params={'theta': jnp.asarray(theta)},
    model_state={},
    data_state={},
    hyperparams={'learning_rate': rate, 'l2': l2},
    meta_tx=optax.sgd(0.1),
  )
  slopes, carry, metrics = estimator(state.eta, state.carry, problem)
  gradient = x * (theta * x - y) + l2 * theta
  after = theta - rate * gradient
  slope = (after * x - y) * x  # dF/dtheta'
  np.testing.assert_allclose(carry.inner.params['theta'], after, rtol=1e-12)
  expected = {
    'l2': slope * -rate * theta * l2,
    'learning_rate': slope * -gradient * rate,
  }
  for name, value in expected.items():
    np.testing.assert_allclose(slopes[name], value, rtol=1e-9)
  np.testing.assert_allclose(  # the outer loss is without the penalty
    metrics['meta/loss'], 0.5 * (after * x - y) ** 2, rtol=1e-12
  )


@SLOW
def test_kept_tangents_of_two_windows_are_those_of_one(x64):
  """gamma = 1: Z of a loss's hyperparameter lives on."""
  kept = meta_gradient.Estimator(kind='forward', discount=1.0)
  problem = _problem(3)
  state = _state(problem, kept)
  whole = FORWARD(state.eta, state.carry.replace(tangents={}), _problem(6))
  _, carry, _ = kept(state.eta, state.carry, problem)
  # The window draws a batch for its outer loss; the other does not.
  data_state = state.data_state
  for _ in range(3):
    data_state, _ = cases.next_batch(data_state)
  slopes, _, _ = kept(state.eta, carry.replace(data_state=data_state), problem)
  for found, wanted in zip(
    jax.tree.leaves(slopes), jax.tree.leaves(whole[0]), strict=True
  ):
    np.testing.assert_allclose(found, wanted, rtol=1e-9)


def test_a_step_moves_each_value():
  problem = _problem(2)
  state = _state(problem, FORWARD)
  step = functools.partial(
    outer.outer_step, meta_tx=optax.sgd(0.1), estimator=FORWARD
  )
  after, metrics = jax.jit(lambda s: step(s, problem))(state)
  values = bijections.constrain(after.eta, KINDS)
  assert metrics['hyperparams/shares/first'] == values['shares']['first']
  for old, new in zip(
    jax.tree.leaves(state.eta), jax.tree.leaves(after.eta), strict=True
  ):
    assert old != new


@pytest.mark.parametrize(
  ('changed', 'estimator', 'message'),
  [
    ({'loss_hyperparams': 'l2'}, FORWARD, 'must be several names'),
    ({'loss_hyperparams': [*NAMES, 'm']}, FORWARD, "'m' has no bijection"),
    (
      {},
      meta_gradient.Estimator(kind='forward', objective='online', discount=0.9),
      "l2 could lower by itself; use objective='held_out'",
    ),
    (
      {'tx': optax.inject_hyperparams(optax.adam)(0.02, b1=0.9)}
      | {
        'bijections': {'learning_rate': 'log', 'b1': 'sigmoid'},
        'loss_hyperparams': ['b1'],
        'loss_fn': lambda p, s, b, b1: cases.loss_fn(p, s, b),
      },
      FORWARD,
      "'b1' is injected by tx as well",
    ),
  ],
)
def test_what_cannot_be_learned_is_refused(changed, estimator, message):
  values = {'learning_rate': 0.02, 'b1': 0.9, **INITIAL}

  def window():
    problem = _problem(2, **changed)
    state = outer.init_state(
      problem,
      params=cases.params(),
      model_state={},
      data_state=jax.random.key(3),
      hyperparams={name: values[name] for name in problem.bijections},
      meta_tx=optax.sgd(0.1),
      estimator=estimator,
    )
    estimator(state.eta, state.carry, problem)

  with pytest.raises(ValueError, match=message):
    window()
