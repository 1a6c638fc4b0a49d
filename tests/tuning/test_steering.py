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


def steer(slopes, cosine=0.0, *, is_rate=RATE, eta=0.0, memory=None, times=1):
  """The last of some moves by the same slopes, and what is remembered."""
  count = len(is_rate)
  row = lambda values: jnp.broadcast_to(jnp.float32(values), (count,))
  memory = steering.init(count) if memory is None else memory
  for _ in range(times):
    moves, memory = STEER(
      row(eta),
      row(slopes),
      row(cosine),
      is_rate,
      memory,
    )
  return np.asarray(moves), memory


PACE_AT_100 = min(steering.MAX_MOVE, steering.PACE / 101)


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


def after(*, alert=0.0, level=0.0, trend=0.0, time=10_000, **more):
  """The rule late in a run, with averages so; the next values leave them."""
  average = lambda mean, rms=1.0: steering.Average(
    jnp.array([mean]), jnp.array([rms]), jnp.ones(())
  )
  return at(time)._replace(
    quick=average(alert), lately=average(level), long=average(trend), **more
  )


@pytest.mark.parametrize('alert', [0.5, 0.9])
def test_the_last_updates_boost_in_proportion_to_how_sure_they_are(alert):
  """Not at all up to 0.7, and fully at 1."""
  moves, _ = steer(0.0, -1.0, memory=after(alert=-alert, level=-1.0))
  new = 1 / steering.QUICK_AVERAGED
  mean = (1 - new) * alert + new
  sure = mean / np.sqrt((1 - new) * 1 + new)
  excess = max(sure - steering.SURE, 0) / (1 - steering.SURE)
  assert moves == pytest.approx(steering.BOOST * excess, rel=1e-3)
  assert (excess > 0) == (alert > steering.SURE)


@pytest.mark.parametrize(
  ('level', 'trend', 'boosts'),
  [
    (-0.9, 0.5, True),
    (-0.1, 0.5, False),
    (-0.1, 0.0, False),
    (-0.1, -0.9, True),
  ],
)
def test_a_boost_needs_the_long_slope_or_a_cosine_near_minus_one(
  level, trend, boosts
):
  """Where each update sees other parameters all of them go downhill."""
  memory = after(alert=-1.0, level=level, trend=trend)
  cosine = level if level < -0.5 else -0.1
  moves, _ = steer(trend, cosine, memory=memory)
  assert (moves > 0.01) == boosts


@pytest.mark.parametrize(
  ('alert', 'level', 'brakes'),
  [(0.6, 0.7, True), (0.3, 0.7, False), (0.3, 0.95, False), (0.6, 0.5, False)],
)
def test_the_brake_goes_by_the_size_of_the_cosine(alert, level, brakes):
  """In few directions it is 0.7 by chance; small ones are as they should be."""
  moves, _ = steer(0.0, level, memory=after(alert=alert, level=level))
  assert (moves < 0) == brakes
  over = brakes * (level - steering.STEEP) / (1 - steering.STEEP)
  assert moves == pytest.approx(-steering.BRAKE * over, rel=1e-3, abs=1e-7)


def test_many_small_cosines_uphill_brake_slowly():
  """In many directions an overshoot hardly shows in one of them."""
  moves, _ = steer(0.0, 0.1, memory=after(alert=0.9, level=0.1))
  assert -steering.SLOW_BRAKE < moves < 0


@pytest.mark.parametrize('eta', [-3.0, -1.0])
def test_a_rate_that_exploded_is_a_ceiling(eta):
  """It rises by 1 / t, and what is above goes there at its own pace."""
  anew = steering.begin_anew(at(100), jnp.zeros(1))._replace(owed=jnp.zeros(()))
  moves, memory = steer(-1.0, eta=eta, memory=anew)
  ceiling = -steering.BELOW + 1 / 101
  assert memory.ceiling == pytest.approx(ceiling)
  wanted = PACE_AT_100 if eta < ceiling else -steering.FALL
  assert moves == pytest.approx(wanted, rel=1e-4)


