"""The drop-in, in everybody's loop."""

import functools

from flax import nnx
from flax.training import train_state
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import references
import tiers

import metalr_flax
from metalr_flax.tuning import factors
from metalr_flax.tuning import guard
from metalr_flax.tuning import steering
from metalr_flax.tuning.state import SelfTuningState

OPTIMIZERS = {
  'sgd': functools.partial(optax.sgd, momentum=0.9),
  'rmsprop': optax.rmsprop,
  'adam': optax.adam,
  'adamw': optax.adamw,
}
# The others do the same in the same lines; SGD has tests of its own below.
by_optimizer = tiers.parametrize('name', OPTIMIZERS, ['adam'])


def injected(name='adam', rate=1e-3, **arguments):
  return optax.inject_hyperparams(OPTIMIZERS[name])(rate, **arguments)


@pytest.fixture(scope='module')
def data():
  x = jax.random.normal(jax.random.key(0), (256, 8))
  y = jnp.sin(x @ jax.random.normal(jax.random.key(1), (8, 2)))
  return x, y


@pytest.fixture(scope='module')
def params():
  a, b = jax.random.split(jax.random.key(2))
  return {
    'a': jax.random.normal(a, (8, 32)) / 3,
    'b': jax.random.normal(b, (32, 2)) / 6,
  }


def loss_fn(params, batch):
  x, y = batch
  return jnp.mean((jnp.tanh(x @ params['a']) @ params['b'] - y) ** 2)


def batch_at(data, step):
  rows = jax.random.randint(
    jax.random.fold_in(jax.random.key(3), step), (16,), 0, 256
  )
  return jax.tree.map(lambda a: a[rows], data)


@functools.cache
def tuned(name):
  """A self-tuned optimizer whose update is compiled, once for all tests."""
  tx = metalr_flax.self_tuning(injected(name))
  return tx._replace(update=jax.jit(tx.update))


def train(tx, params, data, steps=50, state=None, first=0):
  """A bare optax loop, as one scan."""
  state = tx.init(params) if state is None else state
  return loop(tx, steps)(params, state, data, first)


@functools.cache
def loop(tx, steps):
  @jax.jit
  def run(params, state, data, first):
    def body(carry, step):
      params, state = carry
      loss, grads = jax.value_and_grad(loss_fn)(params, batch_at(data, step))
      updates, state = tx.update(grads, state, params)
      return (optax.apply_updates(params, updates), state), loss

    carry, numbers = (params, state), first + jnp.arange(steps)
    carry, losses = jax.lax.scan(body, carry, numbers)
    return *carry, losses

  return run


@pytest.fixture(scope='module')
def trained(params, data):
  """`(name, steps) -> (params, state)`: trained once for all tests."""

  @functools.cache
  def compiled(name):
    @jax.jit
    def step(params, state, number):
      grads = jax.grad(loss_fn)(params, batch_at(data, number))
      updates, state = tuned(name).update(grads, state, params)
      return optax.apply_updates(params, updates), state

    return step

  @functools.cache
  def after(name, steps):
    now, state = params, tuned(name).init(params)
    for number in range(steps):
      now, state = compiled(name)(now, state, number)
    return now, state

  return after


def assert_same_bits(one, other):
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    assert a.dtype == b.dtype
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@by_optimizer
@pytest.mark.parametrize(
  'off', [{'learned': {}}, {'meta_tx': optax.set_to_zero()}], ids=['{}', 'zero']
)
def test_without_learning_it_is_the_inner_optimizer(name, off, params, data):
  tx = metalr_flax.self_tuning(injected(name), **off)
  for got, wanted in zip(
    train(tx, params, data), train(injected(name), params, data), strict=True
  ):
    if isinstance(got, SelfTuningState):
      got = got.opt_state
    assert_same_bits(got, wanted)


LEARNED = {
  'sgd': {'learning_rate': 'log', 'momentum': 'one_minus_log'},
  'rmsprop': {'learning_rate': 'log', 'decay': 'one_minus_log', 'eps': 'log'},
  'adam': {'learning_rate': 'log', 'b1': 'one_minus_log', 'eps': 'log'},
  'adamw': {'learning_rate': 'log', 'weight_decay': 'log'},
}
EXTRA = {
  'adamw': {'weight_decay': 0.1},
  'adam': {'eps': 1e-3},
  'rmsprop': {'eps': 1e-3},
}


@by_optimizer
def test_names_alone_are_learned_by_the_kind_that_suits_them(name, params):
  start = lambda learned: metalr_flax.self_tuning(
    injected(name, 0.1, **EXTRA.get(name, {})), learned=learned
  ).init(params)
  assert_same_bits(start(list(LEARNED[name])), start(LEARNED[name]))
  assert factors.with_kinds(LEARNED[name].keys()) == LEARNED[name]


@by_optimizer
def test_the_tangents_equal_finite_differences(name, x64):
  """Gradients count as constants: a fixed sequence of them, gamma = 1."""
  rng = np.random.default_rng(0)
  params = {'w': jnp.asarray(rng.normal(size=5))}
  grads = [{'w': jnp.asarray(rng.normal(size=5))} for _ in range(6)]
  tx = metalr_flax.self_tuning(
    injected(name, 0.1, **EXTRA.get(name, {})),
    learned=LEARNED[name],
    meta_tx=optax.set_to_zero(),
    discount=1.0,
  )

  @jax.jit
  def end(eta):
    state = tx.init(params)._replace(eta=eta)
    now, state = references.after_updates(tx, params, state, grads)
    return now['w'], state.tangents

  zero = {hyper: jnp.zeros(()) for hyper in LEARNED[name]}
  tangents = end(zero)[1][0]
  found = references.differences(lambda eta: end(eta)[0], zero)
  for row, (hyper, difference) in enumerate(
    zip(sorted(zero), found, strict=True)
  ):
    np.testing.assert_allclose(tangents[row], difference, rtol=1e-6, atol=1e-9)
    assert np.any(difference != 0), hyper


