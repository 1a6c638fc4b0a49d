"""The engine: every optimizer, hyperparameter and estimator of the table."""

import dataclasses
import functools
import re

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import references
import tiers

from metalr_flax.engine import bijections
from metalr_flax.engine import inner
from metalr_flax.engine import meta_gradient
from metalr_flax.engine import optimizers
from metalr_flax.engine import outer

Estimator = meta_gradient.Estimator
EXACT = {
  'reverse': Estimator(),
  'reverse_step': Estimator(remat='step'),
  'reverse_sqrt': Estimator(remat='sqrt'),
  'forward': Estimator(kind='forward'),
}
# RMSprop's derivatives are test_meta_gradient's, by all four estimators.
QUICK = ('adamw',)
by_case = tiers.parametrize(
  'case', cases.CASES, QUICK, key=lambda case: case.name
)


def finite_difference(parts, state, objective='held_out'):
  """For each eta a central difference in float64, and the loss itself."""
  estimator = Estimator(objective=objective)
  loss = jax.jit(
    lambda eta: meta_gradient.meta_loss(estimator, eta, state.carry, parts)[0]
  )
  return references.differences(loss, state.eta), loss(state.eta)


def assert_equals_difference(gradient, differences, loss):
  for g, d in zip(jax.tree.leaves(gradient), differences, strict=True):
    assert jnp.isfinite(g)
    assert abs(g - d) <= 1e-6 * abs(g) + 1e-12 * max(1, abs(loss))


def gradient_of(estimator, state, parts):
  return jax.jit(lambda s: estimator(s.eta, s.carry, parts)[0])(state)


@by_case
def test_exact_estimators_equal_finite_differences(x64, case):
  check_exact(case, ('reverse', 'forward'))


@pytest.mark.thorough
def test_remat_equals_finite_differences(x64):
  """It is the same for every optimizer."""
  check_exact(cases.BY_NAME['adamw'], ('reverse_step', 'reverse_sqrt'))


def check_exact(case, names):
  parts, state = cases.start(case, EXACT['reverse'])
  differences, loss = finite_difference(parts, state)
  assert all(abs(d) > 1e-9 for d in differences), 'the effect is measurable'
  for estimator in (EXACT[name] for name in names):
    gradient, _, metrics = jax.jit(
      lambda s, e=estimator: e(s.eta, s.carry, parts)
    )(state)
    assert_equals_difference(gradient, differences, loss)
    np.testing.assert_allclose(metrics['meta/loss'], loss, rtol=1e-12)


@tiers.parametrize(
  'name', ['rmsprop', 'adamw', 'clip_by_global_norm'], ['rmsprop']
)
def test_online_objective_equals_finite_differences(x64, name):
  parts, state = cases.start(cases.BY_NAME[name], EXACT['reverse'])
  differences, loss = finite_difference(parts, state, 'online')
  for kind in ('reverse', 'forward'):
    estimator = Estimator(kind=kind, objective='online')
    assert_equals_difference(
      gradient_of(estimator, state, parts), differences, loss
    )


GROUPS = {'w1': 'matrix', 'b1': 'vector', 'w2': 'vector', 'embedding': 'vector'}


@tiers.parametrize(
  'case',
  [
    (name, labels)
    for name in ('momentum', 'adamw', 'surrounded_adamw')
    for labels in ('kinds', 'per_leaf')
  ],
  ['momentum-kinds'],
  key='-'.join,
  full=['momentum-per_leaf', 'adamw-per_leaf', 'surrounded_adamw-kinds'],
)
def test_groups_equal_finite_differences(x64, case):
  name, labels = case
  per_leaf = optimizers.label_leaves(cases.params())
  labels = per_leaf if labels == 'per_leaf' else GROUPS
  parts, state = cases.start(
    cases.BY_NAME[name], EXACT['reverse'], labels=labels
  )
  differences, loss = finite_difference(parts, state)
  assert len(differences) == len(state.eta) * len({*labels.values()})
  for kind in ('reverse', 'forward'):
    gradient = gradient_of(Estimator(kind=kind), state, parts)
    assert_equals_difference(gradient, differences, loss)


@tiers.parametrize(
  'name',
  ['nesterov', 'rmsprop', 'adam', 'lamb'],
  [],
  full=['nesterov', 'rmsprop'],
)
def test_estimators_agree_in_float32(name):
  case = cases.BY_NAME[name]
  parts, state = cases.start(case, EXACT['reverse'])
  gradients = [
    gradient_of(EXACT[name], state, parts) for name in ('reverse', 'forward')
  ]
  for one, other in zip(*map(jax.tree.leaves, gradients), strict=True):
    assert abs(one - other) <= 1e-5 * abs(one) + 2e-6


