"""The drop-in's rule in the trainer, against the drop-in on the same batches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tiers

import metalr_flax
from metalr_flax.config import check
from metalr_flax.engine import outer
from metalr_flax.trainer import build
from metalr_flax.tuning import steering

PROBLEMS = {
  'regression': (
    {
      'name': 'ill_conditioned_regression',
      'kwargs': {'size': 10, 'condition': 100.0, 'noise': 0.1},
    },
    {'name': 'vector', 'kwargs': {'size': 10}},
  ),
  'logistic regression': (
    {'name': 'breast_cancer'},
    {'name': 'mlp', 'kwargs': {'features': (30, 2)}},
  ),
  'digits': (
    {'name': 'digits'},
    {'name': 'mlp', 'kwargs': {'features': (64, 32, 10)}},
  ),
}


def experiment(name, inner_optimizer, unroll_length, start, seed=0, **meta):
  """A run that learns its rate without the Hessian, as the drop-in does."""
  task, model = PROBLEMS[name]
  config = {
    'seed': seed,
    'task': {**task, 'batch_size': 16},
    'model': model,
    'inner': {'optimizer': inner_optimizer, 'learning_rate': start},
    'meta': {
      'learned': {'learning_rate': 'log'},
      'unroll_length': unroll_length,
      'estimator': 'forward',
      'curvature': 'none',
      'discount': 1.0,
      'objective': 'online',
      'optimizer': 'steering',
      **meta,
    },
  }
  return build.build(check.resolve(config))


def by_trainer(run, count):
  """The training loss of each window of a run of so many updates."""
  windows = count // run.problem.unroll_length
  step = functools.partial(
    outer.outer_steps, step_fn=run.step_fn, max_steps=windows
  )
  _, chunk = jax.jit(step)(run.init_state(), jnp.int32(windows))
  assert chunk.finite
  return chunk.rows['train/loss']


def by_drop_in(run, optimizer, start, count):
  """The training loss of each update, on the same batches."""
  problem, first = run.problem, run.init_state()
  tx = metalr_flax.self_tuning(
    optax.inject_hyperparams(getattr(optax, optimizer))(start)
  )

  def update(carry, _):
    params, data_state, opt_state = carry
    data_state, batch = problem.next_batch(data_state)
    loss = lambda p: problem.loss_fn(p, first.model_state, batch)[0]
    value, grads = jax.value_and_grad(loss)(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
    return (params, data_state, opt_state), value

  carry = first.params, first.data_state, tx.init(first.params)
  return jax.jit(lambda c: jax.lax.scan(update, c, length=count)[1])(carry)


def late(losses, count):
  """The median over windows of the last quarter, plus 0.01.

  A loss at one moment is noise near the edge of what is stable, and rejected
  windows are no part of a result. Digits are soon memorised.
  """
  windows = losses.reshape(count // 8, -1).mean(axis=1)
  return float(jnp.median(windows[-len(windows) // 4 :])) + 1e-2


def over_drop_in(name, optimizer, unroll_length, start, count, seed=0):
  """The trainer's loss over the drop-in's, of the same updates."""
  run = experiment(name, optimizer, unroll_length, start, seed)
  theirs = late(by_drop_in(run, optimizer, start, count), count)
  return late(by_trainer(run, count), count) / theirs


# 'steering' starts at 1e-5 from whatever is above it.
STARTS = ('adamw', 1.0), ('adamw', 1e-6), ('sgd', 1.0)


@tiers.parametrize('unroll_length', [1, 8], [], full=[1])
def test_from_any_start_it_ends_no_worse_than_the_drop_in(unroll_length):
  ratios = np.array([
    over_drop_in(name, optimizer, unroll_length, start, count=1600)
    for name in PROBLEMS
    for optimizer, start in STARTS
  ])  # fmt: skip
  assert ratios.max() < 2.5, ratios
  # What one problem gains does not make up for what another loses.
  assert np.exp(np.log(np.maximum(ratios, 1)).mean()) < 1.1, ratios


def rule_of(state):
  """What the rule remembers, alone or beside the windows' losses."""
  memory = state.meta_opt_state
  return memory if isinstance(memory, steering.Steering) else memory.rule


KEPT = {
  'the rule alone': ({}, (1 - 1 / 160) ** 8),
  'a discount besides': ({'discount': 0.5}, 0.5),
  'held-out batches': ({'objective': 'held_out'}, 1.0),
  'another outer optimizer': ({'optimizer': 'adam'}, 1.0),
}


@tiers.parametrize('case', KEPT, quick=['the rule alone'])
def test_as_much_is_kept_from_window_to_window(case):
  """Without the Hessian Z after a window is linear in Z before it."""
  fields, kept = KEPT[case]
  run = experiment('regression', 'sgd', 8, 1.0, **fields)
  state = run.init_state()
  steers = 'optimizer' not in fields
  if steers:
    rule = rule_of(state)._replace(time=jnp.int32(160))
    memory = rule
    if not isinstance(state.meta_opt_state, steering.Steering):
      memory = state.meta_opt_state._replace(rule=rule)
    state = state.replace(meta_opt_state=memory)
  step = jax.jit(run.step_fn)
  after = [
    step(state.replace(tangents=jax.tree.map(make, state.tangents)))[0]
    for make in (jnp.zeros_like, jnp.ones_like)
  ]
  none, ones = (jax.tree.leaves(each.tangents)[0] for each in after)
  np.testing.assert_allclose(ones - none, kept, rtol=1e-5)
  if steers:  # its clock counts updates, of held-out batches windows
    updates = 1 if 'objective' in fields else 8
    assert rule_of(after[0]).time == 160 + updates
