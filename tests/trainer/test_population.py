"""A population: each member is its run alone, in one folder."""

import csv
import json
import re

import numpy as np
import pytest
import runs
from tensorboard.backend.event_processing import event_accumulator
import tiers

import metalr_flax
from metalr_flax import audit
from metalr_flax import errors
from metalr_flax.config import check
from metalr_flax.config import population as members_lib
from metalr_flax.trainer import build
from metalr_flax.trainer import launch
from metalr_flax.workdir import folder
from metalr_flax.workdir import metrics_csv

PLAIN = {'num_outer_steps': 60, 'eval_every': 20, 'checkpoint_every': 20}
OWN = {
  'seed': [0, 7, 1],
  'inner': {'learning_rate': [0.1, 0.05, 0.2]},
  'meta': {'learning_rate': [0.03, 0.1, 0.01]},
}
FIELDS = {**PLAIN, 'log_every': 10, 'population': OWN}
# With plain SGD the second and third explode, at steps of their own.
WILD = {
  **PLAIN,
  'inner__optimizer': 'sgd',
  'population': {'inner': {'learning_rate': [0.001, 0.9, 0.25]}},
}


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  path = tmp_path_factory.mktemp('population')
  runs.run_here(path, **FIELDS)
  return path


@pytest.fixture(scope='module')
def wild(tmp_path_factory):
  path = tmp_path_factory.mktemp('wild')
  runs.run_here(path, **WILD)
  return path


def alone(path, number, own=OWN, **fields):
  """Trains member `number` by itself."""
  lists = {
    name: values
    for name, values in (
      ('seed', own.get('seed')),
      ('inner__learning_rate', own.get('inner', {}).get('learning_rate')),
      ('meta__learning_rate', own.get('meta', {}).get('learning_rate')),
    )
    if values
  }
  mine = {name: values[number] for name, values in lists.items()}
  runs.run_here(path, **{**fields, **mine})
  return path


def results(path):
  return json.loads((path / folder.RESULTS).read_text())


def columns_of(path, number):
  columns = metrics_csv.read(path / folder.METRICS)
  return metrics_csv.of_member(columns, number)


def assert_same_columns(one, other):
  assert one.keys() == other.keys()
  for key, values in one.items():
    if not key.startswith('perf/'):
      np.testing.assert_allclose(values, other[key], rtol=1e-5, err_msg=key)


@tiers.parametrize('number', range(3), [1])
def test_a_member_is_its_run_alone(number, workdir, tmp_path):
  alone(tmp_path, number, **PLAIN)
  expected = metrics_csv.read(tmp_path / folder.METRICS)
  assert_same_columns(columns_of(workdir, number), expected)
  model, config, schedule = metalr_flax.load(workdir, member=number)
  own_model, own_config, own_schedule = metalr_flax.load(tmp_path)
  assert config.inner == own_config.inner
  assert (config.seed, config.population.to_dict()) == (own_config.seed, {})
  np.testing.assert_allclose(model.theta[...], own_model.theta[...], rtol=1e-5)
  path = workdir / folder.SCHEDULE
  saved = metalr_flax.load_schedule(path, member=number)
  for count in (0, 7, 200, 10**6):
    np.testing.assert_allclose(schedule(count), own_schedule(count), rtol=1e-5)
    assert saved(count) == schedule(count)
  found = results(workdir)['members'][number]
  assert (found['member'], found['seed']) == (number, OWN['seed'][number])
  for key, value in results(tmp_path).items():
    np.testing.assert_allclose(found[key], value, rtol=1e-5, err_msg=key)


def test_rows_stand_in_order_of_step_and_member(workdir):
  with open(workdir / folder.METRICS, newline='') as file:
    head, *rows = csv.reader(file)
  assert head[:3] == ['outer_step', 'inner_step', 'member']
  places = [(int(row[0]), int(row[2])) for row in rows]
  assert places == [(step, i) for step in range(1, 61) for i in range(3)]
  evaluated = head.index('eval/loss')
  filled = {int(row[0]) for row in rows if row[evaluated]}
  assert filled == {20, 40, 60}
  assert all(row[evaluated] for row in rows if int(row[0]) in filled)


def test_results_have_the_members_and_how_they_differ(workdir):
  found = results(workdir)
  assert (found['outer_step'], found['inner_step']) == (60, 360)
  assert found['diverged'] == 0
  losses = [row['eval/loss'] for row in found['members']]
  spread = found['spread']['eval/loss']
  assert found['eval/loss'] == spread['mean'] == pytest.approx(np.mean(losses))
  assert spread['std'] == pytest.approx(np.std(losses))
  assert [spread[k] for k in ('least', 'median', 'most')] == sorted(losses)