@by_case
def test_meta_off_is_plain_optax_bit_for_bit(case):
  """Also with the derivatives on: they never change a value."""
  parts, state = cases.start(case, EXACT['reverse'])
  factory = case.factory
  factory = getattr(optax, factory) if isinstance(factory, str) else factory
  names = {name: value for name, (_, value) in case.learned.items()}
  tx = optax.inject_hyperparams(
    factory,
    static_args=[*case.fixed, *({*optimizers_arguments(factory)} - {*names})],
  )(**case.fixed, **{
    name: float(v) for name, v in
    bijections.constrain(state.eta, parts.bijections).items()
  })  # fmt: skip
  if case.multiplier:
    clip = optax.clip_by_global_norm(case.clip_norm)
    tx = optax.chain(clip, tx, optax.scale_by_schedule(case.multiplier))

  plain = references.plain_loop(
    tx,
    lambda p, batch: cases.loss_fn(p, {}, batch)[0],
    cases.next_batch,
    steps=5,
  )
  (expected, _, _), _ = plain(
    state.params, tx.init(state.params), state.data_state
  )
  derived = [EXACT['forward'], EXACT['reverse']] * (case.name == 'radam')
  for estimator in [Estimator(kind='none'), *derived]:
    gradient, after, metrics = jax.jit(
      lambda s, e=estimator: e(s.eta, s.carry, parts)
    )(state)
    learns = estimator.kind != 'none'
    assert (gradient is not None) == ('meta/loss' in metrics) == learns
    for name, value in after.inner.params.items():
      if not learns:
        assert value.tobytes() == expected[name].tobytes(), name
      else:  # another program: XLA may fuse it otherwise
        np.testing.assert_allclose(value, expected[name], rtol=2e-5, atol=1e-6)


def optimizers_arguments(factory):
  import inspect

  return inspect.signature(factory).parameters


@pytest.mark.thorough
def test_a_nan_of_the_loss_stays_a_nan():
  case = cases.BY_NAME['adam_defaults']
  parts, state = cases.start(case, EXACT['reverse'])

  def broken(params, model_state, batch):
    loss, aux = cases.loss_fn(params, model_state, batch)
    return loss + jnp.sqrt(params['b1'][0] - params['b1'][0]), aux

  parts = dataclasses.replace(parts, loss_fn=broken, meta_loss_fn=broken)
  for estimator in (EXACT['reverse'], EXACT['forward']):
    gradient = gradient_of(estimator, state, parts)
    assert jnp.isnan(gradient['learning_rate'])


def test_zero_tangents_are_neither_carried_nor_computed():
  def moving(name, estimator):
    parts, state = cases.start(cases.BY_NAME[name], estimator)
    return estimator.tangent_shapes(state.eta, state.carry, parts)

  exact, none = EXACT['forward'], Estimator(kind='forward', curvature='none')
  leaves = {'b1', 'embedding', 'w1', 'w2'}
  params = {f'params/{leaf}' for leaf in leaves}
  assert {*moving('sgd', exact)} == params
  # Without the Hessian the moments do not depend on the learning rate.
  assert {*moving('adam_defaults', none)} == params
  assert len(moving('adam_defaults', exact)) == 3 * len(leaves)


@pytest.mark.thorough
def test_no_second_order_work_is_left_without_curvature():
  """Matrix products in the compiled program: those of plain training."""

  def products(estimator):
    parts, state = cases.start(cases.BY_NAME['adam_defaults'], estimator)
    step = functools.partial(
      outer.outer_step,
      problem=parts,
      meta_tx=optax.sgd(0.1),
      estimator=estimator,
    )
    text = jax.jit(step).lower(state).compile().as_text()
    return len(re.findall(r'\bdot\(|custom-call\(', text))

  online = functools.partial(
    Estimator, kind='forward', objective='online', discount=0.9
  )
  plain = products(Estimator(kind='none'))
  assert products(online(curvature='none')) == plain
  assert products(online(curvature='exact')) > plain


