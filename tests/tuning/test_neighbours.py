"""What may stand beside the drop-in, and what it warns of or refuses."""

import warnings

from flax import nnx
import jax
import jax.numpy as jnp
import optax
import pytest

import metalr_flax

PARAMS = {'a': jnp.ones((4, 3)), 'b': jnp.zeros(3)}
FIRST = {'a': True, 'b': False}
SECOND = {'a': False, 'b': True}


def tuned():
  return metalr_flax.self_tuning(optax.inject_hyperparams(optax.sgd)(1e-3))


RIGHT = {
  'alone': tuned,
  'clipped': lambda: optax.chain(optax.clip_by_global_norm(1.0), tuned()),
  'decayed': lambda: optax.chain(optax.add_decayed_weights(1e-3), tuned()),
  'nested': lambda: optax.chain(
    optax.chain(optax.clip(1.0), tuned()),
  ),
  'masked': lambda: optax.chain(
    optax.masked(tuned(), FIRST), optax.masked(optax.set_to_zero(), SECOND)
  ),
  'partition': lambda: optax.partition(
    {'x': tuned(), 'y': optax.set_to_zero()}, {'a': 'x', 'b': 'y'}
  ),
  'MultiSteps': lambda: optax.MultiSteps(tuned(), 2),
  'apply_if_finite': lambda: optax.apply_if_finite(tuned(), 5),
}
WRONG = {
  'scaled': (
    lambda: optax.chain(tuned(), optax.scale(-1.0)),
    'EmptyState comes after it',
  ),
  'scheduled': (
    lambda: optax.chain(tuned(), optax.scale_by_schedule(lambda _: 0.5)),
    'ScaleByScheduleState comes after it',
  ),
  'masked after': (
    lambda: optax.chain(tuned(), optax.masked(optax.set_to_zero(), FIRST)),
    'MaskedState comes after it',
  ),
  'preconditioned': (
    lambda: optax.chain(optax.scale_by_adam(), tuned()),
    'ScaleByAdamState comes before it',
  ),
  'a chain in a chain': (
    lambda: optax.chain(
      optax.chain(optax.clip(1.0), tuned()), optax.scale(2.0)
    ),
    'EmptyState comes after it',
  ),
  'within MultiSteps': (
    lambda: optax.MultiSteps(optax.chain(tuned(), optax.scale(2.0)), 2),
    'EmptyState comes after it',
  ),
}


@pytest.mark.parametrize('name', RIGHT)
def test_no_word_of_neighbours_that_do_no_harm(name):
  state = RIGHT[name]().init(PARAMS)
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    metalr_flax.hyperparams_of(state)
    metalr_flax.hyperparams_of((PARAMS, state, jax.random.key(0)))
    metalr_flax.counts_of({'params': PARAMS, 'opt_state': state})


@pytest.mark.parametrize('read', ['hyperparams_of', 'counts_of'])
@pytest.mark.parametrize('name', WRONG)
def test_a_neighbour_that_does_harm_is_warned_of(name, read):
  make, part = WRONG[name]
  state = make().init(PARAMS)
  with pytest.warns(UserWarning, match=part) as caught:
    getattr(metalr_flax, read)(state)
  assert len(caught) == 1
  assert caught[0].filename == __file__
  assert '\n' not in str(caught[0].message)


def test_it_is_warned_of_in_an_nnx_optimizer_and_while_traced():
  model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
  make, part = WRONG['scaled']
  optimizer = nnx.Optimizer(model, make(), wrt=nnx.Param)
  with pytest.warns(UserWarning, match=part):
    metalr_flax.hyperparams_of(optimizer.opt_state)
  with pytest.warns(UserWarning, match=part):
    jax.eval_shape(metalr_flax.hyperparams_of, make().init(PARAMS))


def test_multi_steps_inside_is_refused():
  inject = optax.inject_hyperparams(optax.sgd)
  steps = optax.MultiSteps(inject(1e-3), 4)
  for inner in (steps, optax.chain(optax.clip(1.0), steps)):
    with pytest.raises(ValueError, match=r'put it around') as caught:
      metalr_flax.self_tuning(inner).init(PARAMS)
    assert '\n' not in str(caught.value)
  # With an outer optimizer each step is a step.
  metalr_flax.self_tuning(steps, meta_tx=optax.sgd(0.1)).init(PARAMS)