def test_eta_moves_along_minus_the_slope(params, data):
  """The first update cannot know; the second meets Z = the first updates."""
  tx = metalr_flax.self_tuning(injected('sgd', 0.05), meta_tx=optax.sgd(0.5))
  state = tx.init(params)
  g1 = jax.grad(loss_fn)(params, batch_at(data, 0))
  updates, state = tx.update(g1, state, params)
  assert state.eta['learning_rate'] == 0
  params = optax.apply_updates(params, updates)
  g2 = jax.grad(loss_fn)(params, batch_at(data, 1))
  _, state = tx.update(g2, state, params)
  # d updates / d log(rate) = updates.
  np.testing.assert_allclose(
    state.eta['learning_rate'], -0.5 * optax.tree.vdot(g2, updates), rtol=1e-5
  )
  assert metalr_flax.hyperparams_of(state)['learning_rate'] == pytest.approx(
    0.05 * np.exp(state.eta['learning_rate']), rel=1e-6
  )


@by_optimizer
def test_a_rate_that_is_too_small_grows_and_the_loss_is_lower(
  name, params, data
):
  tx = metalr_flax.self_tuning(injected(name, 1e-5))
  _, state, learned = train(tx, params, data, 800)
  _, _, fixed = train(injected(name, 1e-5), params, data, 800)
  assert metalr_flax.hyperparams_of(state)['learning_rate'] > 1e-4
  assert jnp.mean(learned[-50:]) < 0.8 * jnp.mean(fixed[-50:])


class Net(nnx.Module):
  def __init__(self, rngs):
    self.a = nnx.Linear(8, 32, rngs=rngs)
    self.b = nnx.Linear(32, 2, rngs=rngs)

  def __call__(self, x):
    return self.b(jnp.tanh(self.a(x)))


@pytest.mark.thorough
def test_a_flax_nnx_loop(data):
  model = Net(nnx.Rngs(0))
  tx = metalr_flax.self_tuning(injected('adamw', 1e-5))
  optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

  @nnx.jit
  def step(model, optimizer, batch):
    x, y = batch
    loss, grads = nnx.value_and_grad(lambda m: jnp.mean((m(x) - y) ** 2))(model)
    optimizer.update(model, grads)
    return loss

  losses = [step(model, optimizer, batch_at(data, i)) for i in range(300)]
  learned = metalr_flax.hyperparams_of(optimizer.opt_state)
  assert learned['learning_rate'] > 5e-5
  assert np.mean(losses[-20:]) < np.mean(losses[:20])


@pytest.mark.thorough
def test_a_flax_train_state_loop(params, data):
  tx = metalr_flax.self_tuning(injected('adam', 1e-5))
  state = train_state.TrainState.create(apply_fn=None, params=params, tx=tx)

  @jax.jit
  def step(state, batch):
    return state.apply_gradients(grads=jax.grad(loss_fn)(state.params, batch))

  for i in range(50):
    state = step(state, batch_at(data, i))
  bare, bare_state, _ = train(tx, params, data, 50)
  for a, b in zip(
    jax.tree.leaves((state.params, state.opt_state)),
    jax.tree.leaves((bare, bare_state)),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


WITHIN = {
  'MultiSteps': lambda tx: optax.MultiSteps(
    tx, every_k_schedule=2
  ).gradient_transformation(),
  'chain': lambda tx: optax.chain(optax.clip_by_global_norm(1.0), tx),
  'mask': lambda tx: optax.chain(
    optax.masked(tx, {'a': True, 'b': False}),
    optax.masked(optax.set_to_zero(), {'a': False, 'b': True}),
  ),
}


@tiers.parametrize('within', WITHIN, ['MultiSteps', 'mask'])
def test_it_learns_within_other_transformations(within, params, data):
  tx = WITHIN[within](metalr_flax.self_tuning(injected('adam', 1e-4)))
  _, state, _ = train(tx, params, data, 40)
  assert metalr_flax.hyperparams_of(state)['learning_rate'] > 2e-5
  if within == 'MultiSteps':
    assert int(state.inner_opt_state.step) == 20


@pytest.mark.thorough
def test_others_can_be_within_the_inner_optimizer(params, data):
  inside = metalr_flax.self_tuning(
    optax.inject_hyperparams(
      lambda learning_rate: optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(learning_rate)
      )
    )(1e-4)
  )
  _, state, _ = train(inside, params, data, 40)
  assert metalr_flax.hyperparams_of(state)['learning_rate'] > 2e-5


@pytest.mark.thorough
def test_bfloat16_parameters(params, data):
  low = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
  with pytest.raises(ValueError, match=r'hyperparam_dtype=jnp\.float32'):
    metalr_flax.self_tuning(injected('adam', 1e-4)).init(low)
  inject = optax.inject_hyperparams(optax.adam, hyperparam_dtype=jnp.float32)
  tx = metalr_flax.self_tuning(inject(1e-4))
  got, state, losses = train(tx, low, data, 60)
  assert all(p.dtype == jnp.bfloat16 for p in jax.tree.leaves(got))
  assert state.eta['learning_rate'].dtype == jnp.float32
  assert metalr_flax.hyperparams_of(state)['learning_rate'] > 1e-4
  assert jnp.all(jnp.isfinite(losses))


