"""The base class of tasks that classify a small data set."""

from collections.abc import Iterable
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from metalr_flax.tasks import arguments
from metalr_flax.tasks import sampling
from metalr_flax.tasks import task

Arrays = dict[str, np.ndarray]


class Classification(task.Task):
  """Classify the examples of a data set in three parts, all in memory.

  Inner batches come from the train part, the outer loss's from the meta part,
  evaluation uses the whole test part.

  Attributes:
    input_name: the key of the model's input in a batch, set by derived classes.
    batch_size: B, examples in an inner batch.
    meta_batch_size: examples in the outer loss's batch.
    train, meta, test: `{input_name: float32 [N, ...], 'label': int32 [N]}`.
  """

  input_name: str
  loss_label = 'cross-entropy (nats)'

  def __init__(
    self,
    parts: tuple[Arrays, Arrays, Arrays],
    *,
    batch_size: int,
    meta_batch_size: int | None,
  ):
    """Puts the parts on the device.

    Args:
      parts: the train, meta and test parts.
      batch_size: B, from 1 to the train part's size.
      meta_batch_size: the same of the meta part; B unless given.

    Raises:
      ValueError: for an argument outside these.
    """
    self.batch_size = batch_size
    self.meta_batch_size = meta_batch_size or batch_size
    self.train, self.meta, self.test = (
      {name: jnp.asarray(array) for name, array in part.items()}
      for part in parts
    )
    for name, size, data in (
      ('batch_size', self.batch_size, self.train),
      ('meta_batch_size', self.meta_batch_size, self.meta),
    ):
      arguments.check_integer(name, size, 1)
      if size > len(data['label']):
        raise ValueError(f'{name} {size} > {len(data["label"])} examples')

  def init(self, rng: jax.Array) -> Any:
    """One stream of epochs for each of the train and meta parts."""
    train_key, meta_key = jax.random.split(rng)
    return {
      'train': sampling.init_epochs(train_key, len(self.train['label'])),
      'meta': sampling.init_epochs(meta_key, len(self.meta['label'])),
    }

  def next(self, data_state: Any) -> tuple[Any, Any]:
    """A batch of B examples of the train part."""
    stream, batch = sampling.next_batch(
      data_state['train'], self.train, self.batch_size
    )
    return {**data_state, 'train': stream}, batch

  def next_meta(self, data_state: Any) -> tuple[Any, Any]:
    """A batch of the meta part."""
    stream, batch = sampling.next_batch(
      data_state['meta'], self.meta, self.meta_batch_size
    )
    return {**data_state, 'meta': stream}, batch

  def loss(
    self, model: nnx.Module, batch: Any
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Softmax cross-entropy in nats, mean over the batch, and accuracy."""
    logits, labels = model(batch[self.input_name]), batch['label']
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == labels)
    return jnp.mean(losses), {'accuracy': accuracy}

  def objective(self, model: nnx.Module, data_state: Any) -> jax.Array:
    """The cross-entropy's mean over the whole train part."""
    del data_state
    return self.loss(model, self.train)[0]

  def eval_batches(self) -> Iterable[Any]:
    """The test part in one batch."""
    return [self.test]


def split(
  data: Arrays, fractions: tuple[float, float], seed: int
) -> tuple[Arrays, Arrays, Arrays]:
  """Disjoint random parts, each class's share kept in all three.

  Args:
    data: arrays `[N, ...]`, among them `label`, int `[N]`.
    fractions: the meta and the test part's share of N, each > 0, together < 1.
    seed: of the split.

  Returns:
    The train, meta and test parts.

  Raises:
    ValueError: for other fractions, or too few examples of a class.
  """
  from sklearn import model_selection  # slow to import: only where it is used

  meta_fraction, test_fraction = fractions
  arguments.check_fractions(meta_fraction, test_fraction)
  rest, test = model_selection.train_test_split(
    np.arange(len(data['label'])),
    test_size=test_fraction,
    stratify=data['label'],
    random_state=seed,
  )
  train, meta = model_selection.train_test_split(
    rest,
    test_size=meta_fraction / (1 - test_fraction),
    stratify=data['label'][rest],
    random_state=seed,
  )
  return _rows(data, train), _rows(data, meta), _rows(data, test)


def _rows(data: Arrays, rows: np.ndarray) -> Arrays:
  return {name: array[rows] for name, array in data.items()}
