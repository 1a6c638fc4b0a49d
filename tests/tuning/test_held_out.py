"""The drop-in with gradients of held-out data."""

import collections
import functools

import chex
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import references
import tiers

import metalr_flax
from metalr_flax.tuning import factors
from metalr_flax.tuning import guard
from metalr_flax.tuning import steering
from metalr_flax.tuning.state import SelfTuningState


def sgd(learning_rate, weight_decay, momentum=0.9):
  return optax.chain(
    optax.trace(momentum),
    optax.add_decayed_weights(weight_decay),
    optax.scale_by_learning_rate(learning_rate),
  )


def rmsprop(learning_rate, weight_decay, decay=0.9):
  return optax.chain(
    optax.scale_by_rms(decay, eps=1e-3),
    optax.add_decayed_weights(weight_decay),
    optax.scale_by_learning_rate(learning_rate),
  )


OPTIMIZERS = {
  'sgd': (sgd, ['learning_rate', 'weight_decay', 'momentum']),
  'rmsprop': (rmsprop, ['learning_rate', 'weight_decay', 'decay']),
  'adamw': (
    functools.partial(optax.adamw, eps=1e-3),
    ['learning_rate', 'weight_decay', 'b1', 'b2'],
  ),
}
by_optimizer = tiers.parametrize('name', OPTIMIZERS, ['adamw'])


def injected(name='adamw', rate=1e-3, decay=0.1):
  factory, _ = OPTIMIZERS[name]
  return optax.inject_hyperparams(factory)(rate, weight_decay=decay)


def both(name='adamw', **arguments):
  """Rate and decay together."""
  return metalr_flax.self_tuning(
    injected(name, **arguments), learned=['learning_rate', 'weight_decay']
  )


@pytest.fixture(scope='module')
def data():
  """Logistic regression on more features than it has examples for."""
  rng = np.random.default_rng(0)
  w = rng.normal(size=40) * (rng.random(40) < 0.3)
  x = rng.normal(size=(1180, 40)).astype(np.float32)
  y = x @ w + rng.normal(size=1180) > 0
  parts = np.split(np.arange(1180), [120, 180])
  return [(jnp.asarray(x[p]), jnp.asarray(y[p], jnp.int32)) for p in parts]


@pytest.fixture(scope='module')
def params():
  return {'w': jnp.zeros((40, 2)), 'b': jnp.zeros(2)}


def loss_fn(params, batch):
  x, y = batch
  logits = x @ params['w'] + params['b'][None]
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
  return jnp.mean(losses)


grad = jax.grad(loss_fn)


def batch_at(data, step, size=32):
  key = jax.random.fold_in(jax.random.key(3), step)
  rows = jax.random.randint(key, (size,), 0, len(data[1]))
  return jax.tree.map(lambda a: a[rows], data)


@functools.cache
def loop(tx, steps, every, first=0):
  """A bare loop with a held-out gradient at each `every`-th update."""

  def body(data, carry, step):
    params, state = carry
    train, held_out, _ = data
    grads = grad(params, batch_at(train, step))
    updates, state = jax.lax.cond(
      step % every == first,
      lambda: tx.update(
        grads, state, params, meta_grads=grad(params, held_out)
      ),
      lambda: tx.update(grads, state, params),
    )
    return (optax.apply_updates(params, updates), state), None

  @jax.jit
  def run(params, state, data):
    one = functools.partial(body, data)
    return jax.lax.scan(one, (params, state), jnp.arange(steps))[0]

  return run


def assert_same_bits(one, other):
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    assert a.dtype == b.dtype
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.thorough
def test_of_the_training_gradient_itself_it_learns_the_same(
  monkeypatch, params, data
):
  """Bit for bit: what is held out changes which slope is read, and no more.

  But for the guard's second mark, which then counts always, and for the share of
  the run that is averaged over, which is the same here.
  """
  share = steering.AVERAGED_SHARE
  monkeypatch.setattr(steering, 'HELD_OUT_AVERAGED_SHARE', share)
  tx = metalr_flax.self_tuning(injected(), learned=['learning_rate', 'b1'])
  ends = []
  for more in (False, True):
    now, state = params, tx.init(params)
    for step in range(60):
      # Not jitted: XLA may add up the cosines of either gradient in two orders.
      grads = grad(now, batch_at(data[0], step))
      given = {'meta_grads': grads} if more else {}
      updates, state = tx.update(grads, state, now, **given)
      now = optax.apply_updates(now, updates)
    assert state.held_out == more
    watch = state.guard._replace(levels=None)
    ends.append((now, state._replace(held_out=jnp.array(True), guard=watch)))
  assert_same_bits(*ends)