@pytest.mark.thorough
def test_vmap_over_seeds_equals_one_by_one(params, data):
  tx = metalr_flax.self_tuning(injected('adam', 1e-4))
  many = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), params)

  run = lambda params: train(tx, params, data, 3)[:2]
  batched = jax.vmap(run)(many)
  for i, start in enumerate((params, jax.tree.map(lambda p: 2 * p, params))):
    one = run(start)
    for a, b in zip(
      jax.tree.leaves(batched), jax.tree.leaves(one), strict=True
    ):
      np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-6)
  assert metalr_flax.hyperparams_of(batched[1])['learning_rate'].shape == (2,)


@pytest.mark.thorough
def test_saved_and_restored_in_the_middle_it_is_the_same(
  params, data, tmp_path
):
  tx = metalr_flax.self_tuning(
    injected('adamw'), learned={'learning_rate': 'log', 'b1': 'one_minus_log'}
  )
  whole = train(tx, params, data, 40)
  half, state, _ = train(tx, params, data, 20)
  with ocp.StandardCheckpointer() as saver:
    saver.save(tmp_path / 'state', (half, state))
    saver.wait_until_finished()
    half, state = saver.restore(
      tmp_path / 'state',
      jax.tree.map(ocp.utils.to_shape_dtype_struct, (half, state)),
    )
  rest = train(tx, half, data, 20, state=state, first=20)
  assert_same_bits(rest[:2], whole[:2])


@by_optimizer
def test_recorded_values_replay_as_a_schedule(name, params, data, tmp_path):
  """The same rates at the same updates: the same run, but for rounding."""
  tx = metalr_flax.self_tuning(injected(name))

  @jax.jit
  def step(now, state, number):
    loss, grads = jax.value_and_grad(loss_fn)(now, batch_at(data, number))
    updates, state = tx.update(grads, state, now)
    return optax.apply_updates(now, updates), state, loss

  now, state, rates, losses = params, tx.init(params), [], []
  for number in range(150):
    now, state, loss = step(now, state, number)
    rates.append(metalr_flax.hyperparams_of(state)['learning_rate'])
    losses.append(float(loss))
  path = tmp_path / 'schedule.json'
  metalr_flax.save_schedule(path, {'learning_rate': rates})
  rate = metalr_flax.load_schedule(path)
  _, _, replayed = train(OPTIMIZERS[name](rate), params, data, 150)
  np.testing.assert_allclose(replayed, losses, rtol=2e-3)
  assert max(rates) > 10 * rates[0]


@pytest.mark.parametrize(
  ('values', 'every', 'part'),
  [
    ({'learning_rate': []}, 1, 'value must be one number or more'),
    ({'learning_rate': [0.1, np.nan]}, 1, 'finite in float32'),
    ({'learning_rate': [0.1]}, 0, 'every=0'),
  ],
)
def test_a_schedule_that_cannot_be_is_refused(values, every, part, tmp_path):
  with pytest.raises(ValueError, match=part):
    metalr_flax.save_schedule(tmp_path / 's.json', values, every=every)
  assert not list(tmp_path.iterdir())


def test_a_schedule_multiplies_the_learned_rate(params, data):
  half = optax.constant_schedule(0.5)
  off = optax.set_to_zero()
  tx = metalr_flax.self_tuning(
    injected('adam', 1e-3), meta_tx=off, schedule=half
  )
  got, _, _ = train(tx, params, data)
  wanted, _, _ = train(injected('adam', 5e-4), params, data)
  assert_same_bits(got, wanted)


def test_a_slope_that_is_not_finite_does_not_move_meta_tx(params):
  tx = metalr_flax.self_tuning(injected('sgd', 0.1), meta_tx=optax.adam(0.1))
  state = tx.init(params)
  _, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
  bad = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), params)
  _, after = tx.update(bad, state, params)
  assert_same_bits(
    (after.eta, after.meta_opt_state), (state.eta, state.meta_opt_state)
  )


@pytest.mark.thorough
def test_a_start_above_its_place_is_a_start_from_below(params, data):
  """What the user set is forgotten, to the last bit of float32's logarithm."""
  low, *others = (
    train(metalr_flax.self_tuning(injected('adam', rate)), params, data, 200)[2]
    for rate in (1e-5, 1e-3, 1.0, 100.0, 1e10)
  )
  for losses in others:
    np.testing.assert_allclose(low, losses, rtol=1e-2)


def explode(tx, now, state, data, *, first):
  """Two batches in a row with gradients that are far too large."""
  skipped = None
  for step in (first, first + 1):
    grads = jax.grad(loss_fn)(now, batch_at(data, step))
    worse = jax.tree.map(lambda g: jnp.full_like(g, 1e6), grads)
    updates, state = tx.update(worse, state, now)
    now = optax.apply_updates(now, updates)
    skipped = skipped or updates
  assert not np.any(jax.tree.leaves(skipped)[0]), 'one may be a bad batch'
  return now, state


@by_optimizer
def test_an_explosion_is_undone_and_the_rate_lowered(name, trained, data):
  tx = tuned(name)
  earlier, _ = trained(name, 57)
  now, state = trained(name, 60)
  back, after = explode(tx, now, state, data, first=60)
  assert metalr_flax.counts_of(after) == {'skipped': 1, 'undone': 3}
  # The displacement is of updates 57, 58 and 59.
  for got, good in zip(
    jax.tree.leaves(back), jax.tree.leaves(earlier), strict=True
  ):
    np.testing.assert_allclose(got, good, rtol=1e-4, atol=1e-6)
  # The next update begins anew.
  grads = jax.grad(loss_fn)(back, batch_at(data, 62))
  _, next_state = tx.update(grads, after, back)
  lost = state.eta['learning_rate'] - next_state.eta['learning_rate']
  assert lost == pytest.approx(np.log(10), rel=0.01)
  inner = injected(name)
  _, first = inner.update(grads, inner.init(back), back)
  for a, b in zip(
    jax.tree.leaves(next_state.opt_state.inner_state),
    jax.tree.leaves(first.inner_state),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, rtol=1e-5)
  # It trains on from there.
  _, state, losses = train(tx, back, data, 200, state=after, first=62)
  assert np.all(np.isfinite(losses))
  assert np.mean(losses[-20:]) < np.mean(losses[:20])


