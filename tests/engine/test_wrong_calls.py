"""Wrong arguments: each is one line that says what to do, and none is taken.

A row is a call, and a part of what it must say. Without a word most of these
would train on with a meta-gradient of exactly 0.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import references

import metalr_flax
from metalr_flax.engine import bijections as bijections_lib
from metalr_flax.engine import curvature
from metalr_flax.engine import meta_gradient

Estimator = metalr_flax.Estimator
RATE = {'learning_rate': 0.1}
LOG = {'learning_rate': 'log'}
PARAMS = {'a': np.array([1.0, 2.0]), 'b': np.array([3.0, -1.0, 0.5])}
LABELS = {'a': 'one', 'b': 'two'}
PERMUTED = {'a': 'two', 'b': 'one'}
BY_GROUP = {'learning_rate': {'one': 0.1, 'two': 0.1}}
KEPT = Estimator(kind='forward', discount=0.9)
WITHOUT = Estimator(kind='forward', discount=0.9, curvature='none')
ONLINE = Estimator(objective='online')
META = optax.sgd(1e-3)
INJECT = optax.inject_hyperparams


def next_batch(count):
  return count + 1, 0.1 * jnp.cos(count.astype(float))


def loss_fn(params, model_state, batch):
  loss = jnp.sum((params['a'] - batch) ** 2) + jnp.sum(params['b'] ** 4) / 20
  return loss, (model_state, {})


def injected(name='sgd', learned=('learning_rate',), **arguments):
  return metalr_flax.make_injected(name, {**RATE, **arguments}, learned)


def grouped(labels=None, name='sgd'):
  return metalr_flax.make_grouped(name, RATE, RATE, labels or LABELS)


def problem(**changes):
  fields = {
    'loss_fn': loss_fn,
    'meta_loss_fn': loss_fn,
    'next_batch': next_batch,
    'next_meta_batch': next_batch,
    'tx': injected(),
    'bijections': LOG,
    'unroll_length': 3,
  }
  return metalr_flax.Problem(**{**fields, **changes})


def init(parts, values=None, **estimator):
  return metalr_flax.init_state(
    parts,
    params=jax.tree.map(jnp.asarray, PARAMS),
    model_state={},
    data_state=jnp.int32(0),
    hyperparams=RATE if values is None else values,
    meta_tx=META,
    **estimator,
  )


def step(state, parts, estimator=None):
  """Traced as a user's jitted step is, and not run."""
  return jax.eval_shape(
    functools.partial(
      metalr_flax.outer_step,
      problem=parts,
      meta_tx=META,
      estimator=estimator or Estimator(),
    ),
    state,
  )[0]


def train(values=None, estimator=None, **changes):
  parts = problem(**changes)
  given = {'estimator': estimator} if estimator else {}
  return step(init(parts, values, **given), parts, estimator)


def from_one_to_another(first, second, **changes):
  """A state made for one estimator goes to another's step."""
  parts = problem(**changes)
  values = BY_GROUP if parts.labels else RATE
  return step(init(parts, values, estimator=first), parts, second)


def after_a_step_with(between):
  parts = problem()
  state = init(parts, estimator=KEPT)
  return step(step(state, parts, between), parts, KEPT)


def with_loss(result, **changes):
  """A loss that returns `result(loss, params)`."""

  def other(params, model_state, batch):
    loss, _ = loss_fn(params, model_state, batch)
    return result(loss, model_state)

  return train(**{'loss_fn': other, **changes})


def steps(num_steps, max_steps):
  parts = problem()
  return metalr_flax.outer_steps(
    init(parts),
    num_steps,
    step_fn=functools.partial(
      metalr_flax.outer_step, problem=parts, meta_tx=META
    ),
    max_steps=max_steps,
  )


def inner_step(values, tx=None):
  tx = tx or injected()
  state = init(problem()).inner.replace(opt_state=tx.init(PARAMS))
  return metalr_flax.inner_step(
    state, values, jnp.zeros(()), grad_fn=curvature.exact(loss_fn), tx=tx
  )


def unroll(values=None, **changes):
  arguments = {'unroll_length': 2, 'remat': 'none', **changes}
  return metalr_flax.unroll(
    init(problem()).inner,
    jnp.int32(0),
    values or RATE,
    grad_fn=curvature.exact(loss_fn),
    tx=injected(),
    next_batch=next_batch,
    **arguments,
  )


def deaf(learning_rate):
  """An optimizer that ignores its learning rate."""
  del learning_rate
  return optax.sgd(0.1)