def held_out_loss(params):
  return sum(
    jnp.sum(jnp.cos(leaf + i)) for i, leaf in enumerate(params.values())
  )


@tiers.parametrize('groups', [False, True], [False])
@by_optimizer
def test_the_slopes_equal_finite_differences(name, groups, x64):
  """The held-out loss after five updates by gradients that stay as they are."""
  rng = np.random.default_rng(0)
  rows = lambda: {n: jnp.asarray(rng.normal(size=4)) for n in 'vw'}
  start, grads = rows(), [rows() for _ in range(5)]
  factory, learned = OPTIMIZERS[name]
  labels = {'v': 'one', 'w': 'two'} if groups else None
  defaults = {'learning_rate': 0.1, 'weight_decay': 0.3}
  inner = (
    metalr_flax.make_grouped(factory, defaults, learned, labels)
    if groups
    else metalr_flax.make_injected(factory, defaults, learned)
  )
  make = lambda meta_tx: metalr_flax.self_tuning(
    inner, learned=learned, labels=labels, meta_tx=meta_tx, discount=1.0
  )
  still, moving = make(optax.set_to_zero()), make(optax.sgd(1.0))

  @jax.jit
  def end(eta):
    state = still.init(start)._replace(eta=eta)
    return references.after_updates(still, start, state, grads)

  eta = jax.tree.map(lambda e: e.astype(jnp.float64), still.init(start).eta)
  now, state = end(eta)
  state = state._replace(meta_opt_state=moving.init(start).meta_opt_state)
  slopes = jax.grad(held_out_loss)(now)
  _, state = moving.update(grads[0], state, now, meta_grads=slopes)
  found = references.differences(lambda eta: held_out_loss(end(eta)[0]), eta)
  moved = [-float(e) for e in jax.tree.leaves(state.eta)]
  np.testing.assert_allclose(moved, found, rtol=1e-6, atol=1e-12)
  assert np.all(np.abs(found) > 1e-9)


@tiers.parametrize('name', OPTIMIZERS, [], full=['sgd', 'rmsprop'])
def test_it_generalises_better_and_learns_a_weight_decay(name, params, data):
  alone = metalr_flax.self_tuning(injected(name, decay=1e-4))
  run = references.plain_loop(
    alone, loss_fn, lambda i: (i + 1, batch_at(data[0], i)), steps=800
  )
  (trained, *_), _ = run(params, alone.init(params), jnp.int32(0))
  for every in (1, 8):
    tx = both(name)
    learned, state = loop(tx, 800, every)(params, tx.init(params), data)
    assert (
      metalr_flax.hyperparams_of(state)['weight_decay']
      > 3 * factors.DECAY_START
    )
    unseen = [loss_fn(p, data[2]) for p in (learned, trained)]
    assert unseen[0] < 0.8 * unseen[1]


@pytest.mark.thorough
def test_without_one_eta_rests(params, data):
  tx = metalr_flax.self_tuning(injected(), learned=['weight_decay', 'eps'])
  train, held_out, _ = data
  state = tx.init(params)
  now, etas = params, []
  for step in range(30):
    given = {'meta_grads': grad(now, held_out)} if step % 10 == 5 else {}
    grads = grad(now, batch_at(train, step))
    updates, state = tx.update(grads, state, now, **given)
    now = optax.apply_updates(now, updates)
    etas.append([float(e) for e in jax.tree.leaves(state.eta)])
  moved = np.any(np.diff(etas, axis=0) != 0, axis=1)
  # Up to the first one eta follows the training gradient.
  assert np.flatnonzero(moved[5:]).tolist() == [9, 19]


@pytest.mark.parametrize('count', [1, 4, 16])
def test_a_slope_counts_for_the_updates_without_one(count):
  """As many slopes of one sign would have moved as far."""
  row = jnp.ones(1)
  memory = steering.init(1)._replace(time=jnp.int32(6000))
  for number in range(count):
    known = number == count - 1
    moves, memory = steering.steer(
      0 * row, -row, 0 * row, row > 0, memory, known=known
    )
    assert known or moves == 0
    assert memory.waited == (0 if known else number + 1)
  assert moves == pytest.approx(steering.PACE / 6000 * count, rel=1e-2)
  share = count / (steering.AVERAGED_SHARE * 6000)
  assert memory.long.weight == pytest.approx(share, rel=1e-2)


