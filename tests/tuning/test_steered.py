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


@pytest.mark.parametrize('held_out', [True, False])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.float64])
def test_updates_have_etas_dtype_and_the_state_its_own(x64, dtype, held_out):
  tx = steered.make(KINDS, held_out=held_out)
  eta = {'learning_rate': jnp.asarray(-5.0, dtype)}
  before = tx.init(eta)
  updates, after = tx.update(eta, before, eta)
  assert updates['learning_rate'].dtype == dtype
  for old, new in zip(*map(jax.tree.leaves, (before, after)), strict=True):
    assert (old.dtype, old.weak_type) == (new.dtype, new.weak_type)


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


@pytest.mark.parametrize('unroll_length', [1, 8, 64])
def test_a_window_counts_for_its_updates(unroll_length):
  """On training batches; the pace is 0.1 an update, at most 1 a window."""
  tx = steered.make(KINDS, held_out=False, unroll_length=unroll_length)
  eta = {'learning_rate': jnp.float32(-9.0)}
  slopes, state = {'learning_rate': jnp.float32(-1.0)}, tx.init(eta)
  update = jax.jit(tx.update)
  for _ in range(5):
    moves, state = update(slopes, state, eta)
  assert state.rule.time == 5 * unroll_length
  pace = min(steering.MAX_MOVE, steering.PACE / (5 * unroll_length))
  wanted = min(pace * unroll_length, steering.MAX_JUMP)
  assert moves['learning_rate'] == pytest.approx(wanted, rel=1e-5)


def test_a_window_counts_once_where_eta_follows_held_out_data():
  tx = steered.make(KINDS, held_out=True, unroll_length=8)
  eta = {'learning_rate': jnp.float32(-9.0)}
  moves, state = tx.update(
    {'learning_rate': jnp.float32(-1)}, tx.init(eta), eta
  )
  assert state.time == 1
  assert moves['learning_rate'] == pytest.approx(steering.MAX_MOVE, rel=1e-5)


def test_the_clock_stops_at_the_largest_integer():
  tx = steered.make(KINDS, held_out=False, unroll_length=2**31 - 1)
  eta = {'learning_rate': jnp.float32(-9.0)}
  state = tx.init(eta)
  for _ in range(3):
    moves, state = tx.update(eta, state, eta)
  assert state.rule.time == 2**31 - 1
  assert np.isfinite(moves['learning_rate'])


def test_what_an_explosion_took_comes_back_in_as_many_updates():
  def after(count):
    tx = steered.make(KINDS, held_out=False, unroll_length=count)
    eta = {'learning_rate': jnp.float32(-7.3)}
    state = tx.init(eta)
    rule = state.rule._replace(time=jnp.int32(6400))
    rule = steering.begin_anew(rule, jnp.float32([-5.0]))
    none, state = {'learning_rate': jnp.float32(0)}, state._replace(rule=rule)
    update = jax.jit(tx.update)
    for _ in range(6400 // count):
      moves, state = update(none, state, eta)
      eta = jax.tree.map(jnp.add, eta, moves)
    return eta['learning_rate'], state.rule.ceiling[0]

  rate, ceiling = after(8)
  np.testing.assert_allclose((rate, ceiling), after(64), atol=0.05)
  np.testing.assert_allclose(ceiling, -7 + np.log(2), atol=0.02)
  assert rate > -6.8


def kept(*, discount, unroll_length, windows=40):
  """Z of windows whose updates are all 1, as `Estimator` keeps it."""
  state, z = steering.init(1), {'w': jnp.zeros(1)}
  for window in range(windows):
    state = state._replace(time=jnp.int32(window * unroll_length))
    z = steered.limit_memory(
      z, state, discount=discount, unroll_length=unroll_length
    )
    z = {'w': discount * z['w'] + unroll_length}
  return float(z['w'][0])


def test_kept_tangents_fade_as_the_drop_ins_do():
  state, z = steering.init(1), 0.0
  for update in range(320):
    gamma = steering.long_discount(state._replace(time=jnp.int32(update)))
    z = float(gamma) * z + 1
  assert kept(discount=1.0, unroll_length=1, windows=320) == pytest.approx(z)
  # Within a window nothing fades.
  assert kept(discount=1.0, unroll_length=8) == pytest.approx(z, rel=0.03)


def test_a_discount_is_the_most_that_is_kept():
  found = kept(discount=0.5, unroll_length=1)
  assert found == pytest.approx(2.0)  # 1 + 1/2 + 1/4 + ...


def test_kept_tangents_have_their_own_dtype():
  z = {'w': jnp.ones((1, 3), jnp.bfloat16)}
  z = steered.limit_memory(z, steering.init(1), discount=1.0, unroll_length=1)
  assert z['w'].dtype == jnp.bfloat16


def test_where_no_tangents_are_kept_there_are_none():
  state = steering.init(1)
  assert not steered.limit_memory({}, state, discount=0.0, unroll_length=8)