def test_one_batch_that_is_too_large_is_left_out(trained, params, data):
  tx = tuned('adam')
  now, state = trained('adam', 60)
  grads = jax.tree.map(lambda p: jnp.full_like(p, 1e6), params)
  updates, after = tx.update(grads, state, now)
  assert not np.any(jax.tree.leaves(updates)[0])
  grads = jax.grad(loss_fn)(now, batch_at(data, 60))
  one, other = (tx.update(grads, s, now) for s in (state, after))
  assert_same_bits(one[0], other[0])
  assert metalr_flax.counts_of(other[1]) == {'skipped': 1, 'undone': 0}


@pytest.mark.parametrize('where', ['gradient', 'value'])
@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
@by_optimizer
def test_a_batch_that_is_not_finite_costs_nothing(
  name, bad, where, trained, data
):
  """But its own update: all but the counts stays, bit for bit."""
  tx = tuned(name)
  now, state = trained(name, 60)
  grads = jax.grad(loss_fn)(now, batch_at(data, 60))
  value = jnp.asarray(1.0)
  if where == 'gradient':
    grads = {**grads, 'b': grads['b'].at[0, 0].set(bad)}
  else:
    value = jnp.asarray(bad)
  updates, after = tx.update(grads, state, now, value=value)
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(updates))
  assert_same_bits(after._replace(guard=None), state._replace(guard=None))
  assert_same_bits(after.guard.levels, state.guard.levels)
  assert metalr_flax.counts_of(after) == {'skipped': 1, 'undone': 0}


@pytest.mark.parametrize('where', ['gradient', 'value'])
@pytest.mark.parametrize('bad', [np.nan, np.inf])
@pytest.mark.parametrize('count', [1, 8, 40, 400])
def test_bad_batches_apart_are_as_if_they_had_not_come(
  count, bad, where, params, data
):
  marked = np.random.default_rng(0).permutation(2000)[:count]
  loss, state = train_through(where, bad, marked, params, data)
  assert metalr_flax.counts_of(state) == {'skipped': count, 'undone': 0}
  alone, _ = train_through(None, bad, marked, params, data)
  assert loss == alone


@pytest.mark.parametrize('where', ['gradient', 'value'])
def test_400_bad_batches_in_a_row_cost_three_updates(where, params, data):
  marked = np.arange(900, 1300)
  loss, state = train_through(where, np.nan, marked, params, data)
  assert metalr_flax.counts_of(state) == {'skipped': 400, 'undone': 3}
  alone, _ = train_through(None, np.nan, marked, params, data)
  assert loss < 1.05 * alone


def train_through(where, bad, marked, params, data):
  """The final loss on all data, and the state, of 2000 batches with bad ones.

  Args:
    where: whether `gradient` or `value` is bad; None leaves those batches out.
    bad: what is added to it.
    marked: the numbers of the bad batches.
  """
  marks = jnp.zeros(2000, bool).at[marked].set(True)
  chosen = jnp.array([where == 'gradient', where == 'value'])
  return _through(jnp.where(chosen, bad, 0.0), marks, params, data)


@jax.jit
def _through(bad, marks, params, data):
  tx = metalr_flax.self_tuning(injected('adam'))
  left_out = jnp.all(bad == 0)

  def body(before, now):
    step, marked = now
    params, state = before
    loss, grads = jax.value_and_grad(loss_fn)(params, batch_at(data, step))
    in_grads, in_loss = jnp.where(marked, bad, 0.0)
    grads = jax.tree.map(lambda g: g + in_grads, grads)
    updates, state = tx.update(grads, state, params, value=loss + in_loss)
    after = optax.apply_updates(params, updates), state
    kept = lambda old, new: jnp.where(marked & left_out, old, new)
    return jax.tree.map(kept, before, after), None

  carry = params, tx.init(params)
  (params, state), _ = jax.lax.scan(body, carry, (jnp.arange(2000), marks))
  return loss_fn(params, data), state


@pytest.mark.parametrize('then', ['fine', 'bad'])
def test_ten_in_a_row_that_are_not_finite_put_the_parameters_to_the_test(
  then, trained, params, data
):
  """The last updates are undone; the rate falls only if that mends it."""
  tx = tuned('sgd')
  earlier, _ = trained('sgd', 57)
  now, state = trained('sgd', 60)
  rate = metalr_flax.hyperparams_of(state)['learning_rate']
  nan = jax.tree.map(lambda p: jnp.full_like(p, np.nan), params)
  count = guard.PATIENCE + (then == 'bad')
  now, state = references.after_updates(tx, now, state, count * [nan])
  assert metalr_flax.counts_of(state) == {'skipped': count, 'undone': 3}
  for got, good in zip(
    jax.tree.leaves(now), jax.tree.leaves(earlier), strict=True
  ):
    np.testing.assert_allclose(got, good, rtol=1e-4, atol=1e-6)
  _, state = tx.update(jax.grad(loss_fn)(now, batch_at(data, 60)), state, now)
  share = metalr_flax.hyperparams_of(state)['learning_rate'] / rate
  assert share < 0.11 if then == 'fine' else share > 0.85