def test_after_many_updates_without_one_it_moves_by_e_at_most():
  row = jnp.ones(1)
  memory = steering.init(1)._replace(waited=jnp.int32(100))
  moves, _ = steering.steer(0 * row, row, 0 * row, row > 0, memory)
  assert moves == pytest.approx(-1, rel=1e-5)


def test_of_few_slopes_the_average_is_over_five_of_them():
  row, memory = jnp.ones(1), steering.init(1)
  for _ in range(2):
    for number in range(100):
      _, memory = steering.steer(
        0 * row, row, 0 * row, row > 0, memory, known=number == 99
      )
  least = 1 / steering.MIN_AVERAGED
  assert memory.long.weight == pytest.approx(1 - (1 - least) ** 2, rel=1e-5)


@pytest.mark.parametrize('slope', [-1.0, 1.0])
def test_a_rate_does_not_fall_while_the_weight_decay_grows(slope):
  """Of a decay the training gradient moves, it takes no notice."""
  two = jnp.array([True, False])
  for regularizes in (True, False):
    moves, _ = steering.steer(
      jnp.zeros(2),
      jnp.array([1.0, slope]),
      jnp.zeros(2),
      two,
      steering.init(2),
      regularizes=~two & regularizes,
    )
    waits = regularizes and slope < 0
    assert moves[0] == pytest.approx(0 if waits else -steering.MAX_MOVE)
    share = 1 if regularizes else steering.OTHERS_SHARE
    assert moves[1] == pytest.approx(-slope * share * steering.MAX_MOVE)


def test_a_brake_leaves_a_weight_decay_where_it_is():
  two = jnp.array([True, False])
  moves, _ = steering.steer(
    jnp.array([0.0, -5.0]),
    jnp.zeros(2),
    jnp.array([1.0, 0.0]),
    two,
    steering.init(2),
    regularizes=~two,
  )
  assert moves.tolist() == pytest.approx([-steering.BRAKE, 0.0], rel=1e-5)


@pytest.mark.parametrize('held_out', [True, False])
def test_held_out_slopes_are_averaged_over_more_of_the_run(held_out):
  row = jnp.ones(1)
  memory = steering.init(1)._replace(time=jnp.int32(1000))
  _, memory = steering.steer(
    0 * row, row, 0 * row, row > 0, memory, held_out=held_out
  )
  share = (
    steering.HELD_OUT_AVERAGED_SHARE if held_out else steering.AVERAGED_SHARE
  )
  assert memory.long.weight == pytest.approx(1 / (1000 * share), rel=1e-4)


@pytest.mark.parametrize('slope', [-1.0, 0.0, 1.0, jnp.nan])
def test_a_brake_works_where_the_last_updates_are_uphill_in_held_out_data(
  slope,
):
  """Also at updates that come without: the last ones then count."""
  row, memory = jnp.ones(1), steering.init(1)
  for number in range(40):
    moves, memory = steering.steer(
      0 * row,
      0 * row,
      row,
      row > 0,
      memory,
      known=number % 4 == 0,
      outer_cosines=slope * row if number % 4 == 0 else -slope * row,
    )
  brakes = steering.BRAKE if slope > 0 else 0
  assert moves == pytest.approx(-brakes, rel=1e-5)


def test_the_first_held_out_gradient_begins_the_quick_average_anew():
  row = jnp.ones(1)
  _, memory = steering.steer(
    0 * row, row, row, row > 0, steering.init(1), outer_cosines=row
  )
  assert memory.outer_quick.weight > 0
  assert not any(map(jnp.any, steering.begin_long(memory).outer_quick))


@pytest.mark.parametrize('given', [True, False])
def test_an_explosion_of_what_has_memorised_its_data_is_undone(given):
  """Its gradients are a thousandth of the first ones, and then a tenth."""
  params = {'w': jnp.ones(2)}
  tx = both()
  state = tx.init(params)
  more = {'meta_grads': {'w': jnp.array([0.1, -0.1])}} if given else {}
  update = jax.jit(lambda g, s, p: tx.update(g, s, p, **more))
  norms = [*[1.0] * 10, *[1e-3] * 190, *[0.1] * 10]
  for step, norm in enumerate(norms):
    sign = 1 if step % 2 else -1
    grads = {'w': norm * sign * jnp.ones(2)}
    updates, state = update(grads, state, params)
    params = optax.apply_updates(params, updates)
  undone = metalr_flax.counts_of(state)['undone']
  assert (undone > 0) == given


