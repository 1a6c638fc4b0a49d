"""The best checkpoint beside the newest, and runs that end for want of one."""

import json
import math
import shutil
import signal

import jax
import numpy as np
import pytest
import runs
import tiers

import metalr_flax
from metalr_flax import errors
from metalr_flax import interrupts
from metalr_flax.trainer import best

FIELDS = {
  'num_outer_steps': 70,
  'eval_every': 10,
  'checkpoint_every': 25,
  'log_every': 10,
  'best_metric': 'eval/loss',
  'inner__learning_rate': 0.5,  # jumps about its answer soon
}


def results(workdir):
  return json.loads((workdir / 'results.json').read_text())


def kept(workdir, name='best'):
  return sorted(int(path.name) for path in (workdir / name).iterdir())


def evaluations(workdir):
  """The loss of each evaluation, by outer step."""
  return {
    int(row['outer_step']): float(row['eval/loss'])
    for row in runs.rows(workdir)
    if row['eval/loss']
  }


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('best') / 'run'
  runs.run_here(workdir, **FIELDS)
  return workdir


def test_the_best_evaluation_is_kept_and_the_newest_three_as_ever(whole):
  losses = evaluations(whole)
  step = min(losses, key=losses.get)
  assert step < 70, 'the best is to be another than the last'
  assert kept(whole) == [step]
  assert kept(whole, 'state') == [25, 50, 70]
  assert results(whole)['best/outer_step'] == step
  assert results(whole)['best/eval/loss'] == losses[step]
  assert len(results(whole)) == len({*results(whole)})


def test_it_can_be_loaded(whole):
  step = results(whole)['best/outer_step']
  model, _, schedule = metalr_flax.load(whole, best=True)
  assert float(model.theta[...]) == float(
    runs.rows(whole)[step - 1]['params/theta']
  )
  newest, _, longer = metalr_flax.load(whole)
  assert float(newest.theta[...]) != float(model.theta[...])
  end = 6 * step
  assert [schedule(i) for i in range(end)] == [longer(i) for i in range(end)]


def test_it_changes_no_bit_and_no_row(whole, tmp_path):
  runs.run_here(tmp_path, **{**FIELDS, 'best_metric': ''})
  runs.assert_same_run(tmp_path, whole)
  assert not (tmp_path / 'best').exists()
  assert not [name for name in results(tmp_path) if 'best' in name]


class After:
  """Asks the run to stop when it has been asked so many times."""

  name = 'SIGTERM'

  def __init__(self, count):
    self.count = count

  def __bool__(self):
    self.count -= 1
    return self.count < 0


@tiers.parametrize('count', [4, 8], [8], full=[4])
def test_cut_into_parts_it_is_the_same(whole, tmp_path, count):
  while True:
    try:
      runs.run_here(tmp_path, stop=After(count), **FIELDS)
      break
    except errors.Interrupted:
      pass
  runs.assert_same_run(tmp_path, whole)
  assert results(tmp_path) == results(whole)
  assert kept(tmp_path) == kept(whole)


@pytest.mark.thorough
def test_a_best_one_newer_than_the_checkpoint_comes_again(whole, tmp_path):
  """As a run leaves it that was killed before it could save its state."""
  workdir = tmp_path / 'run'
  shutil.copytree(whole, workdir)
  shutil.rmtree(workdir / 'state/70')
  (step,) = kept(workdir)
  assert step > 50
  (workdir / f'best/{step}/manifest.json').write_text('torn')
  with pytest.raises(errors.NoCheckpointError, match='none intact'):
    metalr_flax.load(workdir, best=True)
  runs.run_here(workdir, **FIELDS)
  assert results(workdir) == results(whole)
  model, _, _ = metalr_flax.load(workdir, best=True)
  other, _, _ = metalr_flax.load(whole, best=True)
  assert float(model.theta[...]) == float(other.theta[...])


