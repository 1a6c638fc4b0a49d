"""The rule that moves eta: every branch, on slopes made by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metalr_flax.tuning import steering

RATE = jnp.array([True])
OTHER = jnp.array([False])
BOTH = jnp.array([True, False])
STEER = jax.jit(steering.steer)


def steer(slopes, quick=None, *, is_rate=RATE, eta=0.0, memory=None, times=1):
  """The last of some moves by the same slopes, and what is remembered."""
  count = len(is_rate)
  row = lambda values: jnp.broadcast_to(jnp.float32(values), (count,))
  memory = steering.init(count) if memory is None else memory
  for _ in range(times):
    moves, memory = STEER(
      row(eta),
      row(slopes),
      row(0.0 if quick is None else quick),
      is_rate,
      memory,
    )
  return np.asarray(moves), memory


def at(time, count=1):
  """The rule as it begins, but late in a run."""
  return steering.init(count)._replace(time=jnp.int32(time))


@pytest.mark.parametrize('slope', [1e-20, 1.0, 1e20])
def test_a_slope_of_one_sign_moves_by_the_whole_pace(slope):
  """Whatever its size: mean over root mean square is 1."""
  moves, _ = steer(slope, times=5)
  assert moves == pytest.approx(-steering.MAX_MOVE, rel=1e-5)
  moves, _ = steer(-slope, times=5)
  assert moves == pytest.approx(steering.MAX_MOVE, rel=1e-5)


def test_the_pace_falls_as_one_over_the_time():
  for time in (599, 5999):
    moves, memory = steer(-1.0, memory=at(time))
    assert moves == pytest.approx(steering.PACE / (time + 1), rel=1e-5)
    assert memory.time == time + 1


def test_slopes_that_take_turns_move_little():
  memory = steering.init(1)
  for number in range(40):
    moves, memory = steer((-1.0) ** number, memory=memory)
  assert abs(moves) < 0.2 * steering.MAX_MOVE


def test_no_slope_moves_nothing():
  moves, _ = steer(0.0, times=3)
  assert moves == 0


def test_the_long_average_is_over_a_share_of_the_run():
  """After 1000 updates one slope counts as one in 300."""
  memory = at(1000)._replace(
    long=steering.Average(jnp.ones(1), jnp.ones(1), jnp.ones(()))
  )
  moves, _ = steer(-1.0, memory=memory)
  share = 1 / (steering.AVERAGED_SHARE * 1000)
  assert moves == pytest.approx(
    -steering.PACE / 1001 * (1 - 2 * share), rel=1e-4
  )


def test_all_of_the_last_updates_uphill_brake_the_rate():
  """At once, whatever the run as a whole has gained; later as early."""
  for time in (0, 10_000):
    moves, _ = steer(-1.0, 1.0, memory=at(time))
    assert moves == pytest.approx(-steering.BRAKE, rel=1e-4)
  moves, _ = steer(1.0, 1.0)
  both = steering.MAX_MOVE + steering.BRAKE
  assert moves == pytest.approx(-both, rel=1e-4)


def test_all_of_the_last_updates_downhill_boost_the_rate():
  moves, _ = steer(1.0, -1.0)
  assert moves == pytest.approx(steering.BOOST, rel=1e-4)
  moves, _ = steer(1.0, -1.0, memory=at(10_000))
  assert moves == pytest.approx(steering.BOOST, rel=1e-4)


def test_a_boost_is_no_less_than_what_the_long_slope_says(monkeypatch):
  monkeypatch.setattr(steering, 'BOOST', 0.01)
  moves, _ = jax.jit(lambda *a: steering.steer(*a))(
    jnp.zeros(1), -jnp.ones(1), -jnp.ones(1), RATE, steering.init(1)
  )
  assert moves == pytest.approx(steering.MAX_MOVE, rel=1e-5)


@pytest.mark.parametrize('sign', [1, -1])
@pytest.mark.parametrize('alert', [0.5, 0.9])
def test_the_last_updates_overrule_in_proportion_to_how_sure_they_are(
  alert, sign
):
  """Not at all up to 0.7, and fully at 1."""
  quick = steering.Average(jnp.array([sign * alert]), jnp.ones(1), jnp.ones(()))
  moves, _ = steer(0.0, sign * alert, memory=at(10_000)._replace(quick=quick))
  new = 1 / steering.QUICK_AVERAGED
  sure = alert / np.sqrt(1 - new + new * alert**2)
  excess = max(sure - steering.SURE, 0) / (1 - steering.SURE)
  most = -steering.BRAKE if sign > 0 else steering.BOOST
  assert moves == pytest.approx(most * excess, rel=1e-3)
  assert (excess > 0) == (alert > steering.SURE)


def test_other_hyperparameters_move_at_a_third_of_the_pace():
  moves, _ = steer(-1.0, is_rate=BOTH)
  assert moves[0] == pytest.approx(steering.MAX_MOVE, rel=1e-5)
  assert moves[1] == pytest.approx(
    steering.OTHERS_SHARE * steering.MAX_MOVE, rel=1e-5
  )


@pytest.mark.parametrize('eta', [-2.0, 0.5])
def test_a_brake_pulls_others_towards_what_the_user_set(eta):
  moves, _ = steer([0.0, 0.0], [1.0, 0.0], is_rate=BOTH, eta=[0.0, eta])
  assert moves[0] == pytest.approx(-steering.BRAKE, rel=1e-5)
  assert moves[1] == pytest.approx(-steering.BRAKE * eta, rel=1e-5)


def test_a_boost_does_not_touch_others():
  moves, _ = steer([0.0, 0.0], [-1.0, 0.0], is_rate=BOTH, eta=[0.0, 2.0])
  assert moves.tolist() == pytest.approx([steering.BOOST, 0.0], rel=1e-5)


def test_without_a_rate_nobody_brakes():
  moves, _ = steer(0.0, 0.0, is_rate=OTHER, eta=3.0)
  assert moves == 0


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_of_slopes_that_are_not_finite_nothing_bad_is_learned(bad):
  moves, memory = steer(bad, bad)
  leaves = jax.tree.leaves((moves, memory))
  assert all(np.all(np.isfinite(leaf)) for leaf in leaves)
  if np.isnan(bad):
    assert moves == 0
  else:  # a direction it has
    assert np.sign(moves) == -np.sign(bad)


def test_begun_anew_only_the_time_is_remembered_and_what_is_owed():
  _, memory = steer(1.0, 1.0, times=7)
  anew = steering.begin_anew(memory)
  assert anew.time == 7
  assert anew.owed == pytest.approx(steering.OWED)
  for leaf in jax.tree.leaves((anew.long, anew.quick)):
    assert not np.any(leaf)


def test_a_rate_that_was_lowered_gets_most_of_it_back():
  """Of what is owed a tenth at each update, and later in a run a share of it."""
  anew = steering.begin_anew(steering.init(1))
  moves, memory = steer(0.0, memory=anew)
  assert moves == pytest.approx(steering.OWED / steering.MIN_WINDOW, rel=1e-5)
  assert memory.owed == pytest.approx(steering.OWED - moves[0], rel=1e-5)
  late, _ = steer(0.0, memory=steering.begin_anew(at(1000)))
  assert late == pytest.approx(steering.OWED / 100, rel=1e-5)
  _, memory = steer(0.0, memory=anew, times=40)
  assert 0 < memory.owed < 0.1 * steering.OWED


def test_nothing_is_paid_back_while_the_brake_is_on_nor_to_others():
  anew = steering.begin_anew(steering.init(2))
  moves, memory = steer([0.0, 0.0], [1.0, 0.0], is_rate=BOTH, memory=anew)
  assert moves.tolist() == pytest.approx([-steering.BRAKE, 0.0], rel=1e-5)
  assert memory.owed == pytest.approx(steering.OWED)
  moves, _ = steer([0.0, 0.0], [0.0, 0.0], is_rate=BOTH, memory=anew)
  assert moves[0] > 0
  assert moves[1] == 0


def test_the_long_window_grows_with_the_run():
  for time, window in ((0, steering.MIN_WINDOW), (5, 10), (400, 400)):
    gamma = steering.long_discount(at(time))
    assert gamma == pytest.approx(1 - 1 / window)