@tiers.parametrize('decay', [0.1, 1e-6], [1e-6])
def test_a_weight_decay_starts_where_all_do_and_stays_above(
  decay, params, data
):
  """From the first held-out gradient on; until then it is as the user set it."""
  tx = both(decay=decay)
  now, state = params, tx.init(params)
  value = lambda: metalr_flax.hyperparams_of(state)['weight_decay']
  assert value() == pytest.approx(decay)
  bad = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), params)
  good = grad(now, batch_at(data[0], 0))
  # An update that is skipped leaves all as it is.
  _, state = tx.update(bad, state, now, meta_grads=good)
  assert not state.held_out
  assert value() == pytest.approx(decay)
  # More decay would do harm: the loss falls as the parameters grow.
  grads = jax.tree.map(lambda p: -jnp.ones_like(p), params)
  values, update = [], jax.jit(tx.update)
  for _ in range(100):
    updates, state = update(grads, state, now, meta_grads=grads)
    now = optax.apply_updates(now, updates)
    values.append(value())
  assert values[0] == pytest.approx(factors.DECAY_START, rel=1e-4)
  assert values[-1] == pytest.approx(factors.LEAST_DECAY, rel=1e-4)


def test_an_update_takes_no_more_than_all_of_a_weight():
  """Where a large rate meets a large decay, the weights would grow."""
  learned = {'learning_rate': 'log', 'weight_decay': 'log'}
  groups = lambda a, b: {'a': jnp.float32(a), 'b': jnp.float32(b)}
  base = {'learning_rate': groups(0.1, 0.5), 'weight_decay': groups(1.0, 1.0)}
  eta = {name: groups(np.log(4.0), np.log(2.0)) for name in learned}
  kept = factors.constrain(
    base, factors.keep_decay(eta, base, learned), learned
  )
  np.testing.assert_allclose(kept['weight_decay']['a'], 1 / 0.4, rtol=1e-6)
  np.testing.assert_allclose(kept['weight_decay']['b'], 1.0, rtol=1e-6)
  alone = {'weight_decay': eta['weight_decay']}  # the rate is the user's
  assert factors.keep_decay(alone, base, {'weight_decay': 'log'}) == alone


@pytest.mark.thorough
@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_one_that_is_not_finite_counts_as_none(bad, params, data):
  tx = both()
  train, held_out, _ = data
  update = jax.jit(tx.update)
  now, state = loop(tx, 20, 1)(params, tx.init(params), data)
  grads = grad(now, batch_at(train, 20))
  wrong = jax.tree.map(lambda g: jnp.full_like(g, bad), grad(now, held_out))
  got = update(grads, state, now, meta_grads=wrong)
  assert_same_bits(got, update(grads, state, now))
  # As the first one it begins nothing.
  first = tx.init(params)
  _, state = update(grads, first, params, meta_grads=wrong)
  assert not state.held_out
  assert_same_bits(state.eta, first.eta)


@pytest.mark.thorough
@pytest.mark.parametrize('jitted', [False, True])
def test_none_that_was_ever_finite_is_as_none_given(jitted, params, data):
  """So that the recipe for jit may begin with NaN.

  Bit for bit; jitted, XLA may add up the norms in two programs in two orders.
  """
  tx = both()
  train, _, _ = data
  nan = jax.tree.map(lambda p: p * jnp.nan, params)
  ends = []
  for more in ({}, {'meta_grads': nan}):
    now, state = params, tx.init(params)
    update = lambda g, s, p, more=more: tx.update(g, s, p, **more)
    update = jax.jit(update) if jitted else update
    for step in range(60):
      updates, state = update(grad(now, batch_at(train, step)), state, now)
      now = optax.apply_updates(now, updates)
    ends.append((now, state))
  if jitted:
    chex.assert_trees_all_close(*ends, rtol=1e-5, atol=1e-7)
  else:
    assert_same_bits(*ends)


@pytest.mark.thorough
def test_after_a_restart_the_weight_decay_is_kept(params, data):
  tx = both()
  now, state = loop(tx, 200, 1)(params, tx.init(params), data)
  before = metalr_flax.hyperparams_of(state)
  alarmed = state._replace(guard=state.guard._replace(restart=jnp.array(True)))
  _, state = tx.update(grad(now, data[0]), alarmed, now)
  after = metalr_flax.hyperparams_of(state)
  assert after['weight_decay'] == pytest.approx(before['weight_decay'])
  fall = np.exp(-guard.BACK_OFF)
  assert after['learning_rate'] == pytest.approx(
    fall * before['learning_rate'], rel=1e-4
  )


