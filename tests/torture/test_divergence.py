"""Divergence is seen at the step where it happens, and never where it is not."""

import functools

import harness
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiers

from metalr_flax.engine import meta_gradient
from metalr_flax.engine import optimizers
from metalr_flax.engine import outer
from metalr_flax.engine import records

STEPS, UNROLL = 40, 3
RATE = {'learning_rate': 0.05}
# What reaches the state: the loss, the inner gradient, the outer loss's
# gradient, eta by its optimizer's update.
POINTS = ('loss', 'gradient', 'meta-gradient', 'eta')
VALUES = (np.nan, np.inf, -np.inf)


def _clipped_sgd(learning_rate):
  return optax.chain(optax.clip(1.0), optax.sgd(learning_rate))


def _make(point, estimator, factory='rmsprop'):
  """A quadratic that is not finite at `point` of outer step `bad`.

  The data state is (inner position, outer step that goes wrong, which value):
  all of it finite.
  """

  def next_batch(data_state):
    position, bad, which = data_state
    noise = jax.random.normal(
      jax.random.fold_in(jax.random.key(0), position), (4,)
    )
    step = position // (UNROLL + 1) + 1
    here = jnp.where(step == bad, jnp.array(VALUES)[which], 0.0)
    return (position + 1, bad, which), (noise, here)

  def loss_fn(params, model_state, batch, *, held_out=False):
    noise, here = batch
    loss = jnp.mean((params['w'] - 1 - 0.1 * noise) ** 2)
    if point == 'loss' and not held_out:
      loss = loss + jax.lax.stop_gradient(here)
    if point == 'gradient' and not held_out:
      loss = loss + _poison(params['w'], here)
    if point == 'meta-gradient' and held_out:
      loss = loss + _poison(params['w'], here)
    return loss, (model_state, {})

  parts = records.Problem(
    loss_fn=loss_fn,
    meta_loss_fn=functools.partial(loss_fn, held_out=True),
    next_batch=next_batch,
    next_meta_batch=next_batch,
    tx=optimizers.make_injected(factory, RATE, RATE),
    bijections={'learning_rate': 'sigmoid'},
    unroll_length=UNROLL,
  )
  meta_tx = optax.adam(0.03)
  step = functools.partial(
    outer.outer_step, problem=parts, meta_tx=meta_tx, estimator=estimator
  )

  def step_fn(state):
    new, metrics = step(state)
    if point == 'eta':
      _, bad, which = state.data_state
      here = jnp.where(state.step + 1 == bad, jnp.array(VALUES)[which], 0.0)
      new = new.replace(eta={'learning_rate': new.eta['learning_rate'] + here})
    return new, metrics

  def start(bad, which):
    return outer.init_state(
      parts,
      params={'w': jnp.zeros(4)},
      model_state={},
      data_state=(jnp.int32(0), jnp.int32(bad), jnp.int32(which)),
      hyperparams=RATE,
      meta_tx=meta_tx,
      estimator=estimator,
    )

  run = functools.partial(outer.outer_steps, step_fn=step_fn, max_steps=STEPS)
  return jax.jit(run), start


@jax.custom_jvp
def _poison(w, here):
  """0, with a derivative that is not finite where `here` is not."""
  return jnp.zeros(())


@_poison.defjvp
def _poison_rule(primals, tangents):
  _, here = primals
  return jnp.zeros(()), jnp.sum(tangents[0]) * here


