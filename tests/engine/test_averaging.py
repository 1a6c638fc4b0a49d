"""An average whose half-life is a share of the steps done."""

import jax
import jax.numpy as jnp
import numpy as np
import references
import tiers

from metalr_flax.engine import averaging
from metalr_flax.engine import records


def state_of(params, model_state):
  state = records.MetaTrainState(
    step=jnp.int32(0),
    params=params,
    model_state=model_state,
    opt_state=(),
    eta={},
    meta_opt_state=(),
    tangents={},
    data_state=(),
  )
  return state.replace(average=averaging.begin(state))


def average_of(first, values, share, model_state=()):
  """The last state, after params went through the rows of values."""

  def body(state, z):
    state = state.replace(step=state.step + 1, params=z)
    return state.replace(average=averaging.update(state, share)), None

  start = state_of(first, model_state)
  return jax.jit(lambda v: jax.lax.scan(body, start, v)[0])(values)


@tiers.parametrize('share', [0.05, 0.1, 1.0], [0.1])
def test_it_is_the_formula(share):
  values = jax.random.normal(jax.random.key(0), (400, 3))
  found = average_of({'w': jnp.ones(3)}, {'w': values}, share)
  expected = references.running_average(np.ones(3), values, share)
  average = found.average['params']['w']
  np.testing.assert_allclose(average, expected, rtol=1e-5, atol=1e-6)


def test_half_the_weight_is_on_the_last_share_of_the_steps():
  """From 1 to 0 after 900 of 1000 steps, a share of 0.1 of the 1000."""
  values = jnp.where(jnp.arange(1000) < 900, 1.0, 0.0)
  found = average_of(jnp.float32(1.0), values, 0.1)
  assert 0.48 < found.average['params'] < 0.53


def test_small_steps_are_not_lost_in_bfloat16():
  first = {'w': jnp.ones((), jnp.bfloat16), 'n': jnp.int32(3)}
  values = {
    'w': jnp.full(5000, 1.0078125, jnp.bfloat16),
    'n': jnp.arange(5000, dtype=jnp.int32),
  }
  found = average_of(first, values, 0.5)
  average = found.average['params']
  assert average['w'].dtype == jnp.float32
  np.testing.assert_allclose(average['w'], 1.0078125, atol=1e-5)
  assert average['n'] == 4999  # what is no float is the newest
  assert averaging.averaged(found).params['w'].dtype == jnp.bfloat16


def test_the_models_other_variables_are_averaged_too():
  """All but keys, and masks that are not finite."""
  first = {
    'mean': jnp.zeros(2),
    'mask': jnp.array([0.0, -jnp.inf]),
    'key': jax.random.key(0),
  }
  state = state_of({'w': jnp.ones(())}, first)
  later = {**first, 'mean': jnp.ones(2), 'key': jax.random.key(1)}
  state = state.replace(step=jnp.int32(2), model_state=later)
  state = state.replace(average=averaging.update(state, 0.5))
  found = averaging.averaged(state).model_state
  np.testing.assert_allclose(found['mean'], 0.5, rtol=1e-6)
  np.testing.assert_array_equal(found['mask'], first['mask'])
  assert found['key'] == later['key']
