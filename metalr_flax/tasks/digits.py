"""Handwritten digits: the 1797 images of 8 x 8 that scikit-learn ships.

Source: UCI Optical Recognition of Handwritten Digits, test part
(https://archive.ics.uci.edu/dataset/80), through `sklearn.datasets`.
"""

from collections.abc import Iterable
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from metalr_flax.tasks import sampling
from metalr_flax.tasks import task


class Digits(task.Task):
  """Classify digits; a stratified random train / meta / test split.

  Inner batches come from the train split, the outer loss's from the meta
  split, evaluation uses the whole test split; no image is in two of them.

  Attributes:
    batch_size: B, images in an inner batch.
    meta_batch_size: images in the outer loss's batch; B unless given.
    train, meta, test: `{'image': float32 [N, 64] or [N, 8, 8, 1] in [0, 1],
      'label': int32 [N]}`.
  """

  def __init__(
    self,
    batch_size: int = 32,
    *,
    meta_batch_size: int | None = None,
    meta_fraction: float = 0.15,
    test_fraction: float = 0.2,
    split_seed: int = 0,
    flatten: bool = True,
  ):
    self.batch_size = batch_size
    self.meta_batch_size = meta_batch_size or batch_size
    self.train, self.meta, self.test = _split(
      _load(flatten), (meta_fraction, test_fraction), split_seed
    )
    for name, size, data in (
      ('batch_size', self.batch_size, self.train),
      ('meta_batch_size', self.meta_batch_size, self.meta),
    ):
      if size > len(data['label']):
        raise ValueError(f'{name} {size} > {len(data["label"])} examples')

  def init(self, rng: jax.Array) -> Any:
    """One stream of epochs for each of the train and meta splits."""
    train_key, meta_key = jax.random.split(rng)
    return {
      'train': sampling.init_epochs(train_key, len(self.train['label'])),
      'meta': sampling.init_epochs(meta_key, len(self.meta['label'])),
    }

  def next(self, data_state: Any) -> tuple[Any, Any]:
    """A batch of B training images with labels."""
    stream, batch = sampling.next_batch(
      data_state['train'], self.train, self.batch_size
    )
    return {**data_state, 'train': stream}, batch

  def next_meta(self, data_state: Any) -> tuple[Any, Any]:
    """A batch of the meta split."""
    stream, batch = sampling.next_batch(
      data_state['meta'], self.meta, self.meta_batch_size
    )
    return {**data_state, 'meta': stream}, batch

  def loss(
    self, model: nnx.Module, batch: Any
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Softmax cross-entropy in nats, mean over the batch, and accuracy."""
    logits, labels = model(batch['image']), batch['label']
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == labels)
    return jnp.mean(losses), {'accuracy': accuracy}

  def eval_batches(self) -> Iterable[Any]:
    """The test split in one batch."""
    return [self.test]


def _load(flatten: bool) -> dict[str, np.ndarray]:
  from sklearn import datasets  # a second to import: only where it is used

  data = datasets.load_digits()
  images = (data.images / 16).astype(np.float32)
  shape = (len(images), 64) if flatten else (len(images), 8, 8, 1)
  return {
    'image': images.reshape(shape),
    'label': data.target.astype(np.int32),
  }


def _split(
  data: dict[str, np.ndarray], fractions: tuple[float, float], seed: int
) -> tuple[dict[str, jax.Array], ...]:
  """Train, meta and test parts with each digit's share kept in all three."""
  from sklearn import model_selection

  meta_fraction, test_fraction = fractions
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
  return tuple(
    {name: jnp.asarray(array[rows]) for name, array in data.items()}
    for rows in (train, meta, test)
  )
