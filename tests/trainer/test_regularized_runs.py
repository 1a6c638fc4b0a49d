"""Hyperparameters of the loss and the drop-in's rule, through the trainer."""

import json
import sys

import jax
import numpy as np
import pytest
import runs
import tiers

import metalr_flax
from metalr_flax import errors
from metalr_flax.trainer import build_named
from metalr_flax.workdir import metrics_csv

sys.path.append(str(runs.ROOT / 'benchmarks'))
import known_answers

DIGITS = {
  'config': 'digits_mlp',
  'model__kwargs': {'features': (64, 16, 10), 'gaussian_dropout': True},
  'task__loss_kwargs': {
    'label_smoothing': 0.1,
    'dropout_rate': 0.2,
    'class_weights': {'3': 2.0},
  },
  'inner__optimizer': 'adamw',
  'inner__kwargs': {'weight_decay': 0.01},
  'meta__learned': {
    'learning_rate': 'sigmoid',
    'weight_decay': 'log',
    'label_smoothing': 'sigmoid',
    'dropout_rate': 'sigmoid',
    'class_weights': 'log',
  },
  'meta__optimizer': 'steering',
  'meta__discount': 0.9,
  'eval_every': 10,
  'checkpoint_every': 10,
}
NAMES = (
  'class_weights/3', 'dropout_rate', 'label_smoothing', 'learning_rate',
  'weight_decay',
)  # fmt: skip


@pytest.mark.thorough
def test_all_of_them_are_learned_and_resumed(tmp_path):
  whole, cut = tmp_path / 'whole', tmp_path / 'cut'
  runs.run_here(whole, num_outer_steps=30, **DIGITS)
  runs.run_here(cut, num_outer_steps=13, **DIGITS)
  runs.run_here(cut, num_outer_steps=30, **DIGITS)
  runs.assert_same_run(cut, whole)
  columns = metrics_csv.read(whole / 'metrics.csv')
  for name in NAMES:
    assert len({*columns[f'hyperparams/{name}']}) == 30
  schedule = json.loads((whole / 'schedule.json').read_text())
  assert {*schedule} == {*NAMES}
  # Where the drop-in starts.
  assert schedule['learning_rate']['value'][0] == pytest.approx(1e-5)
  assert schedule['weight_decay']['value'][0] == pytest.approx(1e-3)
  assert schedule['class_weights/3']['value'][0] == pytest.approx(2.0)
  model, _, _ = metalr_flax.load(whole)
  assert model(np.zeros((1, 64), np.float32)).shape == (1, 10)


@pytest.mark.thorough
def test_a_run_does_not_depend_on_the_rate_it_is_given(tmp_path):
  columns = []
  for rate in (1e-3, 0.5):
    fields = {**DIGITS, 'inner__learning_rate': rate}
    runs.run_here(tmp_path / str(rate), num_outer_steps=3, **fields)
    columns.append(metrics_csv.read(tmp_path / str(rate) / 'metrics.csv'))
  for name in ('train/loss', 'hyperparams/learning_rate'):
    np.testing.assert_array_equal(*(c[name] for c in columns))


@pytest.mark.thorough
def test_arguments_may_have_any_names(tmp_path):
  """The loss's own, and what the engine calls its own arguments."""
  fields = {
    **DIGITS,
    'task__name': 'users_code:Penalized',
    'task__kwargs': {},
    'model__name': 'users_code:Net',
    'model__kwargs': {'width': 8},
    'task__loss_kwargs': {'name': 1.0},
    'inner__optimizer': 'sgd',
    'inner__kwargs': {},
    'meta__learned': {'learning_rate': 'log', 'name': 'log'},
  }
  runs.run_here(tmp_path, num_outer_steps=3, **fields)
  columns = metrics_csv.read(tmp_path / 'metrics.csv')
  assert len({*columns['hyperparams/name']}) == 3


@pytest.mark.thorough
def test_evaluation_and_outer_loss_are_without_them(tmp_path):
  """With a smoothing of 0.9 only the training loss is near ln 10."""
  fields = {
    **DIGITS,
    'task__loss_kwargs': {'label_smoothing': 0.9},
    'meta__estimator': 'none',
    'meta__learned': {},
    'meta__optimizer': 'adam',
    'meta__discount': 0.0,
    'inner__learning_rate': 1e-2,
  }
  runs.run_here(tmp_path, num_outer_steps=60, **fields)
  columns = metrics_csv.read(tmp_path / 'metrics.csv')
  smoothed = 0.9 * np.log(10) + 0.1 * np.log(10 / 1.0)
  assert columns['train/loss'][-1] == pytest.approx(smoothed, rel=0.1)
  assert columns['eval/loss'][-1] < columns['train/loss'][-1] - 0.3


@pytest.mark.thorough
def test_the_outer_loss_is_without_what_is_fixed(tmp_path):
  fields = {
    **DIGITS,
    'task__loss_kwargs': {'label_smoothing': 0.9},
    'meta__learned': {'learning_rate': 'log'},
    'meta__optimizer': 'adam',
    'inner__learning_rate': 1e-2,
  }
  runs.run_here(tmp_path, num_outer_steps=60, **fields)
  columns = metrics_csv.read(tmp_path / 'metrics.csv')
  assert columns['meta/loss'][-1] < columns['train/loss'][-1] - 0.3