@tiers.parametrize('kind', ['forward', 'reverse'], ['forward'])
@tiers.parametrize('point', POINTS, ['gradient'])
def test_injected_values_end_the_run_at_their_step(point, kind, share):
  run, start = _make(point, meta_gradient.Estimator(kind=kind))
  draw = np.random.default_rng(0)
  clean = {n: np.asarray(v) for n, v in run(start(0, 0), STEPS)[1].rows.items()}
  for trial in range(share(100)):
    bad = int(draw.integers(1, STEPS + 1))
    which = trial % 3
    state, chunk = run(start(bad, which), jnp.int32(STEPS))
    assert not chunk.finite
    assert int(chunk.count) == bad, (point, trial)
    # The step is rejected as a whole: the state is that before it.
    before, _ = run(start(bad, which), jnp.int32(bad - 1))
    jax.tree.map(np.testing.assert_array_equal, state, before)
    assert int(state.step) == bad - 1
    for name, row in chunk.rows.items():
      good = np.asarray(row)[: bad - 1]
      np.testing.assert_array_equal(good, clean[name][: bad - 1])


@pytest.mark.thorough
@pytest.mark.parametrize('kind', meta_gradient.KINDS)
@pytest.mark.parametrize('factory', ['sign_sgd', _clipped_sgd])
def test_a_gradient_that_its_optimizer_hides_is_seen(factory, kind):
  """The sign of infinity is 1: nothing else would tell."""
  run, start = _make('gradient', meta_gradient.Estimator(kind=kind), factory)
  bad = 9 if kind == 'none' else 7  # which takes no batch for an outer loss
  for which in range(len(VALUES)):
    state, chunk = run(start(7, which), jnp.int32(STEPS))
    assert (int(chunk.count), bool(chunk.finite)) == (bad, False)
    assert int(state.step) == bad - 1
    assert not chunk.parts['losses and gradients']


def test_what_never_was_finite_and_a_users_metric_raise_no_alarm():
  """A mask of -inf, a best loss so far; a perplexity that overflows."""
  parts = {'mask': jnp.array([0.0, -jnp.inf]), 'best': jnp.array(jnp.inf)}

  def step_fn(state):
    best = jnp.where(state.step == 2, jnp.nan, jnp.float32(state.step))
    new = {**state.model_state, 'best': best}
    metrics = {'train/loss': jnp.zeros(()), 'train/ppl': jnp.array(jnp.inf)}
    return state.replace(step=state.step + 1, model_state=new), metrics

  _, start = _make('loss', meta_gradient.Estimator(kind='forward'))
  state = start(0, 0).replace(model_state=parts)
  state, chunk = outer.outer_steps(
    state, jnp.int32(5), step_fn=step_fn, max_steps=5
  )
  # What was finite and is not any more is an alarm there too.
  assert int(chunk.count) == 3
  assert [name for name, fine in chunk.parts.items() if not fine] == [
    'model_state'
  ]
  assert float(state.model_state['best']) == 1


@pytest.mark.thorough
def test_without_them_there_is_no_alarm():
  for point in POINTS:
    run, start = _make(point, meta_gradient.Estimator(kind='forward'))
    _, chunk = run(start(0, 0), jnp.int32(STEPS))
    assert chunk.finite
    assert int(chunk.count) == STEPS


def _regression(name, rate):
  """The notebook's problem for one optimizer, by seed."""

  def next_batch(key):
    key, x_key, noise_key = jax.random.split(key, 3)
    x = jax.random.uniform(x_key, (), minval=0, maxval=10)
    return key, (x, 10 * x + jax.random.normal(noise_key))

  def loss_fn(params, model_state, batch):
    x, y = batch
    return 0.5 * (params * x - y) ** 2, (model_state, {'theta': params})

  parts = records.Problem(
    loss_fn=loss_fn,
    meta_loss_fn=lambda p, s, b: loss_fn(p, s, b),
    next_batch=next_batch,
    next_meta_batch=next_batch,
    tx=optimizers.make_injected(name, {'learning_rate': rate}, RATE),
    bijections={'learning_rate': 'sigmoid'},
    unroll_length=6,
  )
  meta_tx = optax.adam(0.03)
  estimator = meta_gradient.Estimator(kind='forward')
  step_fn = functools.partial(
    outer.outer_step, problem=parts, meta_tx=meta_tx, estimator=estimator
  )

  def start(seed):
    return outer.init_state(
      parts,
      params=jax.random.normal(jax.random.key(1000 + seed)),
      model_state={},
      data_state=jax.random.key(seed),
      hyperparams={'learning_rate': rate},
      meta_tx=meta_tx,
      estimator=estimator,
    )

  return step_fn, start