def test_a_rate_that_was_lowered_comes_back(trained, data):
  tx = tuned('adam')
  now, state = trained('adam', 200)
  rate = metalr_flax.hyperparams_of(state)['learning_rate']
  now, state = explode(tx, now, state, data, first=200)
  now, state, _ = train(tx, now, data, 1, state=state, first=202)
  assert metalr_flax.hyperparams_of(state)['learning_rate'] < 0.11 * rate
  _, state, _ = train(tx, now, data, 100, state=state, first=203)
  ceiling = rate * np.exp(-steering.BELOW) * 300 / 200
  back = metalr_flax.hyperparams_of(state)['learning_rate']
  assert back == pytest.approx(ceiling, rel=0.05)


def test_gradients_whose_squares_overflow_are_not_finite(trained, params):
  tx = tuned('sgd')
  now, state = trained('sgd', 60)
  huge = jax.tree.map(lambda p: jnp.full_like(p, 1e30), params)
  for _ in range(guard.PATIENCE):
    _, state = tx.update(huge, state, now)
  counts = metalr_flax.counts_of(state)
  assert counts == {'skipped': guard.PATIENCE, 'undone': 3}


def test_the_guard_watches_the_loss_where_it_is_given(params, data):
  tx = tuned('adam')
  state = tx.init(params)
  grads = jax.grad(loss_fn)(params, batch_at(data, 0))
  for value in (1.0, 0.9, -5.0, 1.1):
    _, state = tx.update(grads, state, params, value=jnp.asarray(value))
  calm = state.eta['learning_rate']
  for value in (1e3, 1e3, 1.0):
    _, state = tx.update(grads, state, params, value=jnp.asarray(value))
  assert state.eta['learning_rate'] < calm - 2


def test_a_loss_that_explodes_above_a_rate_is_brought_down():
  """x^4 throws any constant rate above its bound out; the guard returns."""
  tx = metalr_flax.self_tuning(injected('sgd', 1.0))
  start = {'x': jnp.full(4, 1e3)}
  grad = jax.grad(lambda p: jnp.sum(p['x'] ** 4))

  def body(carry, _):
    params, state = carry
    updates, state = tx.update(grad(params), state, params)
    params = optax.apply_updates(params, updates)
    return (params, state), jnp.sum(params['x'] ** 4)

  (params, _), losses = jax.lax.scan(body, (start, tx.init(start)), length=2000)
  assert np.all(np.isfinite(jax.tree.leaves(params)[0]))
  assert losses[-1] < 1e-6 * 4e12


def test_groups_have_rates_of_their_own(params, data):
  """The tangents of two groups do not mix: a scaled gradient finds its rate."""
  labels = {'a': 'first', 'b': 'second'}
  inner = metalr_flax.make_grouped(
    optax.sgd, {'learning_rate': 1e-3, 'momentum': 0.9}, (), labels
  )
  for given in (labels, lambda _: labels):
    tx = metalr_flax.self_tuning(inner, labels=given)
    _, state, losses = train(tx, params, data, 400)
    rates = metalr_flax.hyperparams_of(state)
    assert rates.keys() == {'learning_rate/first', 'learning_rate/second'}
    assert len(set(rates.values())) == 2
    assert min(rates.values()) > 1e-4
    assert np.mean(losses[-20:]) < 0.8 * np.mean(losses[:20])


TARGET = 2 + 1j
STARTS = {
  'Python floats': {'w': 1.0, 'v': 2.0},
  'NumPy arrays': {'w': np.ones(3, np.float32)},
  'no parameters': {},
  'complex': {'w': jnp.ones(3, jnp.complex64), 'v': jnp.ones(2)},
  'lookahead': optax.LookaheadParams.init_synced({'w': jnp.ones(3)}),
}


def injected_into(params, name='adam', rate=0.1):
  """The optimizer that suits one of `STARTS`."""
  dtype = jnp.zeros(()).dtype  # the rate of complex parameters is none
  inject = optax.inject_hyperparams(OPTIMIZERS[name], hyperparam_dtype=dtype)
  if isinstance(params, optax.LookaheadParams):
    return optax.lookahead(inject(rate), sync_period=1, slow_step_size=0.5)
  return inject(rate)


def distance(params):
  """A loss: half the distance to the target, squared."""
  leaves = jax.tree.leaves(params)
  return 0.5 * sum(jnp.sum(jnp.abs(leaf - TARGET) ** 2) for leaf in leaves)


def descent(params):
  """Gradients as optax wants them: of complex parameters the conjugate."""
  params = getattr(params, 'fast', params)
  grads = jax.grad(distance)(jax.tree.map(jnp.asarray, params))
  return jax.tree.map(jnp.conj, grads)


@pytest.mark.thorough
@pytest.mark.parametrize('start', STARTS)
@pytest.mark.parametrize('name', ['sgd', 'adam'])
def test_parameters_are_taken_as_plain_optax_takes_them(name, start):
  inner = injected_into(STARTS[start], name)
  off = metalr_flax.self_tuning(inner, meta_tx=optax.set_to_zero())
  on = metalr_flax.self_tuning(inner)
  ends = []
  for tx in (inner, off, on):
    now, state = STARTS[start], tx.init(STARTS[start])
    for update in [tx.update, *4 * [jax.jit(tx.update)]]:
      updates, state = update(descent(now), state, now)
      now = optax.apply_updates(now, updates)
    ends.append(now)
  assert_same_bits(ends[0], ends[1])
  rate = metalr_flax.hyperparams_of(state)['learning_rate']
  assert rate > 1.2e-5 or not STARTS[start]