@pytest.mark.thorough
def test_a_weight_decay_follows_held_out_batches_at_the_whole_pace(tmp_path):
  kinds = {'learning_rate': 'log', 'weight_decay': 'log'}
  fields = {**DIGITS, 'task__loss_kwargs': {}, 'meta__learned': kinds}
  runs.run_here(tmp_path, num_outer_steps=40, **fields)
  columns = metrics_csv.read(tmp_path / 'metrics.csv')
  logs = np.log(columns['hyperparams/weight_decay'])
  assert np.max(np.abs(np.diff(logs))) > 0.04  # others move by 0.03 at most


@pytest.mark.thorough
def test_without_an_estimator_the_rate_is_the_users(tmp_path):
  fields = {**DIGITS, 'meta__estimator': 'none', 'meta__discount': 0.0}
  runs.run_here(tmp_path, num_outer_steps=2, **fields)
  columns = metrics_csv.read(tmp_path / 'metrics.csv')
  rates = columns['hyperparams/learning_rate']
  assert rates == pytest.approx([1e-4, 1e-4])  # the config's own


@pytest.mark.thorough
def test_a_run_from_before_the_field_goes_on(tmp_path):
  runs.run_here(tmp_path, 'digits_mlp', num_outer_steps=5)
  path = tmp_path / 'config.json'
  config = json.loads(path.read_text())
  del config['task']['loss_kwargs']
  path.write_text(json.dumps(config))
  runs.run_here(tmp_path, 'digits_mlp', num_outer_steps=8)
  assert len(metrics_csv.read(tmp_path / 'metrics.csv')['outer_step']) == 8


@pytest.mark.parametrize(
  ('fields', 'says'),
  [
    ({'task__loss_kwargs': {'label_smothing': 0.1}}, r"task\.loss_kwargs: loss: got an unexpected keyword argument 'label_smothing'; its arguments are .*label_smoothing"),
    ({'meta__learned': {'label_smoothing': 'sigmoid'}, 'task__loss_kwargs': {}}, r"has no such argument; .* if it is the loss's, give its first value in task\.loss_kwargs"),
    ({'model__kwargs': {'features': (64, 16, 10)}}, r'dropout_rate: needs gaussian_dropout=True'),
    ({'task__loss_kwargs': {'class_weights': {'10': 1.0}}, 'meta__learned': {'class_weights': 'log'}}, r"class_weights: '10' is no class; they are 0 to 9"),
    ({'task__loss_kwargs': {'params': 1.0}}, r'task\.loss_kwargs\.params: is taken; rename'),
    ({'task__loss_kwargs': {'class_weights': [1.0, 2.0]}, 'meta__learned': {'learning_rate': 'log'}}, r'task\.loss_kwargs\.class_weights: must be weights by class'),
    ({'task__loss_kwargs': {'label_smoothing': '0.1'}, 'meta__learned': {'learning_rate': 'log'}}, r'task\.loss_kwargs\.label_smoothing: must be a number >= 0 and < 1'),
    ({'task__loss_kwargs': {'dropout_rate': 1.0}, 'meta__learned': {'learning_rate': 'log'}}, r'task\.loss_kwargs\.dropout_rate: must be a number >= 0 and < 1'),
    ({'task__name': 'users_code:Penalized', 'task__kwargs': {}, 'model__name': 'users_code:Net', 'model__kwargs': {'width': 8}, 'task__loss_kwargs': {'weight_decay': 0.1}, 'inner__kwargs': {}, 'meta__learned': {'weight_decay': 'log'}}, r'task\.loss_kwargs\.weight_decay: is learned, and the optimizer has'),
    ({'task__name': 'linear_regression', 'task__kwargs': {}, 'task__loss_kwargs': {'l2': 1.0}}, r'task\.loss_kwargs: loss: '),
  ],
)  # fmt: skip
def test_what_the_loss_does_not_take_is_refused(tmp_path, fields, says):
  workdir = tmp_path / 'new'
  with pytest.raises(errors.ConfigError, match=says) as caught:
    runs.run_here(workdir, **{**DIGITS, **fields})
  assert len(str(caught.value).splitlines()) == 1
  assert not workdir.exists()


CASES = {case.name: case for case in known_answers.CASES}


@tiers.parametrize('name', CASES, ['weight of the rare class'])
def test_what_is_found_is_the_known_answer(name):
  """The quick form of benchmarks/known_answers.py, with one seed."""
  case = CASES[name]
  found = known_answers.find(
    case, start=case.starts[1], seed=0, steps=case.quick_steps
  )
  known = case.known(0)
  assert abs(found[-1] / known - 1) < 0.2
  assert abs(found[0] / known - 1) > 0.5  # it started far away


@pytest.mark.thorough
def test_the_known_rate_of_dropout_is_that_of_dropout():
  """Ridge regression has the loss that the noise has in the mean."""
  task = known_answers.tasks_lib.FewExamples(3)
  rate, w = 0.3, jax.random.normal(jax.random.key(0), (task.size,))
  model = build_named.build_model(
    {
      'name': 'known_answers_tasks:NoisyInputs',
      'kwargs': {'size': task.size},
    },
    0,
  )
  model.weights[...] = w
  noisy = np.mean([task.loss(model, task.train, rate)[0] for _ in range(1000)])
  x = np.asarray(task.train['x'])
  penalty = 0.5 * rate / (1 - rate) * np.mean(x**2, axis=0) @ np.square(w)
  clean = task.loss(model, task.train)[0]
  np.testing.assert_allclose(noisy, clean + penalty, rtol=0.03)
