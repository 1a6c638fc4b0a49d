"""The average of the parameters: kept, evaluated, saved and loaded."""

import json

import numpy as np
import pytest
import references
import runs

import metalr_flax
from metalr_flax import errors
from metalr_flax.workdir import metrics_csv

PLAIN = {'num_outer_steps': 60, 'eval_every': 20, 'checkpoint_every': 20}
FIELDS = {**PLAIN, 'average': 0.1, 'best_metric': 'eval/average_loss'}


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  path = tmp_path_factory.mktemp('averaged')
  runs.run_here(path, **FIELDS)
  return path


def test_it_is_the_average_of_the_runs_own_params(workdir):
  columns = metrics_csv.read(workdir / 'metrics.csv')
  raw, _, _ = metalr_flax.load(workdir)
  averaged, _, _ = metalr_flax.load(workdir, average=True)
  none = workdir.with_name('none')
  runs.run_here(none, **{**FIELDS, 'num_outer_steps': 0})
  first, _, _ = metalr_flax.load(none)
  expected = references.running_average(
    first.theta[...], columns['params/theta'], 0.1
  )
  np.testing.assert_allclose(averaged.theta[...], expected, rtol=1e-5)
  assert raw.theta[...] == np.float32(columns['params/theta'][-1])
  assert averaged.theta[...] != raw.theta[...]


def test_its_evaluation_stands_beside_that_of_the_params(workdir):
  columns = metrics_csv.read(workdir / 'metrics.csv')
  found = columns['eval/average_loss'][19::20]
  assert np.isfinite(found).all()
  assert np.isnan(columns['eval/average_loss'][:19]).all()
  assert (found != columns['eval/loss'][19::20]).all()
  results = json.loads((workdir / 'results.json').read_text())
  assert results['eval/average_loss'] == found[-1]
  # And it may be what the best checkpoint is chosen by.
  assert results['best/eval/average_loss'] == min(found)
  metalr_flax.load(workdir, best=True, average=True)


@pytest.mark.thorough
def test_training_does_not_see_it(workdir, tmp_path):
  runs.run_here(tmp_path, **PLAIN)
  with_it, without = runs.rows(workdir), runs.rows(tmp_path)
  for one, other in zip(with_it, without, strict=True):
    assert other == {k: v for k, v in one.items() if k in other}
  assert not any('average' in name for name in runs.newest_state(tmp_path))
  with pytest.raises(errors.WorkdirError, match='kept no average') as caught:
    metalr_flax.load(tmp_path, average=True)
  assert len(str(caught.value).splitlines()) == 1


@pytest.mark.thorough
def test_a_resumed_run_ends_in_the_same_average(workdir, tmp_path):
  runs.run_here(tmp_path, **{**FIELDS, 'num_outer_steps': 33})
  runs.run_here(tmp_path, **FIELDS)
  runs.assert_same_run(tmp_path, workdir)
  assert any('average' in name for name in runs.newest_state(workdir))
