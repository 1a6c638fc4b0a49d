"""Members of a population: each is the run alone, and none spoils another."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiers

from metalr_flax.engine import meta_gradient
from metalr_flax.engine import optimizers
from metalr_flax.engine import outer
from metalr_flax.engine import population
from metalr_flax.engine import records

RATE = {'learning_rate': 0.05}
STEPS = 12
NEVER = 10**6
ESTIMATORS = {
  'forward': meta_gradient.Estimator(kind='forward'),
  'reverse': meta_gradient.Estimator(),
  'forward, discounted': meta_gradient.Estimator(kind='forward', discount=0.9),
  'none': meta_gradient.Estimator(kind='none'),
}


def make(estimator):
  """A quadratic whose loss is NaN from outer step `bad` on, where given.

  Returns its step, `(state, meta_rate) -> (state, metrics)`, and its start,
  `(seed, bad) -> state`.
  """

  def next_batch(data_state):
    key, position, bad = data_state
    noise = jax.random.normal(jax.random.fold_in(key, position), (4,))
    here = jnp.where(position >= bad, jnp.nan, 0.0)
    return (key, position + 1, bad), (noise, here)

  def loss_fn(params, model_state, batch):
    noise, here = batch
    return jnp.mean((params['w'] - 1 - noise) ** 2) + here, (model_state, {})

  problem = records.Problem(
    loss_fn=loss_fn,
    meta_loss_fn=loss_fn,
    next_batch=next_batch,
    next_meta_batch=next_batch,
    tx=optimizers.make_injected('rmsprop', RATE, RATE),
    bijections={'learning_rate': 'sigmoid'},
    unroll_length=3,
  )

  def step(state, meta_rate):
    meta_tx = optax.adam(meta_rate)
    return outer.outer_step(
      state, problem, meta_tx=meta_tx, estimator=estimator
    )

  def start(seed, bad=NEVER):
    draws = 3 if estimator.kind == 'none' else 4
    return outer.init_state(
      problem,
      params={'w': jax.random.normal(jax.random.key(seed), (4,))},
      model_state={},
      data_state=(
        jax.random.key(100 + seed),
        jnp.int32(0),
        jnp.int32(draws * (bad - 1)),
      ),
      hyperparams=RATE,
      meta_tx=optax.adam(0.1),
      estimator=estimator,
    )

  return step, start


def train(step, starts, rates, counts=(STEPS,)):
  """Trains a population in chunks of so many steps."""
  step_fn = population.vmapped(step, jnp.array(rates))
  run = jax.jit(
    functools.partial(
      population.outer_steps, step_fn=step_fn, max_steps=max(counts)
    )
  )
  state, chunks = population.stack(starts), []
  for count in counts:
    state, chunk = run(state, jnp.int32(count))
    chunks.append(chunk)
  return state, chunks


def make_alone(step):
  """`(state, meta_rate) -> (state, chunk)` of one run."""

  def run(state, meta_rate):
    step_fn = lambda state: step(state, meta_rate)
    return outer.outer_steps(
      state, jnp.int32(STEPS), step_fn=step_fn, max_steps=STEPS
    )

  return jax.jit(run)


def assert_close(one, other):
  def close(a, b):
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
      a, b = jax.random.key_data(a), jax.random.key_data(b)
    np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7)

  jax.tree.map(close, one, other)


@tiers.parametrize('name', [*ESTIMATORS], ['forward'])
def test_a_member_is_the_run_alone(name):
  step, start = make(ESTIMATORS[name])
  rates = [0.1, 0.02, 0.3]
  starts = [start(seed) for seed in range(3)]
  state, (chunk,) = train(step, starts, rates)
  assert chunk.count.tolist() == [STEPS] * 3
  assert chunk.finite.all()
  run_alone = make_alone(step)
  for i, rate in enumerate(rates):
    alone, expected = run_alone(starts[i], jnp.float32(rate))
    assert_close(population.pick(state, i), alone)
    assert_close({k: v[:, i] for k, v in chunk.rows.items()}, expected.rows)


@tiers.parametrize('counts', [(STEPS,), (5, 1, 6)], [(5, 1, 6)])
def test_a_member_that_diverges_is_frozen_and_spoils_no_other(counts):
  step, start = make(ESTIMATORS['forward'])
  rates = [0.1, 0.02, 0.3, 0.1]
  starts = [start(0), start(1, bad=4), start(2), start(3, bad=9)]
  state, chunks = train(step, starts, rates, counts)
  run_alone = make_alone(step)
  alone = [
    run_alone(start, jnp.float32(rate))
    for start, rate in zip(starts, rates, strict=True)
  ]
  assert state.step.tolist() == [STEPS, 3, STEPS, 8]
  assert state.steps_done == STEPS
  for i, (expected, chunk) in enumerate(alone):
    # As the run alone ends: with the state before the step rejected.
    assert bool(chunk.finite) == (i in (0, 2))
    assert_close(population.pick(state, i), expected)
  # Each is tried once more, by the chunk in which it happens, and then no more.
  ended = [np.flatnonzero(~chunk.finite).tolist() for chunk in chunks]
  tried = [chunk.count.tolist() for chunk in chunks]
  if len(counts) == 1:
    assert (ended, tried) == ([[1, 3]], [[STEPS, 4, STEPS, 9]])
  else:
    assert ended == [[1], [], [3]]
    assert tried == [[5, 4, 5, 5], [1, 0, 1, 1], [6, 0, 6, 3]]
  (parts,) = (c.parts for c in chunks if 3 in np.flatnonzero(~c.finite))
  assert not parts['losses and gradients'][3]
  assert parts['data_state'][3]
  assert all(part[0] for part in parts.values())


def test_a_population_ends_with_its_last_member():
  step, start = make(ESTIMATORS['forward'])
  starts = [start(0, bad=2), start(1, bad=5)]
  state, (chunk,) = train(step, starts, [0.1, 0.1])
  assert chunk.count.tolist() == [2, 5]
  assert not chunk.finite.any()
  assert state.step.tolist() == [1, 4]


def test_more_steps_than_rows_are_refused():
  step, start = make(ESTIMATORS['forward'])
  step_fn = population.vmapped(step, jnp.array([0.1]))
  with pytest.raises(ValueError, match='num_steps=3: must be an integer'):
    population.outer_steps(
      population.stack([start(0)]), 3, step_fn=step_fn, max_steps=2
    )