def start(shares, times=1, memory=None):
  """What the start moves eta by at each update, of slopes that say nothing."""
  memory = steering.init(1) if memory is None else memory
  for share in shares:
    moves, memory = steering.steer(
      *[jnp.zeros(1)] * 3, RATE, memory, shares=jnp.array([share])
    )
    yield float(moves[0])


@pytest.mark.parametrize('share', [1e-6, 1e-30])
def test_the_start_makes_updates_a_thousandth_of_the_parameters(share):
  memory, eta = steering.init(1), 0.0
  for number in range(40):
    moves, memory = steering.steer(
      jnp.array([eta]),
      *[jnp.zeros(1)] * 2,
      RATE,
      memory,
      shares=jnp.array([np.float32(share) * np.exp(eta)]),
    )
    assert abs(moves[0]) <= steering.FIRST_MOVE
    assert moves[0] == 0 or 0 < number <= steering.FIRST_UPDATES
    eta += float(moves[0])
  room = np.log(steering.FIRST_SHARE / share)
  most = steering.FIRST_UPDATES * steering.FIRST_MOVE
  assert eta == pytest.approx(min(room, most), rel=1e-4)


@pytest.mark.parametrize('share', [0.0, 0.01])
def test_the_start_lowers_no_rate_and_says_nothing_of_zeros(share):
  assert not any(start([share] * 5))


def test_the_start_takes_back_what_it_added():
  """Updates that grow by themselves, as with a warm-up, are then as wanted."""
  assert sum(start([1e-9] * 3 + [0.09] * 5)) == pytest.approx(0, abs=1e-6)


def test_no_rate_grows_whose_updates_are_above_a_tenth_of_the_parameters():
  for share, moved in ((0.09, PACE_AT_100), (0.11, 0.0)):
    moves, _ = steering.steer(
      jnp.zeros(1),
      -jnp.ones(1),
      jnp.zeros(1),
      RATE,
      at(100),
      shares=jnp.array([share]),
    )
    assert moves == pytest.approx(moved, rel=1e-4)


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
  leaves = jax.tree.leaves((moves, memory._replace(ceiling=None)))
  assert all(np.all(np.isfinite(leaf)) for leaf in leaves)
  if np.isnan(bad):
    assert moves == 0
  else:  # a direction it has
    assert np.sign(moves) == -np.sign(bad)


def test_begun_anew_only_the_time_is_remembered_and_what_is_owed():
  _, memory = steer(1.0, 1.0, times=7)
  anew = steering.begin_anew(memory, jnp.full(1, 3.0))
  assert anew.time == 7
  assert anew.ceiling == pytest.approx(3 - steering.BELOW)
  assert anew.owed == pytest.approx(steering.OWED)
  for leaf in jax.tree.leaves((anew.long, anew.quick, anew.lately)):
    assert not np.any(leaf)


def test_a_rate_that_was_lowered_gets_most_of_it_back():
  """Of what is owed a tenth at each update, and later in a run a share of it."""
  anew = steering.begin_anew(steering.init(1), jnp.full(1, 9.0))
  moves, memory = steer(0.0, memory=anew)
  assert moves == pytest.approx(steering.OWED / steering.MIN_WINDOW, rel=1e-5)
  assert memory.owed == pytest.approx(steering.OWED - moves[0], rel=1e-5)
  late, _ = steer(0.0, memory=steering.begin_anew(at(1000), jnp.full(1, 9.0)))
  assert late == pytest.approx(steering.OWED / 100, rel=1e-5)
  _, memory = steer(0.0, memory=anew, times=40)
  assert 0 < memory.owed < 0.1 * steering.OWED


def test_nothing_is_paid_back_while_the_brake_is_on_nor_to_others():
  anew = steering.begin_anew(steering.init(2), jnp.full(2, 9.0))
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
