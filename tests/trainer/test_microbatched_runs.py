"""Runs whose batches are computed in parts."""

import numpy as np
import pytest
import runs
import test_trainer_options

from metalr_flax import errors
from metalr_flax.config import check
from metalr_flax.workdir import metrics_csv

NET = {**test_trainer_options.NET, 'inner__microbatches': 4}


def refused(tmp_path, **fields):
  with pytest.raises(errors.ConfigError) as caught:
    runs.run_here(tmp_path / 'new', **{**NET, **fields})
  assert not (tmp_path / 'new').exists()
  assert len(str(caught.value).splitlines()) == 1
  return str(caught.value)


def test_parts_that_are_not_equal_are_refused_without_jax():
  argv = runs.command('unused', 'digits_mlp', inner__microbatches=5)
  with pytest.raises(errors.ConfigError) as caught:
    runs.flags.parse('m', argv, '', resolve=check.resolve)
  assert str(caught.value).startswith(
    'inner.microbatches=5: must divide task.batch_size=64; set '
  )


def test_parts_of_a_users_batch_that_are_not_equal_are_refused(tmp_path):
  line = refused(tmp_path, inner__microbatches=3)
  assert line.startswith('inner.microbatches=3: must divide the 16 examples')


@pytest.mark.thorough
def test_so_are_those_of_a_sample_of_a_batch(tmp_path):
  line = refused(tmp_path, meta__curvature='subsample', meta__subsample=0.125)
  assert line.startswith('inner.microbatches=4: must divide the 2 examples')


@pytest.mark.thorough
def test_a_run_with_batch_norm_resumes_and_counts_each_part(tmp_path):
  whole, cut = tmp_path / 'whole', tmp_path / 'cut'
  runs.run_here(whole, num_outer_steps=20, **NET)
  runs.run_here(cut, num_outer_steps=7, **NET)
  runs.run_here(cut, num_outer_steps=20, **NET)
  runs.assert_same_run(cut, whole)
  state = runs.newest_state(whole)
  (calls,) = (v for name, v in state.items() if 'calls' in name)
  assert calls == 20 * 6 * 4


@pytest.mark.thorough
def test_a_run_in_parts_is_the_run(tmp_path):
  fields = {'num_outer_steps': 10, 'meta__learned': {'learning_rate': 'log'}}
  found = []
  for count in (1, 8):
    workdir = tmp_path / str(count)
    runs.run_here(workdir, 'digits_mlp', inner__microbatches=count, **fields)
    found.append(metrics_csv.read(workdir / 'metrics.csv'))
  one, other = found
  for name in ('train/loss', 'meta/loss', 'hyperparams/learning_rate'):
    np.testing.assert_allclose(other[name], one[name], rtol=1e-4)
