"""The tasks that need no network: their batches, objectives and training."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
import tiers

from metalr_flax import errors
from metalr_flax import models
from metalr_flax import tasks
from metalr_flax.models import functional
from metalr_flax.workdir import metrics_csv

# By name: the task's arguments, the model's name and arguments, a batch.
CASES = {
  'breast_cancer': ({'split_seed': 3}, 'mlp', {'features': (30, 2)}, {'features': (16, 30), 'label': (16,)}),
  'digits': ({}, 'mlp', {'features': (64, 10)}, {'image': (16, 64), 'label': (16,)}),
  'drifting_target': ({'num_steps': 20}, 'vector', {'size': 20}, {'x': (16, 20), 'y': (16,)}),
  'ill_conditioned_regression': ({'noise': 0.1}, 'vector', {'size': 50}, {'x': (16, 50), 'y': (16,)}),
  'noisy_quadratic': ({}, 'vector', {'size': 100}, (1, 100)),
}  # fmt: skip
MADE = ('drifting_target', 'ill_conditioned_regression', 'noisy_quadratic')


@functools.cache
def _make(name, batch_size=16, **kwargs):
  given, model_name, model_kwargs, _ = CASES[name]
  task = tasks.TASKS[name](batch_size, **{**given, **kwargs})
  return task, _model(model_name, **model_kwargs)


def _model(name, **kwargs):
  return models.MODELS[name](**kwargs, rngs=nnx.Rngs(0))


def _start(task, seed=0):
  return jax.jit(task.init)(jax.random.key(seed))


def _draws(task, count):
  """`state -> (states, batches)`, stacked: each state is before its batch."""

  def draw(before, _):
    after, batch = task.next(before)
    return after, (before, batch)

  return jax.jit(lambda state: jax.lax.scan(draw, state, length=count)[1])


def _pure(task, model):
  """The params, and loss and objective as pure functions of them."""
  split = functional.split(model)
  merge = lambda params: split.eval.merge(params, split.model_state)
  loss = lambda params, batch: task.loss(merge(params), batch)[0]
  objective = lambda params, state: task.objective(merge(params), state)
  return split.params, loss, jax.jit(objective)


# --- Batches.


@pytest.mark.parametrize('name', CASES)
def test_shapes_and_dtypes(name):
  task, model = _make(name)
  state = jax.eval_shape(task.init, jax.random.key(0))
  for method in (task.next, task.next_meta):
    after, batch = jax.eval_shape(method, state)
    assert after == state  # a loop can carry it
    assert jax.tree.map(lambda a: a.shape, batch) == CASES[name][-1]
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
      label = 'label' in jax.tree_util.keystr(path)
      assert leaf.dtype == (jnp.int32 if label else jnp.float32)
  params, loss, objective = _pure(task, model)
  for value in (
    jax.eval_shape(loss, params, batch),
    jax.eval_shape(objective, params, state),
  ):
    assert (value.shape, value.dtype) == ((), jnp.float32)


@pytest.mark.parametrize('name', MADE)
def test_a_made_batch_is_a_function_of_the_key_and_its_number(name):
  task, model = _make(name)
  draws = _draws(task, 4)
  states, batches = draws(_start(task))
  assert states['step'].tolist() == [0, 1, 2, 3]
  _, other = draws(_start(task, seed=1))
  _, later = draws(jax.tree.map(lambda a: a[2], states))
  for whole, cut, another in zip(
    *map(jax.tree.leaves, (batches, later, other)), strict=True
  ):
    np.testing.assert_array_equal(whole[2:], cut[:2])
    assert (whole[0] != whole[1]).any()
    assert (whole != another).any()
  # It is not the model's weights again, which come from the same seed.
  theta = np.asarray(model.theta[...])
  for array in jax.tree.leaves([batches, states.get('target')]):
    if array.shape[-1] == theta.size:
      row = np.asarray(array).reshape(-1, theta.size)[0]
      assert abs(np.corrcoef(row, theta)[0, 1]) < 0.7


# --- The objective is the mean loss of the batches.


def test_where_only_batches_can_tell_there_is_no_objective():
  assert tasks.LinearRegression().objective(_model('linear'), None) is None


@pytest.mark.parametrize('name', ['breast_cancer', 'digits'])
def test_the_objective_of_a_data_set_is_over_its_train_part(name):
  task, model = _make(name)
  data = dict(task.train)
  labels, inputs = np.asarray(data.pop('label')), *data.values()
  layer = model.layers[0]
  logits = np.asarray(inputs, np.float64) @ np.asarray(layer.kernel[...])
  normed = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
  params, _, objective = _pure(task, model)
  np.testing.assert_allclose(
    objective(params, None),
    -normed[np.arange(len(labels)), labels].mean(),
    rtol=1e-5,
  )


@pytest.mark.thorough
@pytest.mark.parametrize('name', MADE)
def test_the_objective_is_the_mean_of_made_batches(name):
  task, model = _make(name)
  params, loss, objective = _pure(task, model)
  keys = jax.random.split(jax.random.key(9), 4000)

  @jax.jit
  def losses(state):
    next_of = lambda key: task.next({**state, 'key': key})[1]
    return jax.vmap(lambda key: loss(params, next_of(key)))(keys)

  start = _start(task)
  for step in (0, 15):
    state = {**start, 'step': jnp.int32(step)}
    if name == 'drifting_target':
      state['target'] = start['target'] + 0.1 * step
    found = np.asarray(losses(state), np.float64)
    expected = float(objective(params, state))
    if name == 'drifting_target':
      expected += task.noise**2 / 2  # the objective is the excess
    deviation = found.std() / np.sqrt(len(found))
    assert deviation < 0.02 * expected
    assert abs(found.mean() - expected) < 4 * deviation


# --- The noisy quadratic.


def test_the_noisy_quadratics_gradient_is_h_theta_and_eps():
  task, model = _make('noisy_quadratic', condition=100)
  np.testing.assert_allclose(task.h, 10 ** np.linspace(-2, 0, 100), rtol=1e-5)
  params, loss, objective = _pure(task, model)
  state, batch = jax.jit(task.next)(_start(task))
  steady = task.h * params['theta']
  for function, data, expected in (
    (loss, batch, steady + batch[0]),
    (objective, state, steady),
  ):
    gradient = jax.jit(jax.grad(function))(params, data)['theta']
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('batch_size', [1, 9])
def test_the_noise_has_the_curvatures_covariance(batch_size):
  task = tasks.NoisyQuadratic(batch_size, size=4, condition=64, noise=0.5)
  batches = _draws(task, 20000)(_start(task))[1]
  expected = 0.25 * np.array([1 / 64, 1 / 16, 1 / 4, 1]) / batch_size
  normed = np.asarray(batches[:, 0]) / np.sqrt(expected)[None]
  np.testing.assert_allclose(np.cov(normed, rowvar=False), np.eye(4), atol=0.05)
  np.testing.assert_allclose(normed.mean(axis=0), 0, atol=0.04)


# --- The regressions.


def test_ill_conditioned_data_are_rotated_and_can_be_fit():
  task = tasks.IllConditionedRegression(num_examples=20000, size=8)
  x, y = (np.asarray(task.data[name], np.float64) for name in 'xy')
  eigenvalues = np.linalg.eigvalsh(x.T @ x / len(x))
  np.testing.assert_allclose(eigenvalues, np.geomspace(1e-4, 1, 8), rtol=0.05)
  assert np.square(x).mean(axis=0).min() > 1e-3  # no feature is the flat one
  w, residual, *_ = np.linalg.lstsq(x, y)
  assert residual < 1e-6
  model = _model('vector', size=8)
  model.theta[...] = jnp.asarray(w, jnp.float32)
  assert task.objective(model, None) < 1e-9


def test_ill_conditioned_data_are_the_data_seeds():
  make = tasks.IllConditionedRegression
  one, same, noisy, other = (
    task.data for task in (make(), make(8), make(noise=0.5), make(data_seed=1))
  )
  jax.tree.map(np.testing.assert_array_equal, one, same)
  np.testing.assert_array_equal(one['x'], noisy['x'])
  np.testing.assert_allclose(np.std(noisy['y'] - one['y']), 0.5, rtol=0.1)
  assert not np.allclose(one['x'], other['x'])


def test_ill_conditioned_batches_are_examples_each_as_often():
  task = tasks.IllConditionedRegression(64, num_examples=20)
  batches = _draws(task, 200)(_start(task))[1]
  order = np.argsort(task.data['y'])
  y, x = (np.asarray(task.data[name])[order] for name in 'yx')
  places = np.searchsorted(y, batches['y'])
  np.testing.assert_array_equal(batches['y'], y[places])
  np.testing.assert_array_equal(batches['x'], x[places])
  counts = np.bincount(places.ravel(), minlength=20)
  np.testing.assert_allclose(counts / counts.mean(), 1, atol=0.2)


def test_ill_conditioned_outer_batches_are_of_the_same_w_and_held_out():
  task = tasks.IllConditionedRegression(64, num_examples=2000, size=8)
  _, batch = jax.jit(task.next_meta)(_start(task))
  assert not np.isin(batch['y'], task.data['y']).any()
  assert np.isin(batch['y'], task.meta['y']).all()
  x, y = (np.asarray(task.data[name], np.float64) for name in 'xy')
  w, *_ = np.linalg.lstsq(x, y)
  np.testing.assert_allclose(batch['x'] @ w, batch['y'], atol=1e-4)


@pytest.mark.parametrize('name', CASES)
def test_every_task_has_held_out_batches_of_its_own(name):
  assert type(_make(name)[0]).next_meta is not tasks.Task.next_meta


def test_the_target_stands_still_and_then_walks():
  task = tasks.DriftingTarget(500, size=100, num_steps=41, speed=0.1)
  states, batches = _draws(task, 61)(_start(task))
  targets = np.asarray(states['target'])  # w_0 ... w_60
  np.testing.assert_array_equal(targets[:20], targets[:1] + 0 * targets[:20])
  steps = np.diff(targets[19:], axis=0)
  np.testing.assert_allclose(steps.std(axis=1), 0.1, rtol=0.3)
  np.testing.assert_allclose(steps.mean(axis=1), 0, atol=0.05)
  others = np.corrcoef(steps) - np.eye(len(steps))
  assert np.abs(others).max() < 0.5  # a walk: each step is its own
  # The batches are of the targets before them.
  x, y = (np.asarray(batches[name]) for name in 'xy')
  np.testing.assert_allclose(task.c, 10 ** np.linspace(-0.5, 0, 100), rtol=1e-5)
  np.testing.assert_allclose(x.std(axis=(0, 1)), task.c, rtol=0.03)
  noise = y - np.einsum('tbd,td->tb', x, targets)
  np.testing.assert_allclose(noise.std(axis=1), 0.5, rtol=0.15)
  np.testing.assert_allclose(noise.mean(axis=1), 0, atol=0.1)


# --- Breast cancer.


def test_breast_cancer_is_split_and_standardised():
  task, _ = _make('breast_cancer')
  parts = [task.train, task.meta, task.test]
  assert [len(part['label']) for part in parts] == [369, 86, 114]
  for part in parts:
    np.testing.assert_allclose(np.mean(part['label']), 0.627, atol=0.01)
  features = np.asarray(task.train['features'], np.float64)
  np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-5)
  np.testing.assert_allclose(features.std(axis=0), 1, rtol=1e-5)
  rows = [{row.tobytes() for row in np.asarray(p['features'])} for p in parts]
  assert len(set.union(*rows)) == 569
  start = _start(task)
  for method, expected in ((task.next, rows[0]), (task.next_meta, rows[1])):
    drawn = np.asarray(jax.jit(method)(start)[1]['features'])
    assert {row.tobytes() for row in drawn} <= expected
  (evaluated,) = task.eval_batches()
  assert evaluated is task.test


# --- What is refused.

INTEGER, NUMBER = 'must be an integer >= ', 'must be a finite number >= '
REFUSED = {
  'breast_cancer': [
    ({'batch_size': 500}, 'task.batch_size=500: must be at most 369'),
    ({'batch_size': 0}, f'task.batch_size=0: {INTEGER}1'),
    ({'meta_batch_size': 200}, 'meta_batch_size=200: must be at most 86'),
    ({'meta_fraction': 0.9}, 'meta_fraction=0.9, test_fraction=0.2: must be'),
  ],
  'digits': [({'test_fraction': 1}, 'test_fraction=1: must be > 0')],
  'drifting_target': [
    ({'batch_size': 0}, f'batch_size=0: {INTEGER}1'),
    ({'size': 2.5}, f'size=2.5: {INTEGER}1'),
    ({'num_steps': 0}, f'num_steps=0: {INTEGER}1'),
    ({'noise': -1}, f'noise=-1: {NUMBER}0'),
    ({'speed': 'a'}, f'speed=a: {NUMBER}0'),
  ],
  'ill_conditioned_regression': [
    ({'batch_size': True}, f'batch_size=True: {INTEGER}1'),
    ({'size': 0}, f'size=0: {INTEGER}1'),
    ({'num_examples': 0}, f'num_examples=0: {INTEGER}1'),
    ({'condition': 0.5}, f'condition=0.5: {NUMBER}1'),
    ({'noise': np.inf}, f'noise=inf: {NUMBER}0'),
    ({'data_seed': -1}, f'data_seed=-1: {INTEGER}0'),
  ],
  'noisy_quadratic': [
    ({'batch_size': 0}, f'batch_size=0: {INTEGER}1'),
    ({'size': 0}, f'size=0: {INTEGER}1'),
    ({'condition': np.nan}, f'condition=nan: {NUMBER}1'),
    ({'noise': -0.1}, f'noise=-0.1: {NUMBER}0'),
  ],
}


@pytest.mark.parametrize('name', REFUSED)
def test_wrong_arguments_are_refused_in_one_line(name):
  for kwargs, message in REFUSED[name]:
    with pytest.raises(ValueError, match=message) as caught:
      tasks.TASKS[name](**kwargs)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('name', ['drifting_target', 'noisy_quadratic'])
@pytest.mark.parametrize('model', [('vector', {'size': 7}), ('linear', {})])
def test_a_model_without_such_a_theta_is_refused(name, model):
  with pytest.raises(ValueError, match=r'model\.kwargs\.size='):
    _make(name)[0].objective(_model(model[0], **model[1]), None)


def test_predictions_of_another_shape_are_not_broadcast():
  task = tasks.IllConditionedRegression(size=30)
  params, _, objective = _pure(task, _model('mlp', features=(30, 1)))
  with pytest.raises(AssertionError, match='shape'):
    jax.eval_shape(objective, params, None)


def test_vector_is_a_product_with_theta():
  model, scaled = (_model('vector', size=500, scale=s) for s in (1.0, 0.1))
  theta = np.asarray(model.theta[...])
  np.testing.assert_allclose(theta.std(), 1, rtol=0.1)
  np.testing.assert_allclose(scaled.theta[...], 0.1 * theta, rtol=1e-6)
  x = np.random.default_rng(0).standard_normal((2, 3, 500), np.float32)
  np.testing.assert_allclose(model(x), x @ theta, rtol=1e-3, atol=1e-4)
  assert {*functional.split(model).params} == {'theta'}
  with pytest.raises(ValueError, match='size=0: must be >= 1'):
    _model('vector', size=0)


# --- Through the trainer.


@tiers.parametrize('name', ['breast_cancer', *MADE], ['breast_cancer'])
def test_each_trains_through_the_trainer(tmp_path, name):
  kwargs, model_name, model_kwargs, _ = CASES[name]
  fields = {
    'task__name': name,
    'task__kwargs': kwargs,
    'model__name': model_name,
    'model__kwargs': model_kwargs,
    'inner__learning_rate': 0.01,
    'meta__curvature': 'subsample',  # it cuts batches, too
  }
  runs.run_here(tmp_path, 'digits_mlp', num_outer_steps=4, **fields)
  columns = metrics_csv.read(tmp_path / 'metrics.csv')
  for column in ('train/loss', 'meta/loss', 'hyperparams/learning_rate'):
    assert np.isfinite(columns[column]).all()
    assert len({*columns[column]}) == 4
  if name in MADE:
    state = runs.newest_state(tmp_path)
    (step,) = (v for k, v in state.items() if "['step']" in k)
    assert step == 4 * (8 + 1)  # K inner batches, one held out


def test_a_wrong_argument_is_the_configs_error(tmp_path):
  fields = {'task__name': 'noisy_quadratic', 'task__kwargs': {'noise': -1}}
  with pytest.raises(errors.ConfigError, match=r'task.kwargs: .*noise=-1: '):
    runs.run_here(tmp_path / 'w', 'digits_mlp', **fields)
  assert not (tmp_path / 'w').exists()
