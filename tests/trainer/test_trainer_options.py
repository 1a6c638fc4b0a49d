"""Every way to learn, through the trainer itself."""

import json

import numpy as np
import pytest
import runs
import tiers

import metalr_flax
from metalr_flax import errors
from metalr_flax.workdir import metrics_csv

NET = {
  'model__name': 'users_code:Net',
  'model__kwargs': {'width': 8},
  'task__name': 'users_code:Plane',
  'task__batch_size': 16,
  'task__kwargs': {'slopes': (2.0, -1.0)},
  'inner__learning_rate': 0.003,
  'eval_every': 10,
  'checkpoint_every': 10,
}


@tiers.parametrize('estimator', ['forward', 'reverse'], ['reverse'])
@tiers.parametrize('remat', ['none', 'sqrt'], ['sqrt'])
def test_each_exact_estimator_follows_the_notebook(tmp_path, estimator, remat):
  fields = {'meta__estimator': estimator, 'meta__remat': remat}
  runs.run_here(tmp_path, num_outer_steps=200, **fields)
  path = runs.ROOT / 'tests/data/seed_trajectory.csv'
  expected = np.genfromtxt(path, delimiter=',', names=True)[:200]
  found = metrics_csv.read(tmp_path / 'metrics.csv')
  np.testing.assert_allclose(
    found['hyperparams/learning_rate'],
    expected['learning_rate'],
    rtol=0,
    atol=1e-5,
  )
  np.testing.assert_allclose(
    found['params/theta'], expected['theta'], rtol=0, atol=1e-4
  )


ONLINE = {
  'meta__estimator': 'forward',
  'meta__objective': 'online',
  'meta__discount': 0.9,
  'meta__unroll_length': 1,
  'meta__learned': {'learning_rate': 'log'},
}


@tiers.parametrize(
  'curvature', ['exact', 'subsample', 'none'], [], full=['subsample']
)
def test_online_learning_with_kept_tangents_resumes(tmp_path, curvature):
  whole, cut = tmp_path / 'whole', tmp_path / 'cut'
  fields = {**NET, **ONLINE, 'meta__curvature': curvature}
  runs.run_here(whole, num_outer_steps=40, **fields)
  runs.run_here(cut, num_outer_steps=17, **fields)
  runs.run_here(cut, num_outer_steps=40, **fields)
  runs.assert_same_run(cut, whole)
  assert any('tangents' in name for name in runs.newest_state(whole))
  rates = metrics_csv.read(whole / 'metrics.csv')['hyperparams/learning_rate']
  assert rates[-1] > rates[0]  # it starts too low


@pytest.mark.thorough
def test_groups_and_several_hyperparameters(tmp_path):
  fields = {
    **NET,
    'inner__optimizer': 'adamw',
    'inner__kwargs': {'weight_decay': 0.01, 'b1': 0.9},
    'meta__groups': 'users_code:head_and_body',
    'meta__learned': {
      'learning_rate': 'log',
      'b1': 'one_minus_log',
      'weight_decay': 'sigmoid(0, 0.5)',
    },
  }
  runs.run_here(tmp_path, num_outer_steps=20, **fields)
  columns = metrics_csv.read(tmp_path / 'metrics.csv')
  for name in ('learning_rate', 'b1', 'weight_decay'):
    body = columns[f'hyperparams/{name}/body']
    head = columns[f'hyperparams/{name}/head']
    assert body[-1] != head[-1]
    assert len({*body}) == 20
  schedule = json.loads((tmp_path / 'schedule.json').read_text())
  assert schedule['b1/head']['value'][0] == 0.9
  rate = metalr_flax.load_schedule(
    tmp_path / 'schedule.json', 'learning_rate/body'
  )
  assert float(rate(10**6)) == columns['hyperparams/learning_rate/body'][-1]
  _, _, schedules = metalr_flax.load(tmp_path)
  assert {*schedules} == {'head', 'body'}


