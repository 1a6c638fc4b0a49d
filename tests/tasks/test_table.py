"""A user's table: its columns, its parts, and what comes back from a model."""

import pathlib
import subprocess
import sys

import jax
import numpy as np
import pandas
import pytest
import runs
import tiers

import metalr_flax
from metalr_flax import errors
from metalr_flax import tasks


def make(count=200, seed=0):
  """Numbers, categories and gaps; `price` and `kind` follow from them."""
  rng = np.random.default_rng(seed)
  size = rng.normal(70, 20, count).round(1)
  rooms = rng.integers(1, 5, count)
  town = rng.choice(['Bern', 'Genf', 'Zug'], count)
  price = 3.0 * size + 40.0 * rooms + 100.0 * (town == 'Zug')
  return pandas.DataFrame(
    {
      'size': np.where(rng.random(count) < 0.1, np.nan, size),
      'rooms': rooms,
      'town': np.where(rng.random(count) < 0.1, None, town),
      'garden': rng.random(count) < 0.5,
      'price': price + rng.normal(0, 1, count),  # no two are the same
      'kind': np.where(price > 350, 'house', 'flat'),
    }
  )


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  path = tmp_path_factory.mktemp('table') / 'homes.csv'
  make().to_csv(path, index=False)
  return str(path)


@pytest.fixture(scope='module')
def regression(path):
  return tasks.Table(path=path, target='price', drop=('kind',))


@pytest.fixture(scope='module')
def classification(path):
  return tasks.Table(path=path, target='kind', drop=('price',))


def features(part):
  return np.asarray(part['features'])


# --- Columns.


def test_columns_become_numbers_by_their_type(regression):
  assert regression.feature_names == [
    'size', 'rooms', 'size is missing',
    'town=', 'town=Bern', 'town=Genf', 'town=Zug',
    'garden=False', 'garden=True',
  ]  # fmt: skip
  frame = make()
  found = regression.encode(frame)
  assert found.dtype == np.float32
  missing = frame['size'].isna().to_numpy()
  np.testing.assert_array_equal(found[:, 2], missing)
  known = frame.loc[~missing, 'size']
  slope, _ = np.polyfit(known, found[~missing, 0], 1)
  np.testing.assert_allclose(
    found[~missing, 0], slope * (known - known.iloc[0]) + found[~missing, 0][0],
    atol=1e-5,
  )  # fmt: skip
  towns = frame['town'].fillna('')
  for place, town in enumerate(['', 'Bern', 'Genf', 'Zug'], 3):
    np.testing.assert_array_equal(found[:, place], towns == town)


def test_a_parquet_file_is_the_same_table(path, regression, tmp_path):
  make().to_parquet(tmp_path / 'homes.parquet')
  task = tasks.Table(
    path=str(tmp_path / 'homes.parquet'), target='price', drop=('kind',)
  )
  assert task.feature_names == regression.feature_names
  jax.tree.map(np.testing.assert_array_equal, task.train, regression.train)


@pytest.mark.parametrize('separator', [';', '\t'])
def test_other_separators_and_a_byte_order_mark(
  separator, regression, tmp_path
):
  path = tmp_path / 'homes.csv'
  make().to_csv(path, index=False, sep=separator, encoding='utf-8-sig')
  task = tasks.Table(path=str(path), target='price', drop=('kind',))
  jax.tree.map(np.testing.assert_array_equal, task.train, regression.train)


def test_the_config_may_say_what_a_column_is(path):
  task = tasks.Table(
    path=path, target='price', categorical=('rooms',), drop=('kind', 'town')
  )
  assert task.feature_names == [
    'size', 'size is missing', 'rooms=1', 'rooms=2', 'rooms=3', 'rooms=4',
    'garden=False', 'garden=True',
  ]  # fmt: skip
  # A column of integers is read as floats where a value is missing.
  for rooms in (3, 3.0, '3'):
    row = {'size': 50, 'rooms': rooms, 'garden': True}
    assert task.encode([row])[0, 4] == 1


