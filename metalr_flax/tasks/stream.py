"""The interface of a task whose data are read on the host as the run goes.

Data that fit into memory belong into a `Task`: they stay on the device. What
does not fit, or comes out of a loader (Grain, a PyTorch-style loader, tf.data,
a generator of NumPy arrays), is a `Stream`.
"""

import abc
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from metalr_flax.tasks import task

PyTree = Any


class Stream(task.Task):
  """Data and loss of a training problem, its batches made on the host.

  Write `batches` and `loss`, and `eval_batches` where there is data to evaluate
  on. While the device trains on one chunk of batches, a thread reads the next.

    class Words(tasks.Stream):

      def __init__(self, batch_size):
        self.batch_size = batch_size

      def batches(self, split, seed):
        data = my_examples(split)  # a grain.MapDataset
        data = data.shuffle(seed).batch(self.batch_size, drop_remainder=True)
        return data.repeat()

      def loss(self, model, batch):
        return my_loss(model(batch['words']), batch['next']), {}

  Attributes:
    buffer_bytes: the memory that may be taken by batches read ahead, on the
      host and the device together. It bounds the length of a chunk; a chunk has
      one outer step at least, however large its batches are.
  """

  buffer_bytes = 64 * 2**20

  @abc.abstractmethod
  def batches(self, split: str, seed: int) -> Iterable[PyTree]:
    """The batches of a split, without an end, in an order of its own.

    Called in the thread that reads, several times in a run: the same arguments
    have to give the same batches. Where a run has several processes
    (`jax.process_count()`), each calls it in its own, is given its share of the
    `batch_size` by the trainer, and has to return batches of its share of the
    examples, by `jax.process_index()`.

    Args:
      split: 'train' for inner updates, 'meta' for the outer loss: of examples
        that are not in 'train'.
      seed: the run's.

    Returns:
      What gives pytrees of NumPy arrays, or what NumPy can convert, all of the
      same shapes and dtypes; floats and integers of 64 bits become those of 32
      where JAX has no 64. Where its iterator has `get_state` and `set_state`,
      as Grain's have, with a state that is JSON or bytes, that state is saved
      with each checkpoint. Another one is read from its start when the run is
      resumed, and what was trained on is skipped.
    """

  def init(self, rng: jax.Array) -> dict[str, jax.Array]:
    """How many batches of each split were drawn: int32 zeros."""
    del rng
    return {name: jnp.zeros((), jnp.int32) for name in ('train', 'meta')}

  def next(self, data_state: PyTree) -> tuple[PyTree, PyTree]:
    """There is none: the trainer takes the batches of `batches`."""
    raise TypeError(
      f'{type(self).__name__}.next: a stream is read on the host; take its '
      f'batches from batches(split, seed)'
    )

  def next_meta(self, data_state: PyTree) -> tuple[PyTree, PyTree]:
    """There is none, see `next`."""
    return self.next(data_state)