@pytest.mark.thorough
def test_own_inner_optimizer_and_any_outer_one(tmp_path):
  fields = {
    **NET,
    'inner__optimizer': 'users_code:clipped_adam',
    'inner__kwargs': {'max_norm': 0.5},
    'meta__learned': {'learning_rate': 'log', 'max_norm': 'log'},
    'meta__optimizer': 'sgd',
  }
  runs.run_here(tmp_path, num_outer_steps=20, **fields)
  columns = metrics_csv.read(tmp_path / 'metrics.csv')
  assert len({*columns['hyperparams/max_norm']}) > 10
  assert columns['train/loss'][-1] < columns['train/loss'][0]


def test_none_is_plain_training_with_blank_meta_columns(tmp_path):
  fields = {**NET, 'meta__estimator': 'none'}
  runs.run_here(tmp_path, num_outer_steps=20, **fields)
  columns = metrics_csv.read(tmp_path / 'metrics.csv')
  assert np.isnan(columns['meta/loss']).all()
  assert np.isnan(columns['meta/grad_norm']).all()
  assert len({*columns['hyperparams/learning_rate']}) == 1
  assert columns['train/loss'][-1] < columns['train/loss'][0]


@pytest.mark.parametrize(
  ('fields', 'says'),
  [
    ({'inner__optimizer': 'lion', 'meta__learned': {'b1': 'one_minus_log'}}, 'identically zero'),
    ({'inner__optimizer': 'users_code:deaf', 'meta__learned': {'learning_rate': 'log'}}, r'meta\.learned\.learning_rate: its meta-gradient is identically zero'),
    ({'meta__learned': {'momentum': 'log'}}, r'inner\.kwargs\.momentum'),
    ({'inner__optimizer': 'adam', 'meta__learned': {'beta1': 'log'}}, 'known are learning_rate, b1'),
    ({'meta__groups': 'users_code:not_labels'}, 'a string for every parameter'),
    ({'inner__kwargs': {'decay': 'x'}}, r'inner\.kwargs'),
    ({'meta__estimator': 'reverse', 'meta__discount': 0.5}, r'meta\.discount'),
    (
      {'meta__estimator': 'forward', 'meta__objective': 'online', 'meta__unroll_length': 1},
      'identically zero',
    ),
  ],
)  # fmt: skip
def test_what_cannot_work_is_refused(tmp_path, fields, says):
  workdir = tmp_path / 'new'
  with pytest.raises(errors.ConfigError, match=says):
    runs.run_here(workdir, **{**NET, **fields})
  assert not workdir.exists()


@pytest.mark.parametrize('estimator', ['forward', 'reverse', 'none'])
@pytest.mark.parametrize(
  ('kind', 'says'),
  [
    ('alone', 'returned no metrics; return (loss, metrics), e.g. (loss, {})'),
    ('vector', 'returned the loss as float32[3]; return a float scalar'),
    ('float', 'returned the loss as float, a constant without a gradient'),
    ('constant', 'its loss does not depend on the parameters'),
    ('metrics', "returned the metric 'each' as float32[3]; return scalars"),
  ],
)
def test_a_loss_that_is_none_names_the_task(tmp_path, kind, says, estimator):
  workdir = tmp_path / 'new'
  own = {
    'task__name': 'users_code:BadLoss',
    'task__kwargs': {'kind': kind},
    'meta__estimator': estimator,
  }
  with pytest.raises(errors.ConfigError) as caught:
    runs.run_here(workdir, **{**NET, **own})
  line = str(caught.value)
  assert line.startswith(f'task.name=users_code:BadLoss: {says}')
  assert len(line.splitlines()) == 1
  assert not workdir.exists()


@pytest.mark.thorough
@pytest.mark.parametrize(
  ('config', 'fields'),
  [
    ('digits_mlp', {'model__kwargs': {'features': (65, 10)}}),
    ('digits_cnn', {'task__kwargs': {'flatten': True}}),
    ('text_transformer', {'model__kwargs': {'vocab_size': 100, 'd_model': 16, 'num_heads': 2, 'num_layers': 1}}),
  ],
)  # fmt: skip
def test_a_model_that_does_not_fit_the_task_is_one_line(
  tmp_path, config, fields
):
  workdir = tmp_path / 'new'
  with pytest.raises(
    errors.ConfigError, match=r'does not fit|model\.kwargs'
  ) as caught:
    runs.run_here(workdir, config, **fields)
  assert len(str(caught.value).splitlines()) == 1
  assert not workdir.exists()
