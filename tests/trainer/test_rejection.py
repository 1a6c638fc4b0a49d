"""Windows in which training explodes, in a run with the drop-in's rule."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metalr_flax.config import check
from metalr_flax.engine import outer
from metalr_flax.trainer import build
from metalr_flax.tuning import rejection


def make_run(**meta):
  """A regression that learns its rate as the drop-in does."""
  return build.build(
    check.resolve(
      {
        'task': {
          'name': 'ill_conditioned_regression',
          'batch_size': 16,
          'kwargs': {'size': 10, 'condition': 100.0, 'noise': 0.1},
        },
        'model': {'name': 'vector', 'kwargs': {'size': 10}},
        'inner': {'optimizer': 'sgd', 'learning_rate': 1.0},
        'meta': {
          'learned': {'learning_rate': 'log'},
          'unroll_length': 8,
          'estimator': 'forward',
          'curvature': 'none',
          'discount': 1.0,
          'objective': 'online',
          'optimizer': 'steering',
          **meta,
        },
      }
    )
  )


@pytest.fixture(scope='module')
def run():
  return make_run()


@pytest.fixture(scope='module')
def steps(run):
  """Up to 60 windows from a state."""
  step = functools.partial(outer.outer_steps, step_fn=run.step_fn, max_steps=60)
  jitted = jax.jit(step)
  return lambda state, count: jitted(state, jnp.int32(count))


@pytest.fixture(scope='module')
def trained(run, steps):
  state, chunk = steps(run.init_state(), 60)
  assert chunk.finite
  assert state.meta_opt_state.watch.streak == 0
  return state


def with_rate(state, rate):
  return state.replace(eta={'learning_rate': jnp.log(jnp.float32(rate))})


@pytest.mark.parametrize('rate', [30.0, 1e6], ids=['finite', 'infinite'])
def test_a_rate_that_explodes_falls_and_the_model_is_kept(rate, steps, trained):
  """Two windows rejected for each fall by a factor of ten."""
  before = with_rate(trained, rate)
  after, chunk = steps(before, 1)
  for same in ('params', 'opt_state', 'eta', 'tangents', 'average'):
    jax.tree.map(
      np.testing.assert_array_equal, getattr(after, same), getattr(before, same)
    )
  assert chunk.finite
  assert after.step == before.step + 1
  assert after.meta_opt_state.watch.streak == 1
  assert after.data_state['step'] == before.data_state['step'] + 8
  after, chunk = steps(before, 2)
  fallen = after.eta['learning_rate'] - before.eta['learning_rate']
  np.testing.assert_allclose(fallen, -2.3, rtol=1e-5)
  logged = chunk.rows['hyperparams/learning_rate'][:2]
  np.testing.assert_allclose(logged, [rate, rate * np.exp(-2.3)], rtol=1e-4)
  assert after.meta_opt_state.rule.ceiling < before.eta['learning_rate']


def test_parameters_that_overflow_in_the_last_update_are_kept_out():
  """Of a window of one update the loss is finite, whatever its rate is."""
  run = make_run(unroll_length=1)
  before = with_watch(run.init_state(), seen=jnp.int32(1))
  _, metrics = jax.jit(run.step_fn)(before)
  after, chunk = jax.jit(
    functools.partial(outer.outer_steps, step_fn=run.step_fn, max_steps=1)
  )(with_rate(before, 3e38), jnp.int32(1))
  assert np.isfinite(metrics['train/loss'])
  assert chunk.finite
  assert after.meta_opt_state.watch.streak == 1
  jax.tree.map(np.testing.assert_array_equal, after.params, before.params)


def test_it_ends_as_well_as_without_the_explosion(steps, trained):
  _, calm = steps(trained, 60)
  after, chunk = steps(with_rate(trained, 100.0), 60)
  assert chunk.finite
  ends = [np.median(c.rows['train/loss'][-20:]) for c in (calm, chunk)]
  assert ends[1] < 1.5 * ends[0]
  rejected = after.meta_opt_state.watch.rejected
  assert rejected == chunk.rows['meta/rejected'][-1]
  assert rejected >= trained.meta_opt_state.watch.rejected + 4


def with_watch(state, **fields):
  memory = state.meta_opt_state
  watch = memory.watch._replace(**fields)
  return state.replace(meta_opt_state=memory._replace(watch=watch))


def test_one_bad_batch_costs_a_window(steps, trained):
  """The rate stays, and what comes next is learned from."""
  usual = trained.meta_opt_state.watch
  # As if all windows before had been far below: the next one looks bad.
  lower = jnp.float32(-1e3)
  lower = {'mean': lower, 'highest': lower, 'distance': jnp.float32(1e-3)}
  bad, _ = steps(with_watch(trained, **lower), 1)
  assert bad.meta_opt_state.watch.streak == 1
  # Far above what was usual, so that the next one as high is rejected, too.
  assert bad.meta_opt_state.watch.refused < -1e3 + 0.05
  calm = with_watch(bad, **{n: getattr(usual, n) for n in lower})
  after, _ = steps(calm, 1)
  assert after.meta_opt_state.watch.streak == 0
  assert after.meta_opt_state.watch.rejected == usual.rejected + 1
  change = after.eta['learning_rate'] - trained.eta['learning_rate']
  assert abs(change) < 0.1


def test_where_the_loss_is_high_before_a_window_it_goes_on_from_there(
  steps, trained
):
  """Two windows rejected; then what they say is usual."""
  lost = trained.replace(params=jax.tree.map(lambda p: 1e3 * p, trained.params))
  after, chunk = steps(lost, 4)
  assert chunk.finite
  before = trained.meta_opt_state.watch.rejected
  np.testing.assert_array_equal(
    chunk.rows['meta/rejected'][:4] - before, [1, 2, 2, 2]
  )
  assert after.meta_opt_state.watch.seen == 2
  fallen = np.log(chunk.rows['hyperparams/learning_rate'][:2])
  np.testing.assert_allclose(np.diff(fallen), -2.3, rtol=1e-4)
  assert chunk.rows['train/loss'][3] < 0.9 * chunk.rows['train/loss'][0]


def test_a_run_that_begins_with_nothing_finite_ends_at_once(run, steps):
  state = run.init_state()
  lost = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), state.params)
  _, chunk = steps(state.replace(params=lost), 60)
  assert not chunk.finite
  assert chunk.count == 1


@pytest.mark.parametrize('unroll_length', [1, 8, 64, 256])
def test_stationary_noise_lowers_no_rate(unroll_length):
  """A batch's loss is further from the mean than those of windows are."""
  rng = np.random.default_rng(0)
  losses = rng.exponential(size=(2000, unroll_length)).astype(np.float32)

  def step(watch, window):
    watch, _, falls = rejection.watched(watch, window.mean(), window[0])
    return watch, falls

  watch, falls = jax.lax.scan(step, rejection.init(), jnp.asarray(losses))
  assert not falls.any()
  assert watch.rejected < 5


