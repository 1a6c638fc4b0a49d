"""Streams that cannot be read: one line with the field, or file and record."""

import os
import sys

import grain
import numpy as np
import pytest
import runs

from metalr_flax import errors
from metalr_flax.tasks import records


def good(number):
  image = np.full((4, 4, 1), number % 2, np.float32)
  return {'image': image, 'label': np.int32(number % 2)}


def batches_only(split, seed):
  del seed
  return [good(n) for n in range(40)]


def examples(split, seed, change=lambda example, number: example, count=40):
  del split, seed
  return grain.MapDataset.range(count).map(lambda n: change(good(n), n))


def _changed(**fields):
  def dataset(split, seed):
    return examples(split, seed, lambda e, n: {**e, **fields})

  return dataset


def nothing(split, seed):
  del split, seed


few = lambda split, seed: examples(split, seed, count=5)
endless = lambda split, seed: examples(split, seed).repeat()
text = _changed(label='seven')
objects = _changed(image=object())
unnamed = lambda split, seed: grain.MapDataset.range(40).map(lambda n: n)
other_name = lambda split, seed: grain.MapDataset.range(40).map(
  lambda n: {'pixels': good(n)['image'], 'label': 0}
)
uneven = lambda split, seed: examples(
  split, seed, lambda e, n: {**e, 'image': np.zeros((4 + n % 2, 4, 1))}
)
held_out_alone = lambda split, seed: (
  examples(split, seed) if split == 'meta' else None
)
not_a_function = 3
HERE = 'tasks.test_bad_streams'
DATASETS = {
  'no module': ('nowhere:examples', 'task.kwargs.dataset=nowhere:examples: cannot be imported'),
  'no function': (f'{HERE}:nope', f'task.kwargs.dataset={HERE}:nope: cannot be imported'),
  'no colon': (HERE, f'task.kwargs.dataset={HERE}: cannot be imported'),
  'a number': (f'{HERE}:not_a_function', 'is no function'),
  'a list': (f'{HERE}:batches_only', f'{HERE}:batches_only: returns a list; it must return a grain.MapDataset'),
  'nothing': (f'{HERE}:nothing', 'returns a NoneType'),
  'no training data': (f'{HERE}:held_out_alone', 'returns a NoneType'),
  'few': (f'{HERE}:few', 'its train batches: there are 5 examples, fewer than a batch of 8; lower task.batch_size'),
  'endless': (f'{HERE}:endless', 'repeats itself; return one epoch'),
  'text': (f'{HERE}:text', 'label holds text, not numbers'),
  'objects': (f'{HERE}:objects', 'holds objects'),
  'uneven': (f'{HERE}:uneven', 'its train batches: '),
  'no fields': (f'{HERE}:unnamed', 'task.kwargs.input_name: an example has'),
  'other fields': (f'{HERE}:other_name', 'task.kwargs.input_name: an example has label, pixels, and no image'),
}  # fmt: skip


def _start(tmp_path, **fields):
  """What the command does before it writes anything."""
  fields = {
    'task__name': 'stream',
    'task__batch_size': 8,
    'task__kwargs': {},
    'model__name': 'cnn',
    'model__kwargs': {'features': (2,), 'num_classes': 2},
    **fields,
  }
  runs.run_here(tmp_path / 'run', **fields)


@pytest.mark.parametrize('name', DATASETS)
def test_a_dataset_that_is_none(name, tmp_path):
  dataset, part = DATASETS[name]
  _refused(tmp_path, part, task__kwargs={'dataset': dataset})


def _refused(tmp_path, *parts, **fields):
  with pytest.raises(errors.ConfigError) as caught:
    _start(tmp_path, **fields)
  said = str(caught.value)
  assert caught.value.status == 2
  assert '\n' not in said
  assert said.startswith('task.')
  for part in parts:
    assert part in said
  assert not (tmp_path / 'run').exists()


def _shards(folder, change=lambda example, number: example, count=200):
  for split in ('train', 'meta', 'test'):
    some = (change(good(n), n) for n in range(count))
    records.write(folder, split, some, shards=2)
  return folder / 'train-00001-of-00002.array_record'


