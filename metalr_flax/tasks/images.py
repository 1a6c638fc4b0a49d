"""A user's own images, NPZ or a folder of files: tell their classes.

Without a path it is scikit-learn's digits, 1797 images of 8 x 8 in grey.
"""

from collections.abc import Iterable, Sequence
import pathlib
from typing import Any

import numpy as np

from metalr_flax.tasks import arguments
from metalr_flax.tasks import classification
from metalr_flax.tasks import image_sets
from metalr_flax.tasks import parts
from metalr_flax.tasks import pictures
from metalr_flax.tasks import splits
from metalr_flax.tasks import targets
from metalr_flax.tasks import task

_EVAL_BATCH = 256


class Images(classification.Classification):
  """Classify images of one size, channel-last (NHWC).

  Values lie in [0, 1], a byte's 255 being 1, and are then standardised: each
  channel has mean 0 and standard deviation 1 over the train part.

  Attributes:
    mean, deviation: of each channel in the train part, float32.
    batch_size: B, images in an inner batch.
    meta_batch_size: images in the outer loss's batch.
    train, meta, test: `{'image': float32 [N, H, W, channels], 'label': int32
      [N]}`.
  """

  input_name = 'image'

  def __init__(
    self,
    batch_size: int = 32,
    *,
    path: str = '',
    size: int | Sequence[int] | None = None,
    meta_fraction: float = 0.15,
    test_fraction: float = 0.2,
    split_seed: int = 0,
    meta_batch_size: int | None = None,
  ):
    """Reads, splits and standardises the images.

    Args:
      batch_size: B, from 1 to the train part's size.
      path: an NPZ file with `images`, `[N, H, W]` or `[N, H, W, C]`, bytes or
        floats in [0, 1], and `labels`, `[N]`, integers or text; or a folder
        with a folder of images for each class; or one with such folders below
        `train` and `test`, and `meta` if you like. '' for scikit-learn's
        digits.
      size: height and width that all images are resized to, or one number for
        both; None where they are all of one size.
      meta_fraction: the random meta part's share of the images, in (0, 1).
      test_fraction: the test part's; the two sum to less than 1. Neither is
        used where a folder gives that part.
      split_seed: of the random parts, which keep the classes' shares.
      meta_batch_size: images in the outer loss's batch; unless given B, or the
        whole meta part where that is smaller.

    Raises:
      RefusedError: naming the field or file that is wrong.
      ValueError: for an argument outside these.
    """
    arguments.check_fractions(meta_fraction, test_fraction)
    arguments.check_integer('split_seed', split_seed, 0)
    self._size = _checked_size(size)
    where = f'task.path={path}'
    given = image_sets.read(path, self._size, where)
    self._classes = targets.Classes(given['train'][1], where)
    fractions = (
      0.0 if 'meta' in given else meta_fraction,
      0.0 if 'test' in given else test_fraction,
    )
    labelled = {
      name: self._labelled(part, f'{where}: {name}: image')
      for name, part in given.items()
    }
    found = self._complete(labelled, fractions, split_seed, where)
    self._fit(found[0]['image'])
    for part in found:
      part['image'] = self._standardised(part['image'])
    super().__init__(
      found,
      batch_size=batch_size,
      meta_batch_size=meta_batch_size,
      files=image_sets.files_of(path),
    )

  @property
  def class_names(self) -> list[Any]:
    """Of the C classes, in the order of the logits."""
    return self._classes.names

  def eval_batches(self) -> Iterable[Any]:
    """The test part, up to 256 images in a batch."""
    count = len(self.test['label'])
    for start in range(0, count, _EVAL_BATCH):
      stop = start + _EVAL_BATCH
      yield {name: array[start:stop] for name, array in self.test.items()}

  def encode(self, data: Any) -> np.ndarray:
    """A model's inputs for new images, float32 `[N, H, W, C]`.

    Args:
      data: N images, each the name of a file, or an array `[H, W]` or `[H, W,
        C]` of bytes or of floats in [0, 1]. They are resized where
        `task.kwargs.size` says so.

    Raises:
      ValueError: for an image of another size or number of channels.
    """
    found = [self._pixels(image, n) for n, image in enumerate(data, 1)]
    return self._standardised(np.concatenate(found))

  def decode(self, outputs: Any) -> np.ndarray:
    """The most likely class of each image, by name, for logits `[N, C]`."""
    return self._classes.decode(outputs)

  def _labelled(self, part: image_sets.Examples, where: str) -> parts.Arrays:
    pixels, names = part
    rows = range(1, 1 + len(names))
    return {
      'image': pixels,
      'label': self._classes.encode(names, rows, where),
    }

  def _fit(self, train: np.ndarray) -> None:
    """Takes mean and deviation of each channel from the train part."""
    axes = (0, 1, 2)
    self._shape = train.shape[1:]
    self.mean = train.mean(axes, dtype=np.float64).astype(np.float32)
    deviation = train.std(axes, dtype=np.float64).astype(np.float32)
    self.deviation = np.where(deviation > 0, deviation, np.float32(1))

  def _standardised(self, pixels: np.ndarray) -> np.ndarray:
    return (pixels - self.mean) / self.deviation

  def _pixels(self, image: Any, number: int) -> np.ndarray:
    """One image of `encode`, `[1, H, W, C]`."""
    where = f'image {number}'
    if isinstance(image, (str, pathlib.Path)):
      image = pictures.read(image, self._size, where)
    pixels = image_sets.pixels_of(np.asarray(image)[None], self._size, where)
    if pixels.shape[-1] == 1:  # grey is as much of each colour
      pixels = np.broadcast_to(pixels, (*pixels.shape[:3], self._shape[-1]))
    if pixels.shape[1:] != self._shape:
      raise ValueError(
        f'{where}: has the shape {pixels.shape[1:]}, and the images trained on '
        f'have {self._shape}'
      )
    return pixels

  def _complete(
    self,
    given: dict[str, parts.Arrays],
    fractions: tuple[float, float],
    seed: int,
    where: str,
  ) -> tuple[parts.Arrays, parts.Arrays, parts.Arrays]:
    """Cuts the parts that are missing from the train part, at random."""
    train = given['train']
    labels = train['label']
    self._classes.check_counts(labels, 4 - len(given), where)
    rows = splits.divide(len(labels), labels, fractions, seed, where)
    cut = [{name: array[r] for name, array in train.items()} for r in rows]
    return cut[0], given.get('meta', cut[1]), given.get('test', cut[2])


def _checked_size(size: Any) -> image_sets.Size | None:
  """Height and width."""
  if size is None:
    return None
  both = (size, size) if isinstance(size, int) else size
  if not isinstance(both, Sequence) or isinstance(both, str) or len(both) != 2:
    raise task.RefusedError(
      f'task.kwargs.size={size}: must be one number or two, height and '
      f'width; set (32, 32), say'
    )
  for length in both:
    arguments.check_integer('task.kwargs.size', length, 1)
  return both[0], both[1]
