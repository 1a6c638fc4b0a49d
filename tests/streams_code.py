"""Streams as a user would write them."""

import grain
import jax
import jax.numpy as jnp
import numpy as np

from metalr_flax import tasks


def example(number):
  """y = 2 x_0 - x_1, of its number alone."""
  x = np.random.default_rng(number).standard_normal(2).astype(np.float32)
  return {'x': x, 'y': 2 * x[0] - x[1]}


class Planes(tasks.Stream):
  """Through Grain: shuffled epochs of 50 examples, another order in each."""

  def __init__(self, batch_size, *, buffer_bytes=2**20):
    self.batch_size = batch_size
    self.buffer_bytes = buffer_bytes

  def batches(self, split, seed):
    numbers = grain.MapDataset.range(100)[{'train': 0, 'meta': 1}[split] :: 2]
    examples = numbers.shuffle(seed).map(example)
    return examples.batch(self.batch_size, drop_remainder=True).repeat()

  def loss(self, model, batch):
    error = model(batch['x']) - batch['y']
    return jnp.mean(error**2), {'mark': batch['y'][0]}

  def eval_batches(self):
    yield {'x': np.ones((3, 2), np.float32), 'y': np.ones(3, np.float32)}


class Shared(Planes):
  """Each process reads every n-th of the shuffled examples."""

  def batches(self, split, seed):
    return self.of(split, seed, jax.process_index(), jax.process_count())

  def of(self, split, seed, index, count):
    numbers = grain.MapDataset.range(100)[{'train': 0, 'meta': 1}[split] :: 2]
    mine = numbers.shuffle(seed)[index::count].map(example)
    return mine.batch(self.batch_size, drop_remainder=True).repeat()

  def loss(self, model, batch):
    loss, _ = super().loss(model, batch)
    return loss, {'mark': jnp.mean(batch['y'])}


class Numbers(Planes):
  """A generator: no state to save."""

  def batches(self, split, seed):
    rng = np.random.default_rng([seed, split == 'meta'])
    while True:
      x = rng.standard_normal((self.batch_size, 2))  # float64
      yield {'x': x, 'y': x[:, 0]}


class Bytes:
  """An iterator whose state is bytes, as that of Grain's DataLoader."""

  def __init__(self, inner):
    self.inner = inner
    self.count = 0

  def __iter__(self):
    return self

  def __next__(self):
    self.count += 1
    return {'x': np.full((4, 2), self.count), 'y': np.full(4, self.count)}

  def get_state(self):
    return str(self.count).encode()

  def set_state(self, state):
    self.count = int(state)


class Counts(Planes):
  """Batch n is full of n, as int64."""

  def batches(self, split, seed):
    return Bytes(split)


class Faulty(Numbers):
  """Its training batch number `at` is what the test asks for."""

  kind = 'fine'  # tests set it

  def __init__(self, batch_size, *, at):
    super().__init__(batch_size)
    self.at = at

  def batches(self, split, seed):
    for number, batch in enumerate(super().batches(split, seed)):
      fault = split == 'train' and number == self.at and Faulty.kind
      x = batch['x']
      if fault == 'end':
        return
      if fault == 'error':
        raise KeyError('lost')
      yield batch | {
        'nan': {'x': x * np.nan},
        'shape': {'x': x[:-1]},
        'dtype': {'x': x.astype(int)},
        'text': {'y': np.array(['a'] * len(x))},
        'object': {'y': np.array([None] * len(x))},
        'more': {'z': x},
      }.get(fault, {})