def test_an_unknown_category_is_all_zeros_and_a_new_gap_the_median(regression):
  row = {'size': 80.0, 'rooms': 2, 'town': 'Chur', 'garden': True}
  found = regression.encode([row, {**row, 'rooms': None, 'town': None}])
  assert found[0, 3:7].tolist() == [0, 0, 0, 0]
  assert found[1, 3:7].tolist() == [1, 0, 0, 0]
  train = make().iloc[_rows(regression, make())['train']]
  median = {**row, 'rooms': train['rooms'].median()}
  np.testing.assert_array_equal(
    found[1, :2], regression.encode([median])[0, :2]
  )


def _rows(task, frame):
  """The rows of a table in each part of a task, by the label's bits."""
  labels = task._aim.encode(frame['price'].to_numpy())
  return {
    name: np.flatnonzero(np.isin(labels, getattr(task, name)['label']))
    for name in ('train', 'meta', 'test')
  }


def test_everything_is_standardised_by_the_train_part_alone(tmp_path):
  """Whatever stands in the other parts changes nothing of the train part."""
  frame = make()
  frame['part'] = np.array(['train', 'meta', 'test', 'train'] * 50)
  tables = []
  for factor in (1, 1000):
    others = frame['part'] != 'train'
    frame.loc[others, ['size', 'price']] *= factor
    if factor > 1:
      frame.loc[others, 'town'] = 'Chur'
    frame.to_csv(tmp_path / 'homes.csv', index=False)
    tables.append(
      tasks.Table(
        path=str(tmp_path / 'homes.csv'), target='price', drop=('kind',),
        split_column='part',
      )
    )  # fmt: skip
  one, other = tables
  jax.tree.map(np.testing.assert_array_equal, one.train, other.train)
  assert one.feature_names == other.feature_names
  assert features(other.test)[:, 3:7].sum() == 0
  train = features(one.train)
  np.testing.assert_allclose(train[:, :2].mean(axis=0), 0, atol=1e-6)
  np.testing.assert_allclose(train[:, :2].std(axis=0), 1, atol=1e-6)
  np.testing.assert_allclose(np.mean(one.train['label']), 0, atol=1e-6)
  np.testing.assert_allclose(np.std(one.train['label']), 1, atol=1e-6)
  np.testing.assert_allclose(one.encode(frame[frame['part'] == 'train']), train)


# --- What is predicted.


@pytest.mark.parametrize(
  ('values', 'kind', 'names'),
  [
    (['b', 'a'] * 30, 'classification', ['a', 'b']),
    ([True, False] * 30, 'classification', [False, True]),
    ([7, 3] * 30, 'classification', [3, 7]),
    ([*range(20)] * 8, 'classification', [*range(20)]),
    ([*range(21)] * 8, 'regression', []),
    ([0.5, 1.5] * 30, 'regression', []),
    ([0.0, 1.0] * 30, 'regression', []),
  ],
)
def test_the_targets_type_says_what_is_learned(values, kind, names, tmp_path):
  frame = pandas.DataFrame({'x': np.arange(len(values)), 'y': values})
  frame.to_csv(tmp_path / 't.csv', index=False)
  read = lambda kind='': tasks.Table(
    5, path=str(tmp_path / 't.csv'), target='y', kind=kind
  )
  task = read()
  assert (task.kind, task.class_names) == (kind, names)
  if kind == 'classification':
    decoded = task.decode(np.eye(len(names)))
    assert decoded.tolist() == names
    if not isinstance(names[0], str):
      assert read('regression').class_names == []
  elif values[0] != 0:
    assert read('classification').class_names == sorted({*values})


def test_numbers_come_back_in_their_own_unit(regression):
  frame = make()
  rows = _rows(regression, frame)
  assert sorted(np.concatenate([*rows.values()])) == [*range(len(frame))]
  prices = frame['price'].to_numpy()[rows['train']]
  for shape in ((-1,), (-1, 1)):
    labels = np.sort(regression.train['label']).reshape(shape)
    np.testing.assert_allclose(
      regression.decode(labels), np.sort(prices), rtol=1e-6
    )
  batch = regression.train
  loss, metrics = regression.loss(lambda x: 0 * x[:, 0], batch)
  np.testing.assert_allclose(loss, 1, rtol=1e-5)
  np.testing.assert_allclose(metrics['rmse'], prices.std(), rtol=1e-5)
  wrong = lambda x: batch['label'][:, None] + 0.1
  _, metrics = regression.loss(wrong, batch)
  np.testing.assert_allclose(metrics['rmse'], 0.1 * prices.std(), rtol=1e-4)