def late(learning_rate, decay):
  """`decay` moves the state, and a parameter only in the next update."""

  def update(grads, state, params=None):
    del params
    updates = jax.tree.map(lambda g, m: -learning_rate * (g + m), grads, state)
    return updates, jax.tree.map(lambda g: decay * g, grads)

  init_fn = functools.partial(jax.tree.map, jnp.zeros_like)
  return optax.GradientTransformation(init_fn, update)


def late_changes():
  tx = metalr_flax.make_injected(late, LATE, LATE)
  return {'tx': tx, 'bijections': {**LOG, 'decay': 'sigmoid'}}


def mixed_changes():
  clip = optax.clip_by_global_norm(0.1)
  return {'tx': optax.chain(grouped(), clip), 'labels': LABELS}


def two_stages(first=optax.adam, *, chain=optax.chain, value=0.1):
  return chain(INJECT(first)(value), INJECT(optax.sgd)(0.1))


def named_chain(*stages):
  return optax.named_chain(*zip(('first', 'then'), stages, strict=True))


LATE = {**RATE, 'decay': 0.5}
STALE = {'a': jnp.ones(2), 'b': jnp.ones(3)}

ESTIMATORS = {
  'kind': (lambda: Estimator(kind='forwards'), "kind='forwards': must be one of reverse, forward, none"),
  'objective': (lambda: Estimator(objective='typo'), "objective='typo': must be one of held_out, online"),
  'remat': (lambda: Estimator(remat='typo'), "remat='typo': must be one of none, step, sqrt"),
  'curvature': (lambda: Estimator(curvature='typo'), "curvature='typo': must be one of exact, none, subsample"),
  'discount 2': (lambda: Estimator(kind='forward', discount=2), 'discount=2: must be a number in [0, 1]'),
  'discount < 0': (lambda: Estimator(kind='forward', discount=-0.1), 'discount=-0.1: must be a number in [0, 1]'),
  'discount nan': (lambda: Estimator(kind='forward', discount=float('nan')), 'discount=nan: must be a number in [0, 1]'),
  'discount flag': (lambda: Estimator(kind='forward', discount=True), 'discount=True: must be a number in [0, 1]'),
  'discount text': (lambda: Estimator(kind='forward', discount='0.9'), "discount='0.9': must be a number in [0, 1]"),
  'subsample 0': (lambda: Estimator(subsample=0), 'subsample=0: must be a number in (0, 1]'),
  'subsample 2': (lambda: Estimator(subsample=2.0), 'subsample=2.0: must be a number in (0, 1]'),
  'subsample nan': (lambda: Estimator(subsample=float('nan')), 'subsample=nan: must be a number in (0, 1]'),
  'reverse, discount': (lambda: Estimator(discount=0.9), "discount=0.9: must be 0 with reverse mode, which cannot see before its window; use kind='forward'"),
  'replaced': (lambda: dataclasses.replace(KEPT, kind='reverse'), 'discount=0.9: must be 0 with reverse mode'),
}  # fmt: skip
WINDOWS = {
  'no updates': (lambda: problem(unroll_length=0), 'unroll_length=0: must be an integer >= 1'),
  'negative': (lambda: problem(unroll_length=-3), 'unroll_length=-3: must be an integer >= 1'),
  'half': (lambda: problem(unroll_length=2.5), 'unroll_length=2.5: must be an integer >= 1'),
  'flag': (lambda: problem(unroll_length=True), 'unroll_length=True: must be an integer >= 1'),
  'unroll': (lambda: unroll(unroll_length=0), 'unroll_length=0: must be an integer >= 1'),
  'unroll remat': (lambda: unroll(remat='typo'), "remat='typo': must be one of none, step, sqrt"),
  'online, K = 1': (lambda: train(estimator=ONLINE, unroll_length=1), "objective='online': is identically zero with unroll_length=1 and discount=0"),
  'online, K = 1, forward': (lambda: train(estimator=dataclasses.replace(ONLINE, kind='forward'), unroll_length=1), "objective='online': is identically zero"),
  'more steps than rows': (lambda: steps(5, 3), 'num_steps=5: must be an integer from 0 to max_steps=3'),
  'more of JAX': (lambda: steps(jnp.int32(5), 3), 'num_steps=5: must be an integer from 0 to max_steps=3'),
  'steps < 0': (lambda: steps(-1, 3), 'num_steps=-1: must be'),
  'half a step': (lambda: steps(1.5, 3), 'num_steps=1.5: must be'),
  'no rows': (lambda: steps(0, 0), 'max_steps=0: must be an integer >= 1'),
}  # fmt: skip
NAMES = {
  'no values': (lambda: init(problem(), {}), 'learning_rate: is in bijections and not in hyperparams'),
  'nothing learned': (lambda: train({}, bijections={}), "bijections={}: nothing is learned; name a hyperparameter, or use kind='none'"),
  'no mapping': (lambda: init(problem(), 0.1), "hyperparams: must be values by name, not float; e.g. {'learning_rate': 0.1}"),
  'no bijection': (lambda: init(problem(), {**RATE, 'momentum': 0.5}), 'momentum: is in hyperparams and not in bijections'),
  'bijections a list': (lambda: problem(bijections=['learning_rate']), 'bijections: must be specs by name, not list'),
  'unknown bijection': (lambda: problem(bijections={'learning_rate': 'sigmod'}), "bijections['learning_rate']='sigmod': must be one of log, one_minus_log, sigmoid or sigmoid(low, high)"),
  'range no number': (lambda: problem(bijections={'learning_rate': 'sigmoid(0, x)'}), "'sigmoid(0, x)': must be one of"),
  'no spec at all': (lambda: problem(bijections={'learning_rate': None}), "bijections['learning_rate']=None: must be one of"),
  'constrain': (lambda: bijections_lib.constrain({'rate': jnp.ones(())}, LOG), 'rate: has no bijection; add it to bijections, which has learning_rate'),
  'unconstrain': (lambda: bijections_lib.unconstrain({'rate': 0.1}, LOG), 'rate: has no bijection'),
  'outside its range': (lambda: init(problem(), {'learning_rate': -0.1}), "hyperparams['learning_rate']=-0.1: must be a number inside the open range (0, inf) of its bijection 'log'"),
  'at its end': (lambda: init(problem(bijections={'learning_rate': 'sigmoid'}), {'learning_rate': 1}), "hyperparams['learning_rate']=1: must be a number inside the open range (0, 1)"),
  'nan': (lambda: init(problem(), {'learning_rate': float('nan')}), "hyperparams['learning_rate']=nan: must be a number"),
  'None': (lambda: init(problem(), {'learning_rate': None}), "hyperparams['learning_rate']=None: must be a number"),
  'text': (lambda: init(problem(), {'learning_rate': '0.1'}), "hyperparams['learning_rate']='0.1': must be a number"),
  'a matrix': (lambda: init(problem(), {'learning_rate': np.full((3, 3), 0.1)}), "hyperparams['learning_rate']=array([[0.1, 0.1, 0.1], [0.1"),
  'an array': (lambda: init(problem(), {'learning_rate': np.full(2, 0.1)}), "hyperparams['learning_rate']=array([0.1, 0.1]): must be a number"),
}  # fmt: skip
OPTIMIZERS = {
  'not injected': (lambda: init(problem(tx=optax.sgd(0.1))), 'learning_rate: tx has not injected it (it has none); make tx with make_injected'),
  'another one is': (lambda: train({'momentum': 0.9}, bijections={'momentum': 'sigmoid'}), 'momentum: tx has not injected it (it has learning_rate)'),
  'is None in tx': (lambda: train({'momentum': 0.9}, tx=injected(learned=['momentum']), bijections={'momentum': 'sigmoid'}), 'momentum: tx has not injected it (it has learning_rate)'),
  'only for a step': (lambda: step(init(problem()), problem(tx=optax.sgd(0.1), bijections={})), 'learning_rate: is in hyperparams and not in bijections'),
  'a schedule': (lambda: init(problem(tx=injected(learning_rate=optax.constant_schedule(0.1)))), 'learning_rate: is a schedule in tx, which computes it anew at each update; give tx a number'),
  'two stages': (lambda: init(problem(tx=two_stages())), 'learning_rate: is injected in 2 stages of tx, which would share it; inject it in one of them'),
  'two with names': (lambda: init(problem(tx=two_stages(chain=named_chain))), 'learning_rate: is injected in 2 stages of tx'),
  'ignores its rate': (lambda: train(tx=metalr_flax.make_injected(deaf, RATE, RATE)), 'learning_rate: its meta-gradient is identically zero'),
  'ignores, forward': (lambda: train(tx=metalr_flax.make_injected(deaf, RATE, RATE), estimator=KEPT), 'learning_rate: its meta-gradient is identically zero'),
  'a sign': (lambda: train({'b1': 0.9}, tx=injected('lion', ['b1'], b1=0.9), bijections={'b1': 'sigmoid'}), 'b1: its meta-gradient is identically zero'),
  'comes too late': (lambda: train(LATE, unroll_length=1, **late_changes()), 'decay: its meta-gradient is identically zero'),
  'late, online': (lambda: train(LATE, ONLINE, unroll_length=2, **late_changes()), 'decay: its meta-gradient is identically zero'),
  'no such optimizer': (lambda: metalr_flax.make_injected('rmsporp', RATE, RATE), 'rmsporp: optax has no such optimizer'),
  'learned a string': (lambda: metalr_flax.make_injected('adam', RATE, 'b1'), "learned='b1': must be several names; write them as a list"),
  'misspelt learned': (lambda: metalr_flax.make_injected('adam', RATE, ['learning_rat']), 'learning_rat: the optimizer has no such argument; its arguments are learning_rate, b1'),
  'misspelt argument': (lambda: metalr_flax.make_injected('adam', {**RATE, 'beta1': 0.9}, RATE), 'beta1: the optimizer has no such argument'),
  'misspelt in groups': (lambda: metalr_flax.make_grouped('adam', RATE, ['b3'], LABELS), 'b3: the optimizer has no such argument'),
  'inner_step': (lambda: inner_step({'learning_rat': 0.1}), 'learning_rat: tx has not injected it (it has learning_rate)'),
  'inner_step, plain tx': (lambda: inner_step(RATE, optax.sgd(0.1)), 'learning_rate: tx has not injected it (it has none)'),
  'unroll, misspelt': (lambda: unroll({'learning_rat': 0.1}), 'learning_rat: tx has not injected it'),
}  # fmt: skip
GROUPS = {
  'ungrouped tx': (lambda: init(problem(labels=LABELS), BY_GROUP), "learning_rate['one']: tx has no such group (it has none); make tx with make_grouped from the same labels"),
  'no labels': (lambda: init(problem(tx=grouped()), BY_GROUP), 'learning_rate: has values by group (one, two) and the problem no labels'),
  'one for all': (lambda: init(problem(tx=grouped(), labels=LABELS)), 'learning_rate: must have a value for each group of labels (one, two) and no other; it has one for all'),
  'one has none': (lambda: init(problem(tx=grouped(), labels=LABELS), {'learning_rate': {'one': 0.1}}), 'learning_rate: must have a value for each group of labels (one, two) and no other; it has one'),
  'label of nobody': (lambda: init(problem(tx=grouped(), labels=LABELS), {'learning_rate': {'one': 0.1, 'two': 0.1, 'ghost': 0.1}}), 'and no other; it has ghost, one, two'),
  "not tx's labels": (lambda: init(problem(tx=grouped({'a': 'one', 'b': 'three'}), labels=LABELS), BY_GROUP), "learning_rate['two']: tx has no such group (it has one, three)"),
  'labels a function': (lambda: init(problem(tx=grouped(), labels=metalr_flax.label_leaves), BY_GROUP), "labels: must be a tree of strings of params' structure; call a label function on params, e.g. label_leaves(params)"),
  'make_grouped, function': (lambda: metalr_flax.make_grouped('sgd', RATE, RATE, metalr_flax.label_leaves), 'labels: must be a tree of strings'),
  'labels of numbers': (lambda: metalr_flax.make_grouped('sgd', RATE, RATE, {'a': np.ones(2), 'b': 1}), 'labels: must be a tree of strings'),
  'a parameter without': (lambda: init(problem(tx=grouped(), labels={'a': 'one'}), BY_GROUP), "labels: params/b is a parameter without one; give a tree of params' structure"),
  'no parameter': (lambda: init(problem(tx=grouped(), labels={**LABELS, 'c': 'one'}), BY_GROUP), 'labels: params/c is no parameter'),
  'mixed by a clip': (lambda: train(BY_GROUP, WITHOUT, **mixed_changes()), "labels: the update of params/a depends on the groups one, two, which curvature='none' takes for independent"),
  **{
    f'permuted, {name}, {kind}': (lambda n=name, e=estimator: train(BY_GROUP, e, tx=grouped(PERMUTED, n), labels=LABELS), "labels: params/a is in group 'one', and tx updates it as 'two'; make tx and the problem from the same labels")
    for name in ('sgd', 'adam')
    for kind, estimator in {'reverse': Estimator(), 'kept': KEPT, 'without curvature': WITHOUT}.items()
  },
}  # fmt: skip
AGAIN = 'give init_state and every outer_step the same'
TANGENTS = {
  'init_state without': (lambda: step(init(problem()), problem(), KEPT), 'tangents: params/a is absent, and float32[1, 2] for this estimator; give init_state and every outer_step the same'),
  'outer_step without': (lambda: step(init(problem(), estimator=KEPT), problem()), 'tangents: params/a is float32[1, 2], and absent for this estimator'),
  'kind none between': (lambda: after_a_step_with(Estimator(kind='none')), AGAIN),
  'discount 0 between': (lambda: after_a_step_with(Estimator(kind='forward')), AGAIN),
  'one direction for all groups': (lambda: from_one_to_another(WITHOUT, KEPT, tx=grouped(), labels=LABELS), 'tangents: params/a is float32[1, 2], and float32[2, 2] for this estimator'),
  'a direction for each group': (lambda: from_one_to_another(KEPT, WITHOUT, tx=grouped(), labels=LABELS), 'tangents: params/a is float32[2, 2], and float32[1, 2] for this estimator'),
  'no moments': (lambda: from_one_to_another(WITHOUT, KEPT, tx=injected('adam')), 'is absent, and float32[1, 2] for this estimator'),
  'moments too many': (lambda: from_one_to_another(KEPT, WITHOUT, tx=injected('adam')), 'is float32[1, 2], and absent for this estimator'),
  'handed over': (lambda: KEPT({'learning_rate': jnp.log(0.1)}, init(problem()).carry, problem()), AGAIN),
}  # fmt: skip
LOSSES = {
  'no metrics': (lambda: with_loss(lambda loss, _: loss), 'loss_fn: returned float32[]; return (loss, (model_state, metrics))'),
  'only metrics': (lambda: with_loss(lambda loss, _: (loss, {'x': loss, 'y': loss})), 'loss_fn: returned (loss, dict); return (loss, (model_state, metrics))'),
  'make_loss_fn, no metrics': (lambda: with_loss(lambda loss, s: (loss, (s,))), 'loss_fn: returned no metrics; return (loss, metrics), e.g. (loss, {})'),
  'metrics None': (lambda: with_loss(lambda loss, s: (loss, (s, None))), 'loss_fn: returned NoneType for metrics; return scalars by name'),
  'a metric of rank 1': (lambda: with_loss(lambda loss, s: (loss, (s, {'x': jnp.ones(3)}))), "loss_fn: returned the metric 'x' as float32[3]; return scalars"),
  'no scalar': (lambda: with_loss(lambda loss, s: (loss * jnp.ones(4), (s, {}))), 'loss_fn: returned the loss as float32[4]; return a float scalar, e.g. by jnp.mean'),
  'one in a list': (lambda: with_loss(lambda loss, s: (loss[None], (s, {}))), 'loss_fn: returned the loss as float32[1]'),
  'an integer': (lambda: with_loss(lambda loss, s: (loss.astype(int), (s, {}))), 'loss_fn: returned the loss as int32[]'),
  'a Python float': (lambda: with_loss(lambda loss, s: (0.5, (s, {}))), 'loss_fn: returned the loss as float, a constant without a gradient; compute it from the parameters with jax.numpy'),
  'without curvature': (lambda: with_loss(lambda loss, s: (0.5, (s, {})), estimator=WITHOUT), 'loss_fn: returned the loss as float'),
  'plain training': (lambda: with_loss(lambda loss, s: (0.5, (s, {})), estimator=Estimator(kind='none')), 'loss_fn: returned the loss as float'),
  'of other parameters': (lambda: with_loss(lambda _, s: loss_fn(STALE, s, jnp.zeros(()))), 'loss_fn: its loss does not depend on the parameters, so that its gradient is 0'),
  'meta, a Python float': (lambda: train(meta_loss_fn=lambda p, s, b: (0.5, (s, {}))), 'meta_loss_fn: returned the loss as float'),
  'meta, no metrics, forward': (lambda: train(meta_loss_fn=lambda p, s, b: jnp.sum(p['a']), estimator=KEPT), 'meta_loss_fn: returned float32[]'),
  'meta, of others': (lambda: train(meta_loss_fn=lambda p, s, b: loss_fn(STALE, s, b)), 'meta_loss_fn: its loss does not depend on the parameters'),
}  # fmt: skip


