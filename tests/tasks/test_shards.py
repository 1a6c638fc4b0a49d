"""Shards and datasets of Grain: every example once an epoch, shared, resumed."""

import itertools

import grain
import numpy as np
import pytest
import tiers

from metalr_flax import tasks
from metalr_flax.tasks import grain_data
from metalr_flax.tasks import records

COUNT = 300


def example(number):
  image = np.random.default_rng(number).random((4, 4, 1), np.float32)
  return {'image': image, 'label': np.int32(number)}


def dataset(split, seed):
  """Of all splits the same; `test` is none."""
  del seed
  if split != 'test':
    return grain.MapDataset.range(COUNT).map(example)
  return None


@pytest.fixture(scope='module')
def shards(tmp_path_factory):
  """300 examples in 3 shards: blocks of 64 and a rest, two in each."""
  folder = tmp_path_factory.mktemp('shards')
  records.write(folder, 'train', map(example, range(COUNT)), shards=3)
  records.write(folder, 'test', map(example, range(10)))
  return folder


@pytest.fixture(params=['path', 'dataset'])
def task(request, shards):
  given = {
    'path': {'path': str(shards)},
    'dataset': {'dataset': 'tasks.test_shards:dataset'},
  }
  return tasks.ClassificationStream(16, **given[request.param])


def labels(batches, count):
  return np.concatenate([b['label'] for b in itertools.islice(batches, count)])


def test_an_epoch_has_every_example_once_in_another_order(task):
  batches = iter(task.batches('train', 0))
  per_epoch = COUNT // 16 * 16
  epochs = labels(batches, 3 * COUNT // 16)
  first, second = epochs[:per_epoch], epochs[COUNT : COUNT + per_epoch]
  assert len({*first}) == per_epoch
  assert (first != second).any()
  assert (np.diff(first) != 1).mean() > 0.9
  again = labels(iter(task.batches('train', 0)), 5)
  np.testing.assert_array_equal(again, epochs[:80])
  other = labels(iter(task.batches('train', 1)), 5)
  assert (other != epochs[:80]).any()


def test_batches_hold_the_examples_whole(task):
  batch = next(iter(task.batches('train', 0)))
  assert batch['image'].dtype == np.float32
  for image, label in zip(batch['image'], batch['label'], strict=True):
    np.testing.assert_array_equal(image, example(label)['image'])


def test_processes_read_disjoint_shares(task):
  counts, seen = [], []
  for index in range(3):
    share = iter(task.batches('train', 0, share=(index, 3)))
    mine = {*labels(share, 30)}
    seen += [*mine]
    counts.append(len(mine))
  assert len({*seen}) == len(seen) == sum(counts)
  assert min(counts) > COUNT / 6


@tiers.parametrize('at', [1, 7, 18, 19, 40], [19])
def test_a_state_goes_on_where_it_was(task, at):
  batches = iter(task.batches('train', 3))
  labels(batches, at)
  state = batches.get_state()
  expected = labels(batches, 25)
  resumed = iter(task.batches('train', 3))
  labels(resumed, 2)
  resumed.set_state(state)
  np.testing.assert_array_equal(labels(resumed, 25), expected)


def test_windows_smaller_than_an_epoch_have_every_example_once(shards):
  found = records.Shards(records.find(str(shards), 'train'))
  assert [b - a for _, a, b in found.blocks] == 3 * [64, 36]
  given = {'batch_size': 10, 'seed': 0, 'share': (0, 1), 'window_bytes': 1}
  batches = grain_data.of_shards(found, **given)
  for _ in range(2):
    assert len({*labels(batches, COUNT // 10)}) == COUNT
  # A window is one block: its records are neighbours, and shuffled.
  first = labels(grain_data.of_shards(found, **given), 3)
  assert len({*(first % 3)}) == 1
  assert (np.diff(first) != 3).mean() > 0.8


def test_evaluation_takes_the_first_examples(shards):
  task = tasks.ClassificationStream(4, path=str(shards), eval_examples=6)
  batches = [*task.eval_batches()]
  assert [b['label'].tolist() for b in batches] == [[0, 1, 2, 3], [4, 5]]
  named = 'tasks.test_shards:dataset'
  assert not [*tasks.ClassificationStream(4, dataset=named).eval_batches()]


def test_a_record_is_a_file_that_numpy_reads(shards, tmp_path):
  from array_record.python import array_record_module

  (path,) = records.find(str(shards), 'test')
  reader = array_record_module.ArrayRecordReader(path)
  (tmp_path / 'record.npy').write_bytes(reader.read(3, 4)[0])
  row = np.load(tmp_path / 'record.npy', allow_pickle=False)
  np.testing.assert_array_equal(row['image'], example(3)['image'])
  assert row['label'] == 3


def test_a_pattern_may_stand_for_the_folder(shards):
  pattern = f'{shards}/{{split}}-0000[01]-*'
  assert len(records.find(pattern, 'train')) == 2
  assert records.find(pattern, 'meta') == []