# --- Parts.


def test_the_random_split_keeps_the_shares_of_the_classes(classification):
  parts = classification.train, classification.meta, classification.test
  assert [len(part['label']) for part in parts] == [130, 30, 40]
  shares = [np.mean(part['label']) for part in parts]
  np.testing.assert_allclose(
    shares, np.mean(make()['kind'] == 'house'), atol=0.02
  )


def test_another_seed_is_another_split(path, classification):
  make = lambda seed: tasks.Table(
    path=path, target='kind', drop=('price',), split_seed=seed
  )
  np.testing.assert_array_equal(
    make(0).test['features'], classification.test['features']
  )
  assert (make(1).test['label'] != classification.test['label']).any()


def test_a_second_file_is_the_part_it_is_named_for(path, tmp_path):
  make(30, seed=1).to_csv(tmp_path / 'test.csv', index=False)
  make(20, seed=2).to_parquet(tmp_path / 'meta.parquet')
  given = {'path': path, 'target': 'kind', 'drop': ('price',)}
  test = tasks.Table(**given, test_path=str(tmp_path / 'test.csv'))
  both = tasks.Table(
    **given,
    test_path=str(tmp_path / 'test.csv'),
    meta_path=str(tmp_path / 'meta.parquet'),
  )
  sizes = [
    [len(p['label']) for p in (t.train, t.meta, t.test)] for t in (test, both)
  ]
  assert sizes == [[170, 30, 30], [200, 20, 30]]
  frame = make(30, seed=1)
  np.testing.assert_array_equal(both.test['features'], both.encode(frame))
  names = np.array(both.class_names)[np.asarray(both.test['label'])]
  assert names.tolist() == frame['kind'].tolist()
  assert both.meta_batch_size == 20  # all there are


def test_a_column_without_meta_rows_leaves_them_to_chance(tmp_path):
  frame = make()
  frame['part'] = ['train', 'train', 'train', 'test'] * 50
  frame.to_csv(tmp_path / 'homes.csv', index=False)
  task = tasks.Table(
    path=str(tmp_path / 'homes.csv'), target='kind', split_column='part',
    meta_fraction=0.2,
  )  # fmt: skip
  sizes = [len(p['label']) for p in (task.train, task.meta, task.test)]
  assert sizes == [120, 30, 50]
  assert 'part' not in ' '.join(task.feature_names)


# --- Batches.


def test_batches_are_pure_and_go_on_after_a_resume(classification):
  step = jax.jit(classification.next)
  state, batches = classification.init(jax.random.key(0)), []
  states = []
  for _ in range(8):  # beyond an epoch
    states.append(jax.device_get(state))
    state, batch = step(state)
    batches.append(batch)
  again = states[4]
  for expected in batches[4:]:
    again, batch = step(again)
    jax.tree.map(np.testing.assert_array_equal, batch, expected)
  rows = {row.tobytes() for row in features(classification.train)}
  assert {row.tobytes() for b in batches for row in features(b)} <= rows
  _, batch = jax.jit(classification.next_meta)(state)
  rows = {row.tobytes() for row in features(classification.meta)}
  assert {row.tobytes() for row in features(batch)} <= rows


# --- By config alone.

MODULE = """
from flax import nnx
import jax


class Net(nnx.Module):
  def __init__(self, inputs, outputs, *, rngs):
    self.first = nnx.Linear(inputs, 32, rngs=rngs)
    self.last = nnx.Linear(32, outputs, rngs=rngs)

  def __call__(self, x):
    return self.last(jax.nn.relu(self.first(x)))
"""


@pytest.fixture
def own_net(tmp_path, monkeypatch):
  """A module of the user's own, in the folder that is the current one."""
  (tmp_path / 'my_net_of_tables.py').write_text(MODULE)
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(tmp_path)
  yield 'my_net_of_tables:Net'
  sys.modules.pop('my_net_of_tables', None)


