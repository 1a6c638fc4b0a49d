"""The digits run: the split, the sampler, and what it learns."""

import json

import jax
import numpy as np
import pytest
import runs

from metalr_flax import tasks
from metalr_flax.tasks import sampling
from metalr_flax.workdir import metrics_csv


@pytest.fixture(scope='module')
def digits():
  return tasks.Digits(batch_size=64, split_seed=3)


def _rows(data):
  images = np.asarray(data['image'])
  return {image.tobytes() for image in images}


def test_the_split_is_stratified_and_complete(digits):
  parts = digits.train, digits.meta, digits.test
  sizes = [len(part['label']) for part in parts]
  assert sum(sizes) == 1797
  np.testing.assert_allclose(
    np.divide(sizes, 1797), [0.65, 0.15, 0.2], atol=0.01
  )
  for part in parts:
    shares = np.bincount(part['label'], minlength=10) / len(part['label'])
    np.testing.assert_allclose(shares, 0.1, atol=0.015)


def test_no_image_is_in_two_parts(digits):
  train, meta, test = map(_rows, (digits.train, digits.meta, digits.test))
  assert not train & meta
  assert not train & test
  assert not meta & test


def test_each_batch_comes_from_its_own_part(digits):
  data_state = digits.init(jax.random.key(0))
  train, meta = _rows(digits.train), _rows(digits.meta)
  for _ in range(5):
    data_state, batch = digits.next(data_state)
    assert _rows(batch) <= train
    data_state, batch = digits.next_meta(data_state)
    assert _rows(batch) <= meta
  assert _rows(next(iter(digits.eval_batches()))) == _rows(digits.test)


def test_another_seed_is_another_split(digits):
  assert _rows(tasks.Digits(split_seed=4).test) != _rows(digits.test)
  assert _rows(tasks.Digits(split_seed=3).test) == _rows(digits.test)


def test_an_epoch_shows_each_example_once():
  state = sampling.init_epochs(jax.random.key(0), 12)
  array = np.arange(12)
  orders = []
  for _ in range(3):
    drawn = []
    for _ in range(3):
      state, batch = sampling.next_batch(state, array, 4)
      drawn += batch.tolist()
    assert sorted(drawn) == list(range(12))
    orders.append(drawn)
  assert orders[0] != orders[1] != orders[2]


def test_a_rest_too_small_for_a_batch_is_dropped():
  state = sampling.init_epochs(jax.random.key(0), 10)
  epochs = []
  for _ in range(4):
    state, batch = sampling.next_batch(state, np.arange(10), 4)
    epochs.append(int(state.epoch))
    assert len(set(batch.tolist())) == 4
  assert epochs == [0, 0, 1, 1]


def test_a_batch_larger_than_its_part_is_refused():
  with pytest.raises(ValueError, match='batch_size=2000: must be at most 1167'):
    tasks.Digits(batch_size=2000)


@pytest.mark.full
def test_mean_accuracy_over_five_seeds(tmp_path):
  accuracies = []
  for seed in range(5):
    workdir = tmp_path / str(seed)
    runs.run_here(workdir, 'digits_mlp', seed=seed)
    results = json.loads((workdir / 'results.json').read_text())
    accuracies.append(results['eval/accuracy'])
  assert np.mean(accuracies) >= 0.97, accuracies
  # It learned: from a start ten times too small the rate rose, then fell.
  rates = metrics_csv.read(workdir / 'metrics.csv')['hyperparams/learning_rate']
  assert rates.max() > 5e-4
  assert rates[-1] < 0.9 * rates.max()
