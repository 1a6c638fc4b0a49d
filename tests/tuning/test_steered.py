"""The drop-in's rule as an optax transformation over eta."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metalr_flax.tuning import factors
from metalr_flax.tuning import steered
from metalr_flax.tuning import steering

ETA = {
  'label_smoothing': jnp.float32(-3.0),
  'learning_rate': {'body': jnp.float32(-9.0), 'head': jnp.float32(-8.0)},
  'weight_decay': jnp.float32(-7.0),
}


KINDS = dict.fromkeys(ETA, 'sigmoid')  # whose ranges are limit enough


def moves(slopes, *, held_out, count=20):
  """The last moves of many updates by the same slopes, as a row."""
  tx = steered.make(KINDS, held_out=held_out)
  tree = jax.tree.unflatten(jax.tree.structure(ETA), list(slopes))
  state = tx.init(ETA)
  for _ in range(count):
    updates, state = jax.jit(tx.update)(tree, state, ETA)
  assert jax.tree.structure(updates) == jax.tree.structure(ETA)
  return np.array(jax.tree.leaves(updates))


# Smoothing, the rates of body and head, decay.
SLOPES = np.float32([1.0, -1.0, 1.0, -1.0])


@pytest.mark.parametrize('scale', [1e-12, 1.0, 1e12])
def test_each_moves_against_its_slope_at_its_pace_whatever_the_scale(scale):
  found = moves(scale * SLOPES, held_out=False)
  most, share = steering.MAX_MOVE, steering.OTHERS_SHARE
  np.testing.assert_allclose(
    found, [-share * most, most, -most, share * most], rtol=1e-5
  )


def test_a_weight_decay_that_follows_held_out_data_has_the_whole_pace():
  """While it grows the rate does not fall."""
  found = moves(SLOPES, held_out=True)
  most, share = steering.MAX_MOVE, steering.OTHERS_SHARE
  np.testing.assert_allclose(
    found, [-share * most, most, 0.0, most], rtol=1e-5, atol=1e-8
  )


def test_of_noise_it_moves_little():
  tx = steered.make(KINDS, held_out=True)
  eta = {'learning_rate': jnp.float32(-5.0)}
  update, state = jax.jit(tx.update), tx.init(eta)
  rng = np.random.default_rng(0)
  for _ in range(500):
    slopes = {'learning_rate': jnp.float32(rng.standard_normal())}
    updates, state = update(slopes, state, eta)
    eta = {'learning_rate': eta['learning_rate'] + updates['learning_rate']}
  assert abs(eta['learning_rate'] + 5.0) < 1.5


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.float64])
def test_updates_have_etas_dtype(x64, dtype):
  tx = steered.make(KINDS, held_out=True)
  eta = {'learning_rate': jnp.asarray(-5.0, dtype)}
  updates, _ = tx.update(eta, tx.init(eta), eta)
  assert updates['learning_rate'].dtype == dtype


def test_eta_is_needed():
  tx = steered.make(KINDS, held_out=True)
  with pytest.raises(ValueError, match='needs eta'):
    tx.update(ETA, tx.init(ETA))


@pytest.mark.parametrize(('slope', 'start'), [(1, 1e-3), (-1, 100.0)])
def test_a_held_out_decay_stays_where_the_drop_in_keeps_it(slope, start):
  """At 1e-4 or above, and at 1 / rate or below."""
  kinds = {'learning_rate': 'log', 'weight_decay': 'log'}
  tx = steered.make(kinds, held_out=True)
  eta = {'learning_rate': jnp.log(1e-3), 'weight_decay': jnp.log(start)}
  slopes = {
    'learning_rate': jnp.float32(-1),
    'weight_decay': jnp.float32(slope),
  }
  update, state = jax.jit(tx.update), tx.init(eta)
  for _ in range(40):
    updates, state = update(slopes, state, eta)
    eta = jax.tree.map(jnp.add, eta, updates)
  values = jax.tree.map(np.exp, eta)
  wanted = 1e-4 if slope > 0 else 1 / values['learning_rate']
  assert values['weight_decay'] == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize(
  ('kinds', 'held_out', 'expected'),
  [
    ({'learning_rate': 'log', 'weight_decay': 'log'}, True, (1e-5, 1e-3)),
    ({'learning_rate': 'log', 'weight_decay': 'log'}, False, (1e-5, 0.3)),
    # Their ranges do not have where it would start.
    (
      {'learning_rate': 'sigmoid(0.01, 1)', 'weight_decay': 'sigmoid(0.1, 1)'},
      True,
      (0.1, 0.3),
    ),
  ],
)
def test_it_starts_where_the_drop_in_starts(kinds, held_out, expected):
  given = {'learning_rate': {'a': 0.1}, 'weight_decay': 0.3}
  found = steered.begin(given, kinds, held_out=held_out)
  assert (found['learning_rate']['a'], found['weight_decay']) == expected


def test_a_rate_below_that_start_stays():
  kinds = {'learning_rate': 'log'}
  low = factors.START / 10
  found = steered.begin({'learning_rate': low}, kinds, held_out=True)
  assert found == {'learning_rate': low}
