"""Breast cancer: 569 tumours of 30 measurements, malignant or benign.

Source: UCI Breast Cancer Wisconsin (Diagnostic)
(https://archive.ics.uci.edu/dataset/17), as scikit-learn ships it.
"""

import numpy as np

from metalr_flax.tasks import classification


class BreastCancer(classification.Classification):
  """Tell malignant from benign; a stratified train / meta / test split.

  For a model from `[B, 30]` to two logits; the model `mlp` with features
  `(30, 2)` makes it logistic regression, a convex problem. Inner batches come
  from the train split, the outer loss's from the meta split, evaluation uses
  the whole test split; no tumour is in two of them.

  Attributes:
    batch_size: B, tumours in an inner batch.
    meta_batch_size: tumours in the outer loss's batch; B unless given.
    train, meta, test: `{'features': float32 [N, 30], 'label': int32 [N]}`, each
      feature of mean 0 and standard deviation 1 in the train split; label 0 is
      malignant, 1 benign.
  """

  input_name = 'features'

  def __init__(
    self,
    batch_size: int = 32,
    *,
    meta_batch_size: int | None = None,
    meta_fraction: float = 0.15,
    test_fraction: float = 0.2,
    split_seed: int = 0,
  ):
    """Loads and splits the data.

    Args:
      batch_size: B, from 1 to the train split's size.
      meta_batch_size: the same of the meta split; B unless given.
      meta_fraction: the meta split's share of the data, > 0.
      test_fraction: the test split's; the two sum to less than 1.
      split_seed: of the split.

    Raises:
      ValueError: for an argument outside these.
    """
    train, meta, test = classification.split(
      _load(), (meta_fraction, test_fraction), split_seed
    )
    mean, deviation = (
      f(train['features'], axis=0, keepdims=True) for f in (np.mean, np.std)
    )
    for part in (train, meta, test):
      scaled = (part['features'] - mean) / deviation
      part['features'] = scaled.astype(np.float32)
    super().__init__(
      (train, meta, test),
      batch_size=batch_size,
      meta_batch_size=meta_batch_size,
    )


def _load() -> dict[str, np.ndarray]:
  from sklearn import datasets  # a second to import: only where it is used

  data = datasets.load_breast_cancer()
  return {'features': data.data, 'label': data.target.astype(np.int32)}
