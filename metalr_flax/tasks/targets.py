"""What a model is to predict: classes by name, or standardised numbers."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from metalr_flax.tasks import task


class Classes:
  """Class names, sorted; a label is a place among them.

  Attributes:
    names: the C names.
  """

  def __init__(self, names: Sequence[Any], where: str):
    """Sorts the names.

    Args:
      names: of all classes, each as often as it occurs.
      where: what gave them, for messages.

    Raises:
      RefusedError: for one class alone.
    """
    self.names = sorted({*names})
    if len(self.names) < 2:
      raise task.RefusedError(
        f'{where}: all examples are of class {self.names[0]!r}; give examples '
        f'of two classes at least'
      )
    self._labels = {name: i for i, name in enumerate(self.names)}

  def encode(
    self, names: Sequence[Any], numbers: Sequence[int], where: str
  ) -> np.ndarray:
    """The labels of names, int32 `[N]`.

    Args:
      names: of N examples.
      numbers: of the examples, for messages.
      where: what gave them, and what a number counts, for messages.

    Raises:
      RefusedError: naming the first that is none of the classes.
    """
    for number, name in zip(numbers, names, strict=True):
      if name not in self._labels:
        raise task.RefusedError(
          f'{where} {number} is of class {name!r}, of which the train part has '
          f'no example; give it some'
        )
    return np.array([self._labels[name] for name in names], np.int32)

  def decode(self, logits: Any) -> np.ndarray:
    """The name of the largest logit, from `[..., C]` to `[...]`.

    Raises:
      ValueError: for another number of classes.
    """
    logits = np.asarray(logits)
    if logits.shape[-1:] != (len(self.names),):
      raise ValueError(
        f'outputs of shape {logits.shape}: must be logits of '
        f'{len(self.names)} classes, [..., {len(self.names)}]'
      )
    return np.array(self.names)[logits.argmax(axis=-1)]

  def check_counts(self, labels: np.ndarray, least: int, where: str) -> None:
    """Refuses a class with too few examples to be in every part.

    Args:
      labels: of all examples.
      least: how many parts there are to be.
      where: what gave them, for messages.

    Raises:
      RefusedError: naming the class.
    """
    counts = np.bincount(labels, minlength=len(self.names))
    for name, count in zip(self.names, counts, strict=True):
      if count < least:
        raise task.RefusedError(
          f'{where}: class {name!r} has {count} of the {least} examples that '
          f'{least} parts need; add some, or leave the class out'
        )


class Standardised:
  """Numbers with the train part's mean 0 and standard deviation 1.

  Attributes:
    mean: of the train part, in the target's unit.
    deviation: the same.
  """

  def __init__(self, train: np.ndarray, where: str):
    """Takes mean and deviation.

    Args:
      train: the train part's numbers, float64 `[N]`.
      where: what gave them, for messages.

    Raises:
      RefusedError: where all of them are the same.
    """
    self.mean, self.deviation = float(train.mean()), float(train.std())
    if not self.deviation > 0:
      raise task.RefusedError(
        f'{where}: is {self.mean:g} in every row of the train part; there is '
        f'nothing to predict'
      )

  def encode(self, numbers: np.ndarray) -> np.ndarray:
    """From the target's unit to float32 standard deviations, `[N]`."""
    return ((numbers - self.mean) / self.deviation).astype(np.float32)

  def decode(self, outputs: Any) -> np.ndarray:
    """From standard deviations `[N]` or `[N, 1]` to the unit, float64 `[N]`."""
    outputs = np.asarray(outputs, np.float64)
    return outputs.reshape(len(outputs)) * self.deviation + self.mean