def test_rows_that_are_gone_are_missed(whole, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(whole, workdir)
  lines = (workdir / 'metrics.csv').read_text().splitlines(keepends=True)
  (workdir / 'metrics.csv').write_text(''.join(lines[:10]))
  with pytest.raises(errors.WorkdirError, match='rows of the outer steps 1 to'):
    metalr_flax.load(workdir, best=True)
  (workdir / 'metrics.csv').unlink()
  with pytest.raises(errors.WorkdirError, match='put the file back'):
    metalr_flax.load(workdir, best=True)


def test_a_run_without_one_says_how_to_have_it(reference):
  with pytest.raises(errors.WorkdirError, match=r'run with --config\.best_m'):
    metalr_flax.load(reference, best=True)


@pytest.mark.parametrize(
  ('field', 'order'),
  [
    ('eval/loss', -1),
    ('eval/accuracy', 1),
    ('min:eval/accuracy', -1),
    ('max:eval/loss', 1),
  ],
)
def test_nan_and_infinity_are_never_the_best(field, order):
  config = {'best_metric': field, 'patience': 2}
  now = best.standing(config, {})
  for step, value in enumerate([math.nan, math.inf, 1.0, math.nan, -math.inf]):
    now = now.after(step, value)
    assert now.step == (None if step < 2 else 2)
  assert now.is_stalled
  assert 'was best at outer step 2 (1) and no better in the 2' in now.why()
  again = best.standing(config, json.loads(json.dumps(now.record())))
  assert again == now
  assert now.after(9, 1.0 + order).step == 9
  assert now.after(9, 1.0).step == 2
  assert now.after(9, 1.0 - order).step == 2


PATIENT = {**FIELDS, 'num_outer_steps': 200, 'patience': 5}


@pytest.fixture(scope='module')
def early(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('early') / 'run'
  runs.run_here(workdir, **PATIENT)
  return workdir


def test_it_ends_when_evaluations_are_no_better(early, capsys):
  losses = [*evaluations(early).values()]
  at = int(np.argmin(losses))
  assert len(losses) == at + 1 + 5
  end = 10 * len(losses)
  assert end < 200
  assert results(early)['outer_step'] == end
  assert results(early)['best/outer_step'] == 10 * (at + 1)
  assert kept(early, 'state')[-1] == end
  assert (early / 'plots/learning_rate.png').exists()


@pytest.mark.thorough
def test_the_same_command_says_so_and_more_patience_goes_on(
  early, tmp_path, capsys
):
  workdir = tmp_path / 'run'
  shutil.copytree(early, workdir)
  before = results(workdir)
  capsys.readouterr()
  runs.run_here(workdir, **PATIENT)
  runs.run_here(workdir, **{**PATIENT, 'num_outer_steps': 400})
  out = capsys.readouterr().out
  assert (
    out.count(f'already finished at outer step {before["outer_step"]}') == 2
  )
  assert out.count('a larger --config.patience continues it') == 2
  assert results(workdir) == before
  runs.run_here(workdir, **{**PATIENT, 'num_outer_steps': 200, 'patience': 0})
  assert results(workdir)['outer_step'] == 200


@pytest.mark.thorough
def test_it_ends_at_the_same_step_however_it_is_cut(early, tmp_path, capsys):
  while True:
    try:
      runs.run_here(tmp_path, stop=After(9), **PATIENT)
      break
    except errors.Interrupted:
      pass
  assert 'ending early: eval/loss was best at outer step' in (
    capsys.readouterr().out
  )
  runs.assert_same_run(tmp_path, early)
  assert results(tmp_path) == results(early)


@pytest.mark.thorough
def test_a_signal_with_the_last_evaluation_does_not_interrupt_it(
  early, tmp_path
):
  """What is to end anyway ends: no status 75 for a run that is done."""

  class Late(interrupts.StopRequest):
    def __bool__(self):
      rows = tmp_path / 'metrics.csv'
      return rows.exists() and len(runs.rows(tmp_path)) == end

  end = results(early)['outer_step']
  late = Late()
  late.name = signal.SIGTERM.name
  runs.run_here(tmp_path, stop=late, **PATIENT)
  assert results(tmp_path) == results(early)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'best_metric': 'loss'}, "best_metric=loss: must be '' or an"),
    ({'best_metric': 'best:eval/loss'}, 'best_metric=best:eval/loss: must be'),
    ({'best_metric': 'eval/los'}, 'did you mean eval/loss'),
    ({'best_metric': 'max:eval/accuracy'}, 'must be a value of the evaluation'),
    ({'patience': 2}, 'patience=2: must be 0 without a best_metric'),
    ({'patience': -1}, 'patience=-1: must be an integer from 0'),
  ],
)
def test_mistakes_are_named_and_nothing_is_written(fields, message, tmp_path):
  workdir = tmp_path / 'run'
  with pytest.raises(errors.ConfigError) as error:
    runs.run_here(workdir, **fields)
  assert message in str(error.value)
  assert not workdir.exists()


def test_a_task_without_evaluation_has_no_best(tmp_path):
  config = {'best_metric': 'eval/loss', 'patience': 0, 'task': {'name': 'own'}}
  with pytest.raises(errors.ConfigError, match='own has no evaluation'):
    best.check_metric(config, {})
  best.check_metric(config, {'loss': jax.ShapeDtypeStruct((), 'float32')})


def test_another_metric_is_another_run(whole, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(whole, workdir)
  with pytest.raises(errors.WorkdirError, match='best_metric=eval/loss'):
    runs.run_here(workdir, **{**FIELDS, 'best_metric': ''})