@pytest.mark.thorough
def test_without_curvature_one_tree_serves_all_groups():
  labels = optimizers.label_leaves(cases.params())
  estimator = Estimator(kind='forward', curvature='none', discount=0.9)
  case = cases.BY_NAME['momentum']
  parts, state = cases.start(case, estimator, labels=labels)
  assert all(len(z) == 2 for z in state.tangents.values())  # rate, momentum
  # And it is the gradient that separate trees, or reverse mode, would give.
  fresh = Estimator(kind='forward', curvature='none')
  reverse = Estimator(curvature='none')
  state = state.replace(tangents={})
  one, other = (gradient_of(e, state, parts) for e in (fresh, reverse))
  for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@tiers.parametrize(
  'case',
  [
    (objective, curvature)
    for objective in ('held_out', 'online')
    for curvature in ('none', 'subsample')
  ],
  [],
  key='-'.join,
  full=['held_out-none', 'online-subsample'],
)
def test_approximations_agree_between_modes(x64, case):
  objective, curvature = case
  estimators = [
    Estimator(kind=kind, curvature=curvature, objective=objective)
    for kind in ('reverse', 'forward')
  ]
  parts, state = cases.start(cases.BY_NAME['adamw'], estimators[0])
  one, other = (gradient_of(e, state, parts) for e in estimators)
  for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-9)


@pytest.mark.thorough
def test_subsample_of_the_whole_batch_is_exact(x64):
  whole = Estimator(kind='forward', curvature='subsample', subsample=1.0)
  parts, state = cases.start(cases.BY_NAME['adamw'], whole)
  one, other = (gradient_of(e, state, parts) for e in (whole, EXACT['forward']))
  for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-9)


@pytest.mark.thorough
def test_tangents_kept_across_windows_are_one_long_window(x64):
  """gamma = 1 and fixed eta: three windows of 4 are one window of 12."""
  kept = Estimator(kind='forward', discount=1.0)
  case = cases.BY_NAME['adamw']
  frozen = optax.sgd(0.0)
  parts, state = cases.start(case, kept, unroll_length=4, meta_tx=frozen)
  parts = dataclasses.replace(
    parts, next_meta_batch=lambda key: (key, cases.next_batch(key)[1])
  )
  for _ in range(3):
    gradient, carry, _ = kept(state.eta, state.carry, parts)
    state = state.with_carry(carry)
  _, fresh = cases.start(case, kept, unroll_length=12)
  long = dataclasses.replace(parts, unroll_length=12)
  expected, _, _ = EXACT['reverse'](
    fresh.eta, fresh.carry.replace(tangents={}), long
  )
  for a, b in zip(*map(jax.tree.leaves, (gradient, expected)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-9)


def test_discount_multiplies_once_at_the_windows_start(x64):
  case = cases.BY_NAME['momentum']
  half = Estimator(kind='forward', discount=0.5)
  parts, state = cases.start(case, half)
  z = jax.tree.map(jnp.ones_like, state.tangents)
  one, _, _ = half(state.eta, state.carry.replace(tangents=z), parts)
  full = Estimator(kind='forward', discount=1.0)
  z = jax.tree.map(lambda t: 0.5 * t, z)
  other, _, _ = full(state.eta, state.carry.replace(tangents=z), parts)
  for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize('name', ['b1', 'b2'])
def test_identically_zero_meta_gradients_are_found(name):
  learned = {**cases.RATE, name: ('one_minus_log', 0.9)}
  case = cases.Case('lion', 'lion', learned)
  parts, state = cases.start(case, EXACT['reverse'])
  inert = EXACT['reverse'].find_inert(state.eta, state.carry, parts)
  assert inert == [name]


@by_case
def test_nothing_that_works_is_called_inert(case):
  parts, state = cases.start(case, EXACT['reverse'])
  for estimator in (EXACT['forward'], Estimator(curvature='none')):
    assert not estimator.find_inert(state.eta, state.carry, parts)


def _with_custom_vjp(forward_pass):
  @jax.custom_vjp
  def square(x):
    return x**2

  square.defvjp(
    lambda x: (forward_pass(square, x), x), lambda x, g: (2 * x * g,)
  )

  def loss_fn(params, model_state, batch):
    loss, aux = cases.loss_fn(params, model_state, batch)
    return square(loss), aux

  parts, state = cases.start(cases.BY_NAME['sgd'], EXACT['reverse'])
  parts = dataclasses.replace(parts, loss_fn=loss_fn)
  return state.eta, state.carry, parts


@pytest.mark.thorough
def test_custom_vjp_says_what_to_use_instead():
  """Wherever the derivative of its value itself is needed."""
  arguments = _with_custom_vjp(lambda square, x: square(x))
  with pytest.raises(TypeError, match=r"use meta\.estimator 'reverse'"):
    Estimator(kind='forward', objective='online')(*arguments)
  reverse = Estimator(objective='online')
  assert jnp.isfinite(reverse(*arguments)[0]['learning_rate'])


@pytest.mark.thorough
@pytest.mark.parametrize('calls_itself', [False, True])
def test_custom_vjp_that_jax_can_push_through_is_right(x64, calls_itself):
  """Its rules are plain JAX: their own derivatives are what is needed."""
  arguments = _with_custom_vjp(
    lambda square, x: square(x) if calls_itself else x**2
  )
  one, other = (
    EXACT[kind](*arguments)[0]['learning_rate']
    for kind in ('forward', 'reverse')
  )
  np.testing.assert_allclose(one, other, rtol=1e-9)


@pytest.mark.thorough
def test_bfloat16_parameters_keep_float32_hyperparameters():
  parts, state = cases.start(cases.BY_NAME['adam'], EXACT['forward'])
  half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), state.params)
  state = state.replace(
    params=half, opt_state=optimizers.init_state(parts.tx, half)
  )
  assert {
    v.dtype for v in state.opt_state.hyperparams.values()
  } == {jnp.dtype('float32')}  # fmt: skip
  for estimator in (EXACT['forward'], EXACT['reverse']):
    gradient, after, _ = estimator(state.eta, state.carry, parts)
    assert all(jnp.isfinite(g) for g in gradient.values())
    assert after.inner.params['w1'].dtype == jnp.bfloat16