def _flip(path, at):
  data = bytearray(path.read_bytes())
  data[at] ^= 0xFF
  path.write_bytes(data)


def _foreign(path):
  """Records that are no examples."""
  from array_record.python import array_record_module

  writer = array_record_module.ArrayRecordWriter(str(path), 'group_size:1')
  for _ in range(100):
    writer.write(b'not an example')
  writer.close()


def _other_shape(path):
  image = np.zeros((5, 5, 1), np.float32)
  some = ({**good(n), 'image': image} for n in range(200))
  _, other = records.write(path.parent / 'other', 'train', some, shards=2)
  os.replace(other, path)


FILES = {
  'a bit': (lambda path: _flip(path, 200), 'cannot be read (Corrupted'),
  'cut short': (lambda path: os.truncate(path, 3000), 'has no records'),
  'empty': (lambda path: os.truncate(path, 0), 'has no records'),
  'text': (lambda path: path.write_text('hello'), 'has no records'),
  'a folder': (lambda path: (path.unlink(), path.mkdir()), 'has no records'),
  'foreign': (_foreign, 'record 0 is no example'),
  'another shape': (_other_shape, 'record 0 holds image float32[5, 5, 1], label int32[], and the first record image float32[4, 4, 1]'),
}  # fmt: skip


@pytest.mark.parametrize('name', FILES)
def test_a_shard_that_is_damaged(name, tmp_path):
  damage, part = FILES[name]
  path = _shards(tmp_path)
  damage(path)
  _refused(tmp_path, str(path), part, task__path=str(tmp_path))


def test_no_shards(tmp_path):
  gone = {'task__path': str(tmp_path / 'gone')}
  _refused(tmp_path, f'task.path={tmp_path}/gone: has no shard of the', **gone)
  _shards(tmp_path)
  for path in tmp_path.glob('meta*'):
    path.unlink()
  here = {'task__path': str(tmp_path)}
  _refused(tmp_path, 'has no shard of the split meta', **here)


def test_neither_path_nor_dataset_or_both(tmp_path):
  _refused(tmp_path, 'must be one of them', task__kwargs={})
  both = {'task__kwargs': {'dataset': 'a:b'}, 'task__path': str(tmp_path)}
  _refused(tmp_path, 'must be one of them', **both)


def test_a_number_that_is_not_finite(tmp_path):
  change = lambda e, n: {**e, 'image': e['image'] * (np.nan if n == 33 else 1)}
  path = _shards(tmp_path, change)
  part = f'{path}: record 16: image is not finite'
  _refused(tmp_path, part, task__path=str(tmp_path))


def test_a_test_shard_that_is_damaged(tmp_path):
  _shards(tmp_path)
  path = tmp_path / 'test-00000-of-00002.array_record'
  os.truncate(path, 10)
  part = f'its test batches: {path}: has no records'
  _refused(tmp_path, part, task__path=str(tmp_path))


@pytest.mark.parametrize(
  ('rows', 'part'),
  [
    ([], 'there are no examples for the split train'),
    ([{'a': 'text'}], 'example 0: a is <U4, not numbers'),
    ([{'a': 1}, {'b': 1}], 'example 1 has b, and the first a'),
    ([{'a': [1.0]}, {'a': [1.0, 2.0]}], 'example 1: a is float64[2], and float64[1] in the first'),
  ],
)  # fmt: skip
def test_examples_that_cannot_be_written(rows, part, tmp_path):
  with pytest.raises(ValueError) as caught:  # noqa: PT011  its text follows
    records.write(tmp_path, 'train', rows)
  assert part in str(caught.value)
  assert not [*tmp_path.glob('train*')]


@pytest.mark.parametrize('package', ['grain', 'array_record'])
def test_a_missing_package_is_one_line(package, tmp_path, monkeypatch):
  _shards(tmp_path)
  for name in ('grain', 'array_record', 'array_record.python'):
    if name.startswith(package):
      monkeypatch.setitem(sys.modules, name, None)
  part = "pip install 'metalr_flax[data]'"
  _refused(tmp_path, part, task__path=str(tmp_path))