WITHIN = {
  'chain': lambda tx: optax.chain(optax.clip_by_global_norm(1.0), tx),
  'MultiSteps': lambda tx: optax.MultiSteps(
    tx, every_k_schedule=2
  ).gradient_transformation(),
  'mask': lambda tx: optax.chain(
    optax.masked(tx, {'w': True, 'b': False}),
    optax.masked(optax.set_to_zero(), {'w': False, 'b': True}),
  ),
  'partition': lambda tx: optax.partition(
    {'ours': tx, 'none': optax.set_to_zero()}, {'w': 'ours', 'b': 'none'}
  ),
}


@tiers.parametrize('within', WITHIN, ['mask'])
def test_within_other_transformations(within, params, data):
  tx = WITHIN[within](both())
  # MultiSteps takes the one that comes with the last of its steps.
  _, state = loop(tx, 200, 2, 1)(params, tx.init(params), data)
  is_ours = lambda node: isinstance(node, SelfTuningState)
  found = jax.tree.leaves(state, is_leaf=is_ours)
  (ours,) = [node for node in found if is_ours(node)]
  assert ours.held_out
  learned = metalr_flax.hyperparams_of(state)
  assert learned['learning_rate'] > 1e-4
  assert learned['weight_decay'] != pytest.approx(0.1)


def test_a_decay_learned_by_one_minus_it_is_as_any_other(params, data):
  tx = metalr_flax.self_tuning(
    injected(decay=1e-5),
    learned={'learning_rate': 'log', 'weight_decay': 'one_minus_log'},
  )
  _, state = loop(tx, 100, 1)(params, tx.init(params), data)
  value = metalr_flax.hyperparams_of(state)['weight_decay']
  assert -0.01 < value < 0.5


def test_containers_of_another_order_are_matched_by_name(params):
  tx = both()
  grads = {'a': jnp.ones(3), 'b': -jnp.ones(3)}
  start = {'a': jnp.ones(3), 'b': jnp.ones(3)}
  _, state = tx.update(grads, tx.init(start), start, meta_grads=grads)
  turned = collections.OrderedDict(b=grads['b'], a=2 * grads['a'])
  straight = {'a': 2 * grads['a'], 'b': grads['b']}
  assert_same_bits(
    *[tx.update(grads, state, start, meta_grads=m) for m in (turned, straight)]
  )


def test_a_flax_nnx_loop_is_the_bare_loop(params, data):
  class Linear(nnx.Module):
    def __init__(self):
      self.w = nnx.Param(params['w'])
      self.b = nnx.Param(params['b'])

  model = Linear()
  optimizer = nnx.Optimizer(model, both(), wrt=nnx.Param)
  loss = lambda m, batch: loss_fn({'w': m.w[...], 'b': m.b[...]}, batch)

  @nnx.jit
  def step(model, optimizer, batch, held_out):
    grads = nnx.grad(loss)(model, batch)
    meta_grads = nnx.grad(loss)(model, held_out)
    optimizer.update(model, grads, meta_grads=meta_grads)

  for i in range(20):
    step(model, optimizer, batch_at(data[0], i), data[1])
  now, _ = loop(both(), 20, 1)(params, both().init(params), data)
  np.testing.assert_allclose(model.w[...], now['w'], rtol=1e-4, atol=1e-6)


def test_groups_learn_decays_of_their_own(params, data):
  labels = {'w': 'weights', 'b': 'biases'}
  learned = ['learning_rate', 'weight_decay']
  tx = metalr_flax.self_tuning(
    metalr_flax.make_grouped(
      'adamw', {'learning_rate': 1e-3, 'weight_decay': 0.1}, learned, labels
    ),
    learned=learned,
    labels=labels,
  )
  _, state = loop(tx, 400, 2)(params, tx.init(params), data)
  values = metalr_flax.hyperparams_of(state)
  assert values['weight_decay/weights'] > 3 * factors.DECAY_START
  assert values['weight_decay/weights'] != values['weight_decay/biases']


@pytest.mark.parametrize(
  ('meta_grads', 'part'),
  [
    ({'w': jnp.zeros((40, 2))}, r'\[\(40, 2\)\]'),
    ({'w': jnp.zeros((40, 3)), 'b': jnp.zeros(2)}, r'\(40, 3\)'),
    (jnp.zeros(()), r'\[\(\)\]'),
    ({'w': 0.0, 'b': 0.0, 'c': 0.0}, 'the same parameters'),
  ],
)
def test_one_of_other_parameters_is_refused(meta_grads, part, params):
  tx = both()
  with pytest.raises(ValueError, match=part) as caught:
    tx.update(params, tx.init(params), params, meta_grads=meta_grads)
  assert str(caught.value).startswith('self_tuning: meta_grads: ')
  assert '\n' not in str(caught.value)