def _rows(error, *tables):
  return [
    pytest.param(*row, error, id=f'{name}')
    for table in tables
    for name, row in table.items()
  ]


@pytest.mark.parametrize(
  ('call', 'says', 'error'),
  [
    *_rows(
      ValueError, ESTIMATORS, WINDOWS, NAMES, OPTIMIZERS, GROUPS, TANGENTS
    ),
    *_rows(TypeError, LOSSES),
  ],
)
def test_a_wrong_call_is_one_line_that_says_what_to_do(call, says, error):
  with pytest.raises(error) as caught:
    call()
  text = str(caught.value)
  assert says in text
  assert len(text.splitlines()) == 1


def gradient(estimator, values, **changes):
  """dF/deta of the first window."""
  parts = problem(**changes)
  state = init(parts, values, estimator=estimator)
  return jax.jit(lambda s: estimator(s.eta, s.carry, parts)[0])(state)


def differences(values, **changes):
  """The same by central differences, in a list."""
  parts = problem(**changes)
  state = init(parts, values)
  loss = jax.jit(
    lambda eta: meta_gradient.meta_loss(Estimator(), eta, state.carry, parts)[0]
  )
  return references.differences(loss, state.eta)


SLOW = pytest.mark.thorough


@pytest.mark.parametrize(
  ('values', 'changes'),
  [
    (LATE, late_changes),  # within three updates
    pytest.param(BY_GROUP, mixed_changes, marks=SLOW),
    # One rate for tx's groups.
    pytest.param(RATE, lambda: {'tx': grouped(name='adam')}, marks=SLOW),
    pytest.param(
      {**RATE, 'max_norm': 0.5},  # two stages, each with what is its own
      lambda: {
        'tx': two_stages(optax.clip_by_global_norm, value=0.5),
        'bijections': {**LOG, 'max_norm': 'log'},
      },
      marks=SLOW,
    ),
  ],
  ids=['late', 'mixed', 'shared', 'two stages'],
)
def test_what_is_like_a_wrong_call_and_is_none_is_right(x64, values, changes):
  changes = changes()
  expected = differences(values, **changes)
  assert all(d != 0 for d in expected)
  for estimator in (Estimator(), Estimator(kind='forward'), KEPT):
    found = jax.tree.leaves(gradient(estimator, values, **changes))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize('estimator', [KEPT, WITHOUT], ids=['exact', 'none'])