@tiers.parametrize('kind', ['forward', 'reverse', 'none'], ['forward'])
def test_one_compilation_for_a_run(kind):
  estimator = Estimator(kind=kind, discount=0.5 * (kind == 'forward'))
  meta_tx = optax.adam(0.01)
  parts, state = cases.start(cases.BY_NAME['adamw'], estimator, meta_tx=meta_tx)
  step = functools.partial(
    outer.outer_step, problem=parts, meta_tx=meta_tx, estimator=estimator
  )
  chunk = jax.jit(
    functools.partial(outer.outer_steps, step_fn=step, max_steps=8)
  )
  for count in (8, 3, 1, 8):
    state, record = chunk(state, np.int32(count))
    assert record.count == count
  assert chunk._cache_size() == 1


@tiers.parametrize('length', [1, 2, 3, 7, 16], [7])
def test_remat_covers_every_length(length):
  case = cases.BY_NAME['momentum']
  parts, state = cases.start(case, EXACT['reverse'], unroll_length=length)
  results = [
    jax.jit(
      lambda s, r=remat: inner.unroll(
        s.inner,
        s.data_state,
        bijections.constrain(s.eta, parts.bijections),
        grad_fn=EXACT['reverse'].grad_fn(parts.loss_fn),
        tx=parts.tx,
        next_batch=parts.next_batch,
        unroll_length=length,
        remat=r,
      )
    )(state)
    for remat in ('none', 'step', 'sqrt')
  ]
  for other in results[1:]:
    assert other[2]['loss'].shape == (length,)
    np.testing.assert_allclose(
      other[2]['loss'], results[0][2]['loss'], rtol=1e-6
    )


@pytest.mark.thorough
@pytest.mark.parametrize('kind', ['reverse', 'forward'])
def test_complex_parameters_are_trained_as_optax_trains_them(x64, kind):
  """`jax.grad` gives the conjugate of what optax wants of complex numbers."""
  target = jnp.asarray([1 + 2j, -1j])
  loss = lambda w: jnp.sum(jnp.abs(w - target) ** 2)
  parts = cases.problem(cases.BY_NAME['sgd'])[0]
  parts = dataclasses.replace(
    parts,
    loss_fn=lambda w, state, batch: (loss(w), (state, {})),
    meta_loss_fn=lambda w, state, batch: (loss(w), (state, {})),
  )
  start = jnp.asarray([0.3 - 0.1j, 0.2 + 0.7j])

  def run(rate):
    return outer.init_state(
      parts,
      params=start,
      model_state={},
      data_state=jax.random.key(0),
      hyperparams={'learning_rate': rate},
      meta_tx=optax.sgd(0.0),
      estimator=Estimator(kind=kind),
    )

  def outer_loss(rate):
    state = run(float(rate))
    found = meta_gradient.meta_loss(Estimator(), state.eta, state.carry, parts)
    return found[0]

  state = run(0.05)
  slope, after, _ = Estimator(kind=kind)(state.eta, state.carry, parts)
  w, tx = start, optax.sgd(0.05)
  for _ in range(parts.unroll_length):
    updates, _ = tx.update(jnp.conj(jax.grad(loss)(w)), tx.init(w))
    w = optax.apply_updates(w, updates)
  np.testing.assert_allclose(after.inner.params, w, rtol=1e-12)
  up, down = outer_loss(0.05 + 1e-6), outer_loss(0.05 - 1e-6)
  by_rate = slope['learning_rate'] / (0.05 * 0.95)  # lambda = sigmoid(eta)
  np.testing.assert_allclose(by_rate, (up - down) / 2e-6, rtol=1e-6)