@tiers.parametrize('start', ['complex', 'lookahead'], ['complex'])
@by_optimizer
def test_the_slope_equals_finite_differences(name, start, x64):
  """That of the loss after one update, met by the second."""
  wide = lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float64))
  params = jax.tree.map(wide, STARTS[start])
  tx = metalr_flax.self_tuning(
    injected_into(params, name), meta_tx=optax.sgd(1.0), discount=1.0
  )

  @jax.jit
  def after(eta):
    state = tx.init(params)._replace(eta={'learning_rate': jnp.asarray(eta)})
    updates, state = tx.update(descent(params), state, params)
    return optax.apply_updates(params, updates), state

  def loss_after(eta):
    now, _ = after(eta)
    return distance(getattr(now, 'fast', now))

  now, state = after(0.0)
  _, state = tx.update(descent(now), state, now)
  slope = -state.eta['learning_rate']
  difference = references.central_difference(loss_after)
  np.testing.assert_allclose(slope, difference, rtol=1e-6)


@pytest.mark.thorough
def test_lookahead_with_groups():
  parts = {'x': injected(rate=0.1), 'y': injected(rate=0.1)}
  labels = {'w': 'x', 'v': 'y'}
  inner = optax.lookahead(optax.partition(parts, labels), 3, 0.5)
  tx = metalr_flax.self_tuning(inner, labels=labels)
  now = optax.LookaheadParams.init_synced({'w': jnp.ones(3), 'v': jnp.zeros(2)})
  state = tx.init(now)
  for _ in range(5):
    updates, state = tx.update(descent(now), state, now)
    now = optax.apply_updates(now, updates)
  rates = metalr_flax.hyperparams_of(state)
  assert min(rates['learning_rate/x'], rates['learning_rate/y']) > 1.2e-5


GROUPS = {'a': 'first', 'b': 'second'}
AROUND = {
  'alone': lambda tx: tx,
  'chain': lambda tx: optax.chain(optax.clip_by_global_norm(1.0), tx),
  'masked': lambda tx: optax.masked(tx, {'a': True, 'b': True}),
  'apply_if_finite': lambda tx: optax.apply_if_finite(tx, 3),
}
by_surroundings = tiers.parametrize('around', AROUND, ['alone', 'chain'])


def grouped(name='sgd'):
  factory = OPTIMIZERS[name] if name != 'sgd' else optax.sgd
  return metalr_flax.make_grouped(factory, {'learning_rate': 0.1}, (), GROUPS)


@tiers.parametrize('name', ['sgd', 'adam'], ['sgd'])
@by_surroundings
@pytest.mark.parametrize(
  ('labels', 'part'),
  [
    ({'a': 'second', 'b': 'first'}, "params['a'] is in group 'second', but inner_tx has it in 'first'"),
    ({'a': 'first', 'b': 'first'}, "in none of the groups ['first']"),
    ({'a': 'first', 'b': 'third'}, "in none of the groups ['first', 'third']"),
    (None, "is injected 2 times in inner_tx"),
  ],
  ids=['permuted', 'fewer', 'others', 'forgotten'],
)  # fmt: skip
def test_labels_other_than_the_optimizers_are_refused(
  labels, part, around, name, params
):
  """Plain SGD's state says nothing of who owns which parameter."""
  inner = AROUND[around](grouped(name))
  metalr_flax.self_tuning(inner, labels=GROUPS).init(params)
  with pytest.raises(ValueError, match='self_tuning: ') as caught:
    metalr_flax.self_tuning(inner, labels=labels).init(params)
  assert part in str(caught.value)
  assert '\n' not in str(caught.value)


@by_surroundings
def test_one_injected_optimizer_is_found_inside_of_others(around, params):
  """Beside another with other hyperparameters, too."""
  decay = optax.inject_hyperparams(optax.add_decayed_weights)(0.1)
  inner = AROUND[around](optax.chain(decay, injected('adam', 0.1)))
  tx = metalr_flax.self_tuning(inner, learned=['learning_rate', 'weight_decay'])
  start = metalr_flax.hyperparams_of(tx.init(params))
  assert start['learning_rate'] == pytest.approx(1e-5)
  assert start['weight_decay'] == pytest.approx(0.1)


TWICE = optax.chain(injected(), injected())


@pytest.mark.parametrize(
  ('inner', 'labels'),
  [
    (TWICE, None),
    (optax.partition({'first': TWICE, 'second': injected()}, GROUPS), GROUPS),
    (
      optax.chain(
        optax.masked(injected(), {'a': True, 'b': False}),
        optax.masked(injected(), {'a': False, 'b': True}),
      ),
      None,
    ),
  ],
  ids=['chain', 'in a group', 'masks'],
)
def test_two_stages_do_not_share_one_rate(inner, labels, params):
  tx = metalr_flax.self_tuning(inner, labels=labels)
  with pytest.raises(ValueError, match='is injected 2 times in') as caught:
    tx.init(params)
  assert '\n' not in str(caught.value)


def types_of(tree):
  return [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(tree)]


@by_optimizer
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.float64])
@pytest.mark.parametrize(
  'more',
  [{}, {'meta_tx': optax.adam(0.1)}, {'schedule': lambda count: count * 0.5}],
  ids=['rule', 'meta_tx', 'schedule'],
)
def test_under_x64_the_state_keeps_its_types(name, dtype, more, x64):
  params = {'w': jnp.ones(3, dtype)}
  tx = metalr_flax.self_tuning(injected(name), **more)
  state = jax.eval_shape(tx.init, params)
  _, after = jax.eval_shape(tx.update, params, state, params)
  assert types_of(after) == types_of(state)