def test_runs_known_to_diverge_end_at_the_right_step(share):
  """SGD at 0.9 diverges on every seed; one step at a time says where."""
  step_fn, start = _regression('sgd', 0.9)
  run = jax.jit(
    functools.partial(outer.outer_steps, step_fn=step_fn, max_steps=200)
  )
  one = jax.jit(step_fn)
  for seed in range(share(300)):
    _, chunk = run(start(seed), jnp.int32(200))
    assert not chunk.finite
    state, count = start(seed), 0
    while True:
      state, metrics = one(state)
      count += 1
      values = [*jax.tree.leaves(metrics), *jax.tree.leaves(
        state.replace(data_state=())
      )]  # fmt: skip
      if not all(np.all(np.isfinite(v)) for v in values):
        break
    assert int(chunk.count) == count, seed


@tiers.parametrize('name', ['rmsprop', 'adam'], ['rmsprop'])
def test_good_runs_raise_no_alarm(name, share):
  step_fn, start = _regression(name, 0.1)
  run = jax.jit(
    functools.partial(outer.outer_steps, step_fn=step_fn, max_steps=200)
  )
  for seed in range(share(150)):
    _, chunk = run(start(seed), jnp.int32(200))
    assert chunk.finite, seed
    assert int(chunk.count) == 200


DIVERGES = {
  'inner__optimizer': 'sgd',
  'num_outer_steps': 400,
  'checkpoint_every': 3,
}


def test_a_diverged_run_names_the_step_eta_and_the_last_good_checkpoint(
  servers, tmp_path
):
  workdir = tmp_path / 'run'
  trial = servers.run(workdir, DIVERGES, config='default')
  harness.assert_one_line(trial, 4, 'not finite', '(eta ', 'state/')
  step, _ = harness.digest(workdir)
  line = trial.text.strip().splitlines()[-1]
  assert f'the last good checkpoint is {workdir}/state/{step};' in line
  bad = int(line.split('outer step ')[1].split(':')[0])
  assert step == bad - 1, 'nothing that was good is lost'
  rows = harness.runs.rows(workdir)
  assert len(rows) == bad - 1
  left = harness.digest(workdir), harness.events(workdir)
  again = servers.run(workdir, DIVERGES, config='default')
  harness.assert_one_line(again, 4, f'outer step {bad}: not finite')
  assert harness.runs.rows(workdir) == rows
  assert (harness.digest(workdir), harness.events(workdir)) == left


@pytest.mark.thorough
def test_an_evaluation_after_the_divergence_is_not_in_the_rows(
  servers, tmp_path
):
  """It belongs to the end of its chunk, which was not reached."""
  servers.run(tmp_path / 'run', DIVERGES, config='default')
  bad = harness.digest(tmp_path / 'run')[0] + 1
  ends_after = {**DIVERGES, 'eval_every': bad + 1, 'checkpoint_every': 400}
  trial = servers.run(tmp_path / 'other', ends_after, config='default')
  harness.assert_one_line(trial, 4, f'outer step {bad}: not finite')
  rows = harness.runs.rows(tmp_path / 'other')
  assert len(rows) == bad - 1
  assert not any(row['eval/loss'] for row in rows)


@pytest.mark.thorough
def test_a_run_that_diverges_at_once_keeps_its_first_state(servers, tmp_path):
  fields = {
    'inner__optimizer': 'sgd',
    'inner__learning_rate': 0.999999,
    'meta__unroll_length': 100,
  }
  trial = servers.run(tmp_path / 'run', fields, config='default')
  harness.assert_one_line(trial, 4, 'outer step 1: not finite', 'state/0;')
  assert harness.digest(tmp_path / 'run')[0] == 0