def test_the_same_estimator_in_both_learns(estimator):
  """And Z can be started anew, as the message says."""
  parts = problem(tx=grouped(), labels=LABELS)
  state = init(parts, BY_GROUP, estimator=estimator)
  jitted = jax.jit(
    functools.partial(
      metalr_flax.outer_step, problem=parts, meta_tx=META, estimator=estimator
    )
  )
  for _ in range(3):
    state, metrics = jitted(state)
  assert metrics['hyperparams/learning_rate/one'] != 0.1
  assert metrics['meta/grad_norm'] > 0
  anew = state.replace(
    tangents=estimator.init_tangents(
      state.eta, state.inner, state.data_state, parts
    )
  )
  other, _ = jitted(anew)
  assert other.eta['learning_rate']['one'] != state.eta['learning_rate']['one']
  assert jitted._cache_size() == 1


def test_what_is_learned_may_be_named_by_an_iterator():
  for make in (
    metalr_flax.make_injected('adam', {**RATE, 'b1': 0.9}, iter(['b1'])),
    metalr_flax.make_grouped('adam', {**RATE, 'b1': 0.9}, iter(['b1']), LABELS),
  ):
    stages = [
      node.hyperparams
      for node in jax.tree.leaves(
        make.init(PARAMS), is_leaf=lambda n: hasattr(n, 'hyperparams')
      )
      if hasattr(node, 'hyperparams')
    ]
    assert [{*stage} for stage in stages] == [{'learning_rate', 'b1'}] * len(
      stages
    )
    assert stages


def test_a_count_that_is_traced_is_taken_as_it_is():
  state, chunk = jax.jit(lambda n: steps(n, 3))(jnp.int32(2))
  assert int(chunk.count) == 2
  assert int(state.step) == 2
  with pytest.raises(ValueError, match='max_steps=3'):
    steps(np.int64(4), 3)


def test_plain_training_needs_nothing_that_can_be_learned():
  """Fixed hyperparameters, or none, and an optimizer that ignores them."""
  none = Estimator(kind='none')
  train({}, none, bijections={}, tx=optax.sgd(0.1))
  train(estimator=none, tx=metalr_flax.make_injected(deaf, RATE, RATE))
  train(
    estimator=dataclasses.replace(none, objective='online'), unroll_length=1
  )