def test_a_state_made_outside_of_jit_can_be_donated(params):
  tx = metalr_flax.self_tuning(injected('adam'))
  params = jax.tree.map(jnp.copy, params)
  step = jax.jit(tx.update, donate_argnums=1)
  for _ in range(3):
    _, state = step(params, tx.init(params), params)
  assert int(state.step) == 1


@pytest.mark.thorough
def test_float16_gradients_whose_squares_overflow_are_no_alarm():
  inject = optax.inject_hyperparams(optax.sgd, hyperparam_dtype=jnp.float32)
  tx = metalr_flax.self_tuning(inject(1e-3))
  params = {'w': jnp.ones(4, jnp.float16)}
  state = tx.init(params)
  for _ in range(10):
    _, state = tx.update({'w': jnp.full(4, 300, jnp.float16)}, state, params)
  assert metalr_flax.hyperparams_of(state)['learning_rate'] > 1e-5


@pytest.mark.parametrize('exponent', [-90, -60, 60])
def test_the_rule_does_not_depend_on_the_losss_scale(exponent):
  """A power of two changes no bit, though squares leave float32's range."""
  rng = np.random.default_rng(0)
  slopes = rng.normal(0.5, 1, (40, 2, 3)).astype(np.float32)

  def moves(scale):
    memory, eta, is_rate = steering.init(3), jnp.ones(3), jnp.arange(3) < 2
    for long, cosines in jnp.asarray(slopes):
      out, memory = steering.steer(
        eta, scale * long, jnp.tanh(cosines), is_rate, memory
      )
      yield np.asarray(out)

  wanted, got = map(list, map(moves, (np.float32(1), np.float32(2**exponent))))
  assert_same_bits(got, wanted)
  assert np.all(wanted[-1])


def test_a_loss_scaled_by_ten_to_the_minus_ten_is_learned_from():
  """Plain SGD's rate must grow by as much."""
  tx = metalr_flax.self_tuning(optax.inject_hyperparams(optax.sgd)(1.0))
  start = {'w': jnp.ones(4)}

  def body(carry, _):
    params, state = carry
    grads = jax.tree.map(lambda p: 1e-10 * (p - 2), params)
    updates, state = tx.update(grads, state, params)
    return (optax.apply_updates(params, updates), state), None

  (params, _), _ = jax.lax.scan(body, (start, tx.init(start)), length=1000)
  np.testing.assert_allclose(params['w'], 2, rtol=1e-3)


def test_nan_gradients_do_not_blunt_the_guard(params):
  tx = tuned('sgd')
  state = tx.init(params)
  for number in range(100):
    value = np.nan if number % 20 == 19 else 1.0
    grads = jax.tree.map(lambda p, v=value: jnp.full_like(p, v), params)
    _, state = tx.update(grads, state, params)
  before = float(state.eta['learning_rate'])
  for value in (1e4, 1e4, 1.0):
    worse = jax.tree.map(lambda p, v=value: jnp.full_like(p, v), params)
    _, state = tx.update(worse, state, params, value=1.0)
  lost = before - float(state.eta['learning_rate'])
  assert lost == pytest.approx(np.log(10), rel=0.01)


def test_a_learned_decay_rate_stays_below_one():
  tx = metalr_flax.self_tuning(
    injected('adam'), learned={'b1': 'one_minus_log'}
  )
  params = {'w': jnp.zeros(2)}
  state = tx.init(params)._replace(eta={'b1': jnp.asarray(-29.0)})
  updates, state = tx.update({'w': jnp.ones(2)}, state, params)
  assert metalr_flax.hyperparams_of(state)['b1'] < 1
  assert np.all(np.isfinite(updates['w']))


def test_groups_by_prefix_frozen_and_unused(params, data):
  nested = {'one': params, 'two': jnp.zeros(3)}
  labels = {'one': 'first', 'two': 'second'}
  parts = {
    'first': injected('adam'),
    'second': optax.set_to_zero(),
    'third': injected('adam'),
  }
  tx = metalr_flax.self_tuning(optax.partition(parts, labels), labels=labels)
  now, state = nested, tx.init(nested)

  @jax.jit
  def step(now, state, number):
    batch = batch_at(data, number)
    grads = jax.grad(lambda p: loss_fn(p['one'], batch))(now)
    updates, state = tx.update(grads, state, now)
    return optax.apply_updates(now, updates), state

  for number in range(100):
    now, state = step(now, state, number)
  assert metalr_flax.hyperparams_of(state)['learning_rate/first'] > 1e-4
  assert not np.any(now['two'])


def test_after_a_restart_what_the_user_wrote_into_the_state_stays(params):
  tx = metalr_flax.self_tuning(injected('adamw'))
  state = tx.init(params)
  assert metalr_flax.hyperparams_of(state)['learning_rate'] == pytest.approx(
    1e-5
  )
  inner = state.opt_state
  mine = {**inner.hyperparams, 'weight_decay': jnp.asarray(0.5)}
  state = state._replace(opt_state=inner._replace(hyperparams=mine))
  bad = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), params)
  for grads in (params, bad, params):
    _, state = tx.update(grads, state, params)
  assert metalr_flax.hyperparams_of(state)['weight_decay'] == 0.5
  in_jit = jax.jit(metalr_flax.hyperparams_of)(state)
  assert in_jit['weight_decay'] == 0.5