@tiers.parametrize('target', ['price', 'kind'], [])
def test_train_resume_load_and_predict(target, own_net, tmp_path):
  other = {'price': 'kind', 'kind': 'price'}[target]
  make(400).to_csv('homes.csv', index=False)
  fields = {
    'task__name': 'table',
    'task__path': 'homes.csv',
    'task__kwargs': {'target': target, 'drop': (other,)},
    'task__batch_size': 32,
    'model__name': own_net,
    'model__kwargs': {'inputs': 9, 'outputs': 2 if target == 'kind' else 1},
    'inner__optimizer': 'adam',
    'inner__learning_rate': 0.01,
    'checkpoint_every': 10,
  }
  workdir = tmp_path / 'run'
  for steps in (20, 60):  # the second goes on where the first ended
    runs.run_here(workdir, 'digits_mlp', num_outer_steps=steps, **fields)
  assert len(runs.rows(workdir)) == 60
  model, _, _ = metalr_flax.load(workdir)
  task = metalr_flax.load_task(workdir)
  new = make(100, seed=9)
  found = task.decode(model(task.encode(new.drop(columns=['price', 'kind']))))
  if target == 'kind':
    assert (found == new['kind']).mean() > 0.85
  else:
    error = np.sqrt(np.mean((found - new['price']) ** 2))
    assert error < 0.5 * new['price'].std()
  # Other data are refused, here where a cell has changed.
  text = pathlib.Path('homes.csv').read_text()
  pathlib.Path('homes.csv').write_text(text.replace('Zug', 'Bern', 1))
  told = r'was trained on other data than are in task.path=homes.csv now'
  with pytest.raises(errors.WorkdirError, match=told):
    metalr_flax.load_task(workdir)
  with pytest.raises(errors.WorkdirError, match=told):
    runs.run_here(workdir, 'digits_mlp', num_outer_steps=61, **fields)
  assert len(runs.rows(workdir)) == 60


@pytest.mark.thorough
def test_killed_it_goes_on_to_the_same_bits(own_net, tmp_path):
  make().to_csv('homes.csv', index=False)
  fields = {
    'task__name': 'table',
    'task__path': 'homes.csv',
    'task__kwargs': {'target': 'price', 'drop': ('kind',)},
    'task__batch_size': 16,
    'model__name': own_net,
    'model__kwargs': {'inputs': 9, 'outputs': 1},
    'log_every': 2,
    'eval_every': 2,
    'checkpoint_every': 2,
    'num_outer_steps': 40,
  }
  runs.run_here(tmp_path / 'whole', 'digits_mlp', **fields)
  options = {'cwd': tmp_path, 'stdout': subprocess.PIPE}
  argv = runs.command(tmp_path / 'killed', 'digits_mlp', **fields)
  with runs.started(['-m', 'metalr_flax.main', *argv], **options) as process:
    for line in process.stdout:
      if line.startswith('step 10/'):
        process.kill()
        break
  runs.run_here(tmp_path / 'killed', 'digits_mlp', **fields)
  runs.assert_same_run(tmp_path / 'killed', tmp_path / 'whole')


# --- A model of another size.


SIZES = {
  'outputs': ('mlp', {'features': (9, 3)}, r'model.kwargs: .* of shape \(\d+, 3\) for \d+ examples of 2 classes; give it 2 outputs'),
  'outputs of their own': ('own', {'inputs': 9, 'outputs': 3}, r'model.kwargs: .* of shape \(\d+, 3\) .* give it 2 outputs'),
  'inputs': ('mlp', {'features': (8, 2)}, r'model.name=mlp: does not fit task.name=table .*its inputs are float32 \[B, 9\]'),
}  # fmt: skip


@tiers.parametrize('case', SIZES, ['outputs of their own'])
def test_a_wrong_size_is_told_with_the_right_one(case, path, own_net, tmp_path):
  name, sizes, message = SIZES[case]
  with pytest.raises(errors.ConfigError, match=message) as caught:
    runs.run_here(
      tmp_path / 'run',
      'digits_mlp',
      task__name='table',
      task__path=path,
      task__kwargs={'target': 'kind', 'drop': ('price',)},
      task__batch_size=16,
      model__name=own_net if name == 'own' else name,
      model__kwargs=sizes,
    )
  assert '\n' not in str(caught.value)
  assert not (tmp_path / 'run').exists()
