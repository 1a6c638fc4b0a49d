"""Handwritten digits: the 1797 images of 8 x 8 that scikit-learn ships.

Source: UCI Optical Recognition of Handwritten Digits, test part
(https://archive.ics.uci.edu/dataset/80), through `sklearn.datasets`.
"""

import numpy as np

from metalr_flax.tasks import classification


class Digits(classification.Classification):
  """Classify digits; a stratified random train / meta / test split.

  Inner batches come from the train split, the outer loss's from the meta
  split, evaluation uses the whole test split; no image is in two of them.

  Attributes:
    batch_size: B, images in an inner batch.
    meta_batch_size: images in the outer loss's batch; B unless given.
    train, meta, test: `{'image': float32 [N, 64] or [N, 8, 8, 1] in [0, 1],
      'label': int32 [N]}`.
  """

  input_name = 'image'

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
    parts = classification.split(
      _load(flatten), (meta_fraction, test_fraction), split_seed
    )
    super().__init__(
      parts, batch_size=batch_size, meta_batch_size=meta_batch_size
    )


def _load(flatten: bool) -> dict[str, np.ndarray]:
  from sklearn import datasets  # a second to import: only where it is used

  data = datasets.load_digits()
  images = (data.images / 16).astype(np.float32)
  shape = (len(images), 64) if flatten else (len(images), 8, 8, 1)
  return {
    'image': images.reshape(shape),
    'label': data.target.astype(np.int32),
  }