@pytest.mark.parametrize(
  ('make', 'part'),
  [
    (lambda: metalr_flax.self_tuning(optax.adam(1e-3)), 'inject_hyperparams'),
    (lambda: metalr_flax.self_tuning(injected(), learned={'rate': 'log'}), "'rate' is not among"),
    (lambda: metalr_flax.self_tuning(injected(), learned={'b1': 'sqrt'}), "must be one of"),
    (lambda: metalr_flax.self_tuning(injected(), discount=1.5), 'discount=1.5'),
    (lambda: metalr_flax.self_tuning(injected(), discount=0.5), "is meta_tx's"),
    (lambda: metalr_flax.self_tuning(injected(rate=-0.1)), 'must be above 0'),
    (lambda: metalr_flax.self_tuning(injected(rate=0.0)), 'must be above 0'),
    (lambda: metalr_flax.self_tuning(injected(rate=1)), 'one floating-point number'),
    (lambda: metalr_flax.self_tuning(injected(b1=1.0), learned={'b1': 'one_minus_log'}), 'must be below 1'),
    (lambda: metalr_flax.self_tuning(injected(), learned={}, schedule=optax.constant_schedule(1.0)), 'multiplies the learned'),
    (lambda: metalr_flax.self_tuning(injected('adamw', mask=lambda p: True)), "static_args='mask'"),
    (lambda: metalr_flax.self_tuning(injected('adamw', mask=lambda p: {'a': True, 'b': False})), "static_args='mask'"),
    (lambda: metalr_flax.self_tuning(optax.inject_hyperparams(optax.lion)(0.1), learned=['b1']), "'b1' moves no parameter"),
    (lambda: metalr_flax.self_tuning(optax.inject_hyperparams(optax.lion)(0.1), learned=['b2']), "'b2' moves no parameter"),
    (lambda: metalr_flax.self_tuning(optax.inject_hyperparams(lambda learning_rate: injected(rate=learning_rate))(0.1)), "'learning_rate' moves no parameter"),
    (lambda: metalr_flax.self_tuning(injected(), labels=GROUPS), 'make inner_tx by make_grouped'),
    (lambda: metalr_flax.self_tuning(injected(rate=jnp.complex64(0.1))), 'hyperparam_dtype=jnp.float32'),
    (lambda: metalr_flax.self_tuning(optax.adam), 'must be an optax transformation'),
    (lambda: metalr_flax.self_tuning(injected(), learned='learning_rate'), "must be names, e.g. ['learning_rate']"),
    (lambda: metalr_flax.self_tuning(injected(), learned=[1]), 'must be names'),
    (lambda: metalr_flax.self_tuning(injected(), labels={'c': 'x'}), "must be a tree of params' structure"),
    (lambda: metalr_flax.self_tuning(injected(rate=optax.constant_schedule(0.1))), 'is a schedule'),
  ],
)  # fmt: skip
def test_mistakes_are_named(make, part, params):
  with pytest.raises(ValueError, match='self_tuning: ') as caught:
    make().init(params)
  assert part in str(caught.value)
  assert '\n' not in str(caught.value)


def test_what_has_no_tuner_has_no_hyperparams(params):
  with pytest.raises(ValueError, match='0 self-tuned optimizers'):
    metalr_flax.hyperparams_of(optax.adam(1e-3).init(params))
  tx = metalr_flax.self_tuning(injected())
  with pytest.raises(ValueError, match='needs params'):
    tx.update(params, tx.init(params))


@tiers.parametrize('name', ['momentum', 'adam'], ['momentum'])
def test_a_step_copies_no_state_to_be_able_to_skip_it(name):
  """Beside what plain optax holds: Z, the displacement, the state's tangents."""
  factory, slots = (
    (optax.adam, 2)
    if name == 'adam'
    else (functools.partial(optax.sgd, momentum=0.9), 1)
  )
  params = {f'w{i}': jnp.ones((256, 256)) for i in range(4)}
  inner = optax.inject_hyperparams(factory)(learning_rate=1e-3)

  def held(tx):
    def step(carry, x):
      params, state = carry
      loss = lambda p: jnp.sum(x @ p['w0'] @ p['w1'] @ p['w2'] @ p['w3'])
      updates, state = tx.update(jax.grad(loss)(params), state, params)
      return optax.apply_updates(params, updates), state

    carry = params, tx.init(params)
    lowered = jax.jit(step, donate_argnums=0).lower(carry, jnp.ones((8, 256)))
    sizes = lowered.compile().memory_analysis()
    return (
      sizes.argument_size_in_bytes
      + sizes.temp_size_in_bytes
      + sizes.output_size_in_bytes
      - sizes.alias_size_in_bytes
    )

  extra = held(metalr_flax.self_tuning(inner)) - held(inner)
  trees = extra / sum(p.nbytes for p in params.values())
  assert trees < 2 + slots + 0.5


@pytest.mark.thorough
def test_a_state_of_16_bits_is_kept_where_a_batch_is_skipped(params, data):
  """Its tangents are float32, and two hyperparameters move it."""
  inner = optax.inject_hyperparams(
    lambda learning_rate, b1: optax.adam(
      learning_rate, b1, mu_dtype=jnp.bfloat16
    )
  )(learning_rate=1e-3, b1=0.9)
  tx = metalr_flax.self_tuning(inner, learned=['learning_rate', 'b1'])
  now, state, losses = train(tx, params, data, 20)
  assert losses[-1] < losses[0]
  nan = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), now)
  updates, after = jax.jit(tx.update)(nan, state, now)
  assert not any(jnp.any(u) for u in jax.tree.leaves(updates))
  for name in ('opt_state', 'tangents', 'eta', 'displacement'):
    for a, b in zip(
      *map(jax.tree.leaves, (getattr(state, name), getattr(after, name))),
      strict=True,
    ):
      np.testing.assert_array_equal(a, b)
