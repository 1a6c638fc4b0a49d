"""The guard against explosions: every branch, on gradients made by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metalr_flax.tuning import guard as guard_lib

WATCH = jax.jit(guard_lib.watch)
# Lifts the running mean of ones to just above ten.
HIGH = 1 + 9.1 * guard_lib.AVERAGED
VERDICTS = {
  (False, False): 'update',
  (True, False): 'skip',
  (False, True): 'back',
  (True, True): 'skip and back',
}


def gradient(norm):
  return {'w': jnp.array([0.6, 0.8]) * norm}


class Watched:
  """A guard, and how many updates it has let pass."""

  def __init__(self, *norms):
    self.guard, self.step = guard_lib.init(), 0
    for norm in norms:
      assert self.see(norm) == 'update'

  def see(self, norm, value=None):
    """What is done with an update whose gradient has this norm."""
    value = value if value is None else jnp.float32(value)
    verdict, self.guard = WATCH(
      self.guard, gradient(norm), jnp.int32(self.step), value
    )
    self.landmark = bool(verdict.landmark)
    self.step += not verdict.skip
    return VERDICTS[bool(verdict.skip), bool(verdict.back)]

  def counts(self):
    return int(self.guard.skipped), int(self.guard.undone)


def test_ordinary_updates_pass():
  watched = Watched(*[1.0, 2.0, 0.1, 5.0] * 10)
  assert watched.counts() == (0, 0)
  assert not watched.guard.suspect
  assert not watched.guard.restart


def test_the_displacement_begins_anew_after_three_updates():
  watched, held, landmarks = Watched(), [], []
  for _ in range(7):
    watched.see(1.0)
    held.append(int(watched.guard.held))
    landmarks.append(watched.landmark)
  assert held == [1, 2, 3, 1, 2, 3, 1]
  assert landmarks == [False, False, False, True, False, False, True]


@pytest.mark.parametrize(
  ('norm', 'value'),
  [(np.nan, None), (np.inf, 1.0), (1e30, 1.0)]
  + [(1.0, bad) for bad in (np.nan, np.inf, -np.inf)],
)
def test_what_is_not_finite_is_skipped_and_changes_only_counts(norm, value):
  """A norm whose square float32 does not hold is not finite either."""
  watched = Watched(1.0, 1.0)
  before = watched.guard
  assert watched.see(norm, value) == 'skip'
  after = watched.guard
  assert (after.skipped, after.streak) == (1, 1)
  same = before._replace(skipped=after.skipped, streak=after.streak)
  jax.tree.map(np.testing.assert_array_equal, after, same)
  watched.see(1.0)
  assert watched.guard.streak == 0


def test_after_ten_in_a_row_the_parameters_are_suspected():
  watched = Watched(*[1.0] * 5)  # two of them since the landmark
  seen = [watched.see(np.nan) for _ in range(guard_lib.PATIENCE)]
  assert seen == [*['skip'] * (guard_lib.PATIENCE - 1), 'skip and back']
  assert watched.counts() == (guard_lib.PATIENCE, 2)
  assert watched.guard.restart
  assert watched.guard.held == 0


@pytest.mark.parametrize(('then', 'anew'), [(1.0, True), (np.nan, False)])
def test_the_next_gradient_says_whose_fault_it_was(then, anew):
  """The parameters', and training begins anew; or the data's."""
  watched = Watched(*[1.0] * 5)
  for _ in range(guard_lib.PATIENCE):
    watched.see(np.nan)
  restart = bool(watched.guard.restart)
  assert watched.see(then) == ('update' if anew else 'skip')
  assert restart
  assert not watched.guard.restart  # done, or not to be done any more
  assert watched.counts()[1] == 2  # nothing more is undone


def test_without_an_update_to_undo_none_is_undone():
  watched = Watched()
  for _ in range(3 * guard_lib.PATIENCE):
    assert watched.see(np.nan) == 'skip'
  assert watched.counts() == (3 * guard_lib.PATIENCE, 0)
  assert not watched.guard.restart


def test_one_gradient_that_is_too_large_is_skipped():
  watched = Watched(*[1.0] * 20)
  before = watched.guard
  assert watched.see(HIGH) == 'skip'
  after = watched.guard
  assert after.suspect
  mark = guard_lib.RAISE_BATCH * before.levels.mark[0]
  np.testing.assert_allclose(after.levels.mark[0], mark)
  np.testing.assert_array_equal(after.levels.level, before.levels.level)
  assert watched.see(1.0) == 'update'
  assert watched.counts() == (1, 0)
  assert not watched.guard.suspect
  assert not watched.guard.restart


def test_just_below_ten_times_the_mark_is_no_alarm():
  watched = Watched(*[1.0] * 20)
  assert watched.see(1 + 8.9 * guard_lib.AVERAGED) == 'update'


def test_a_second_look_that_says_the_same_undoes_the_last_updates():
  watched = Watched(*[1.0] * 21)
  mark = watched.guard.levels.mark[0]
  assert watched.see(HIGH) == 'skip'
  assert watched.see(2 * HIGH) == 'back'
  after = watched.guard
  assert watched.counts() == (1, 3)
  assert after.restart
  assert not after.suspect
  assert after.held == 0
  # What comes again is soon believed; and the level is that of good moments.
  raised = guard_lib.RAISE * guard_lib.RAISE_BATCH * mark
  np.testing.assert_allclose(after.levels.mark[0], raised, rtol=1e-6)
  level = guard_lib.RAISE_BATCH * mark
  np.testing.assert_allclose(after.levels.level[0], level, rtol=1e-6)
  # Where the displacement begins anew, one update is held.
  assert watched.see(1.0) == 'update'
  assert watched.guard.held == 1
  assert not watched.guard.restart


def test_a_restart_waits_for_an_update_that_is_made():
  watched = Watched(*[1.0] * 20)
  watched.see(HIGH)
  watched.see(2 * HIGH)
  for _ in range(3):
    assert watched.see(np.nan) == 'skip'
    assert watched.guard.restart
  assert watched.see(1.0) == 'update'
  assert not watched.guard.restart


def test_what_is_not_finite_is_no_second_look():
  watched = Watched(*[1.0] * 20)
  assert watched.see(HIGH) == 'skip'
  assert watched.see(np.nan) == 'skip'
  assert watched.guard.suspect  # the one after it is
  assert watched.see(2 * HIGH) == 'back'


def test_the_loss_is_watched_where_it_is_given():
  watched = Watched()
  for _ in range(20):
    assert watched.see(1.0, 1.0) == 'update'
  assert watched.see(1.0, HIGH) == 'skip'
  assert watched.see(1.0, 2 * HIGH) == 'back'


def test_a_loss_below_zero_is_no_alarm_however_large():
  watched = Watched()
  for value in (1.0, 0.5, -1.0, -1e6, 0.9):
    assert watched.see(1.0, value) == 'update'


def test_the_mark_is_the_highest_mean_of_its_looks():
  """Each look sets when the next is due: at least ten updates later."""
  watched = Watched(1.0)
  assert watched.guard.levels.due == guard_lib.MIN_AGE
  for _ in range(9):  # rising, and not looked at
    watched.see(2.0)
  assert watched.guard.levels.mark[0] == 1
  watched.see(2.0)
  level = watched.guard.levels.level[0]
  assert watched.guard.levels.mark[0] == level > 1.5
  assert watched.guard.levels.due == 2 * guard_lib.MIN_AGE
  for _ in range(30):
    watched.see(0.1)
  assert watched.guard.levels.mark[0] == level  # it does not fall


@pytest.mark.parametrize('level', [1e-6, 0.5])
def test_the_second_mark_falls_with_time_to_the_running_mean(level):
  guard, grads = guard_lib.init(), gradient(level)
  guard = guard._replace(
    levels=guard_lib.Levels(
      jnp.array([level, 0.0, level]),
      jnp.array([1.0, 0.0, 1.0]),
      jnp.float32(1e6),
    )
  )
  for step in range(100, 200):
    _, guard = WATCH(guard, grads, jnp.int32(step), None)
  falls_to = max(0.5**guard_lib.FORGET, level)
  assert guard.levels.mark[0] == 1
  assert guard.levels.mark[2] == pytest.approx(falls_to, rel=0.02)


@pytest.mark.parametrize('rising', [True, False])
def test_a_rise_above_the_second_mark_counts_where_updates_go_uphill(rising):
  """On the way out of a saddle gradients grow and updates go downhill."""
  guard, skipped = guard_lib.init(), []
  norms = [1.0] * 10 + [1e-3] * 190 + [0.1] * 10
  for step, norm in enumerate(norms):
    verdict, guard = WATCH(guard, gradient(norm), jnp.int32(step), None, rising)
    skipped.append(bool(verdict.skip or verdict.back))
  assert any(skipped) == rising
  assert not any(skipped[:200])


def test_where_updates_go_uphill_a_loss_that_was_below_0_raises_no_alarm():
  guard, grads, skipped = guard_lib.init(), gradient(1.0), []
  losses = [1.0] * 30 + [-2.0] * 370 + [0.5] * 20
  for step, loss in enumerate(losses):
    verdict, guard = WATCH(
      guard, grads, jnp.int32(step), jnp.float32(loss), True
    )
    skipped.append(bool(verdict.skip))
  assert not any(skipped)


def test_late_in_a_run_the_mark_is_looked_at_after_a_share_of_it():
  watched = Watched(1.0)
  watched.step = 5000
  watched.see(1.0)
  share = guard_lib.AGE_SHARE * 5000
  assert watched.guard.levels.due == pytest.approx(5000 + share)


def test_the_norm_is_that_of_all_gradients_complex_ones_too():
  grads = {'a': jnp.array([3.0]), 'b': jnp.array([4j])}
  _, after = WATCH(guard_lib.init(), grads, jnp.int32(0), None)
  np.testing.assert_allclose(after.levels.level, [5.0, 0.0, 5.0])


def test_without_parameters_there_is_no_alarm():
  verdict, _ = WATCH(guard_lib.init(), {}, jnp.int32(0), None)
  assert not any(map(bool, verdict))