def test_tensorboard_shows_means_and_how_they_differ(workdir):
  accumulator = event_accumulator.EventAccumulator(str(workdir), {'tensors': 0})
  accumulator.Reload()
  tags = accumulator.Tags()['tensors']

  def points(tag):
    return {
      event.step: event.tensor_proto.float_val[0]
      for event in accumulator.Tensors(tag)
    }

  rates = np.stack(
    [columns_of(workdir, i)['hyperparams/learning_rate'] for i in range(3)]
  )[:, 9::10]
  tag = 'hyperparams/learning_rate'
  assert [*points(tag)] == [60 * i for i in range(1, 7)]
  for name, expected in (
    (tag, rates.mean(axis=0)),
    (f'{tag}/low', np.quantile(rates, 0.1, axis=0)),
    (f'{tag}/high', np.quantile(rates, 0.9, axis=0)),
  ):
    np.testing.assert_allclose([*points(name).values()], expected, rtol=1e-6)
  assert {'eval/loss/low', 'final/eval/loss', 'plots/learning_rate'} <= {*tags}
  assert 'perf/outer_steps_per_sec/low' not in tags


def test_the_page_has_a_row_for_each_member(workdir):
  text = (workdir / folder.REPORT).read_text()
  (table,) = re.findall(r'<table[^>]*id="members".*?</table>', text, re.S)
  assert table.count('<tr>') == 1 + 3
  assert text.count('<svg') == 1


@pytest.mark.thorough
def test_a_resumed_population_is_the_one_that_was_not(workdir, tmp_path):
  runs.run_here(tmp_path, **{**FIELDS, 'num_outer_steps': 33})
  runs.run_here(tmp_path, **FIELDS)
  runs.assert_same_run(tmp_path, workdir)
  with pytest.raises(errors.WorkdirError, match=r'population\.seed='):
    runs.run_here(tmp_path, **{**FIELDS, 'population': {'seed': 3}})


@pytest.mark.thorough
def test_a_member_that_diverges_spoils_no_other(wild, tmp_path, capsys):
  found = results(wild)
  assert [row['diverged'] for row in found['members']] == [False, True, True]
  steps = [row['outer_step'] for row in found['members']]
  assert steps[0] == 60
  assert 0 < steps[1] < steps[2] < 60
  path = alone(tmp_path / 'good', 0, WILD['population'], **_plain(WILD))
  expected = metrics_csv.read(path / folder.METRICS)
  assert_same_columns(columns_of(wild, 0), expected)
  assert found['diverged'] == 2
  assert found['eval/loss'] == found['members'][0]['eval/loss']
  # Frozen where the run alone ends, with its last good state.
  with pytest.raises(errors.DivergedError) as caught:
    alone(tmp_path / 'bad', 2, WILD['population'], **_plain(WILD))
  assert f'outer step {steps[2] + 1}: not finite in' in str(caught.value)
  assert len(columns_of(wild, 2)['outer_step']) == steps[2]
  model, _, _ = metalr_flax.load(wild, member=2)
  own, _, _ = metalr_flax.load(tmp_path / 'bad')
  np.testing.assert_allclose(model.theta[...], own.theta[...], rtol=1e-5)


@pytest.mark.thorough
def test_a_frozen_member_stays_frozen_after_a_resume(wild, tmp_path, capsys):
  runs.run_here(tmp_path, **{**WILD, 'num_outer_steps': 41})
  said = capsys.readouterr().out
  assert said.count('the others go on') == 2
  assert 'member 1 (inner.learning_rate=0.9): not finite in' in said
  runs.run_here(tmp_path, **WILD)
  said = capsys.readouterr().out
  assert 'member 2 (inner.learning_rate=0.25): frozen at outer step' in said
  runs.assert_same_run(tmp_path, wild)


@pytest.mark.thorough
def test_a_population_that_diverges_as_a_whole_ends(tmp_path):
  fields = {**WILD, 'population': {'inner': {'learning_rate': [0.9, 0.25]}}}
  with pytest.raises(errors.DivergedError) as caught:
    runs.run_here(tmp_path, **fields)
  line = str(caught.value)
  assert 'member 1 (inner.learning_rate=0.25): not finite in' in line
  assert 'no other member is left; the last good checkpoint is' in line
  assert len(line.splitlines()) == 1


def _plain(fields):
  return {k: v for k, v in fields.items() if k != 'population'}