def test_a_run_of_bad_windows_ends(steps, trained):
  """Ten of them, and the eleventh is what other runs end at."""
  lost = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), trained.params)
  _, chunk = steps(trained.replace(params=lost), 60)
  assert not chunk.finite
  assert chunk.count == 11


def test_the_first_windows_say_what_is_usual(run, steps):
  """A loss below 0 or about 0 is as good as another."""
  state, chunk = steps(run.init_state(), 10)
  losses = np.asarray(chunk.rows['train/loss'][:10])
  watch = state.meta_opt_state.watch
  assert losses.min() < watch.mean < losses.max()
  assert 0 < watch.distance < np.ptp(losses)


def test_in_double_precision_a_state_keeps_its_dtypes(x64):
  """So that a loop on the device can carry it."""
  run = make_run()
  before = run.init_state()
  lost = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), before.params)
  for state in (before, before.replace(params=lost)):
    after, _ = jax.eval_shape(run.step_fn, state)
    leaves = map(jax.tree.leaves, (state, after))
    wrong = [
      (old, new)
      for old, new in zip(*leaves, strict=True)
      if old.dtype != new.dtype
    ]
    assert not wrong
    assert after.eta['learning_rate'].dtype == jnp.float64


@pytest.mark.parametrize(
  'meta', [{'objective': 'held_out'}, {'optimizer': 'adam'}]
)
def test_other_runs_reject_nothing(meta):
  run = make_run(**meta)
  _, metrics = jax.jit(run.step_fn)(run.init_state())
  assert 'meta/rejected' not in metrics