def test_what_is_loaded_must_be_said(workdir, tmp_path):
  for number in (None, -1, 3):
    with pytest.raises(errors.WorkdirError, match='member=0 to member=2'):
      metalr_flax.load(workdir, member=number)
  path = workdir / folder.SCHEDULE
  for number in (None, -1, 3):
    with pytest.raises(errors.ConfigError, match='member=0 to member=2'):
      metalr_flax.load_schedule(path, member=number)
  with pytest.raises(errors.ConfigError, match='has no b1; it has learning'):
    metalr_flax.load_schedule(path, 'b1', member=0)
  runs.run_here(tmp_path, num_outer_steps=1)
  with pytest.raises(errors.WorkdirError, match='not of a population'):
    metalr_flax.load(tmp_path, member=0)
  with pytest.raises(errors.ConfigError, match='not of a population'):
    metalr_flax.load_schedule(tmp_path / folder.SCHEDULE, member=0)


def test_a_stream_is_refused(tmp_path):
  with pytest.raises(errors.ConfigError, match='a stream; train its members'):
    runs.run_here(
      tmp_path / 'run',
      task__name='streams_code:Planes',
      task__kwargs={},
      population={'seed': 2},
    )
  assert not (tmp_path / 'run').exists()


@pytest.mark.thorough
def test_a_dry_run_and_an_audit_of_a_population(tmp_path, capsys):
  runs.run_here(tmp_path / 'run', **FIELDS, dry_run=True)
  assert 'dry run: all is well' in capsys.readouterr().out
  argv = runs.command(tmp_path, **FIELDS)
  assert not audit.main([a for a in argv if '--workdir' not in a])


DIGITS = {
  'num_outer_steps': 20,
  'eval_every': 10,
  'checkpoint_every': 20,
  'average': 0.5,
  'meta__discount': 0.5,
  # Members share the data: where a config takes it from the seed, it is that of
  # the first.
  'task__kwargs': {'split_seed': 5},
}


@tiers.parametrize(
  'config', ['digits_mlp', 'digits_regularized'], [], full=['digits_mlp']
)
def test_seeds_of_digits_are_their_runs_alone(config, tmp_path):
  """Epochs, an average, kept tangents, groups of hyperparameters."""
  fields = {**DIGITS, 'seed': 5, 'population': {'seed': 2}}
  runs.run_here(tmp_path / 'both', config, **fields)
  for number, seed in enumerate((5, 6)):
    path = tmp_path / str(seed)
    runs.run_here(path, config, **{**DIGITS, 'seed': seed})
    expected = metrics_csv.read(path / folder.METRICS)
    found = columns_of(tmp_path / 'both', number)
    for key, values in expected.items():
      if not key.startswith('perf/'):
        np.testing.assert_allclose(found[key], values, rtol=1e-4, err_msg=key)


@pytest.mark.thorough
def test_members_share_the_data_and_shuffle_once_an_epoch():
  """No array of the program has the examples once for each member."""
  config = check.resolve(
    {
      'task': {'name': 'digits', 'batch_size': 32},
      'model': {'name': 'mlp', 'kwargs': {'features': [64, 16, 10]}},
      'population': {'seed': 3},
      'eval_every': 10,
    }
  )
  experiment = build.build(config)
  lowered = launch.lower_chunk(experiment, experiment.init_state(), 10)
  text = lowered.as_text()
  assert members_lib.count(config) == 3
  shapes = {
    tuple(map(int, shape[:-1].split('x')))
    for shape in re.findall(r'tensor<((?:\d+x)+)', text)
  }
  data = [shape for shape in shapes if len(shape) == 2 and shape[1] == 64]
  assert max(shape[0] for shape in data) > 100  # the digits themselves
  assert not any(shape[0] == 3 and 64 in shape[2:] and shape[1] > 100
                 for shape in shapes)  # fmt: skip


@pytest.mark.full
def test_killed_and_run_again_it_ends_in_the_same_bits(workdir, tmp_path):
  """SIGTERM, then SIGKILL, each in the middle."""
  fields = {**FIELDS, 'num_outer_steps': 3000, 'eval_every': 100}
  runs.run_here(tmp_path / 'whole', **fields)
  cut = tmp_path / 'cut'
  with runs.training(cut, pipesize=4096, **fields) as process:
    runs.stop_at(process, 'step  100/')
  assert process.returncode == 75
  with runs.training(cut, pipesize=4096, **fields) as process:
    for line in process.stdout:
      if line.startswith('step  600/'):
        process.kill()
        break
  runs.run(cut, **fields)
  runs.assert_same_run(cut, tmp_path / 'whole')
