"""Reads images with Pillow, and refuses what is wrong by the file's name."""

from collections.abc import Iterator, Sequence
import pathlib
from typing import Any

import numpy as np

from metalr_flax.tasks import task

# Values of one byte; what has more would be cut off at white.
_GRAY = ('1', 'L', 'LA')
_COLOURED = ('P', 'PA', 'RGB', 'RGBA', 'RGBX', 'CMYK', 'YCbCr', 'LAB', 'HSV')


def read(path: Any, size: tuple[int, int] | None, where: str) -> np.ndarray:
  """Reads an image file as it is to be looked at.

  Args:
    path: the file.
    size: height and width to resize to, bilinear; None to keep them.
    where: what names it, for messages.

  Returns:
    uint8 `[H, W, 1]` of a grey image, else `[H, W, 3]`: red, green and blue.

  Raises:
    RefusedError: naming the file.
  """
  from PIL import Image  # only where it is used
  from PIL import ImageOps

  try:
    with Image.open(path) as file:
      image = ImageOps.exif_transpose(file)
      mode = image.mode
      image = image.convert('L' if mode in _GRAY else 'RGB')
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
    reason = getattr(e, 'strerror', None) or str(e).partition(" '")[0]
    raise task.RefusedError(
      f'{where}: {path} cannot be read as an image ({reason}); mend or '
      f'delete it'
    ) from e
  if mode not in (*_GRAY, *_COLOURED):
    raise task.RefusedError(
      f'{where}: {path} has more than 8 bits a value ({mode}); convert it'
    )
  if size:
    image = image.resize(size[::-1], Image.Resampling.BILINEAR)
  array = np.asarray(image)
  return array[..., None] if array.ndim == 2 else array


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """An image float32 `[H, W, C]` resized to `[*size, C]`, bilinear."""
  from PIL import Image  # only where it is used

  channels = [
    Image.fromarray(channel).resize(size[::-1], Image.Resampling.BILINEAR)
    for channel in np.moveaxis(image, -1, 0)
  ]
  return np.stack([np.asarray(channel) for channel in channels], axis=-1)


def read_classes(
  folder: pathlib.Path, size: tuple[int, int] | None, where: str
) -> tuple[list[np.ndarray], list[str]]:
  """Reads a folder that has a folder of images for each class.

  Args:
    folder: its folders are named as the classes; an image may be at any depth
      below. Files whose names do not end as an image's, and hidden ones, are
      left alone.
    size: see `read`.
    where: the field and path, for messages.

  Returns:
    Images uint8 `[H, W, 1 or 3]`, and the class of each.

  Raises:
    RefusedError: naming the folder or file that is wrong.
  """
  images, names, files = [], [], []
  classes = [*folders(folder)]
  if not classes:
    raise task.RefusedError(
      f'{where}: {folder} has no folders; put the images of each class into '
      f'one of its name'
    )
  for path in classes:
    found = [*image_files(path)]
    if not found:
      raise task.RefusedError(
        f'{where}: {path} holds no image; put some in or delete it'
      )
    images += [read(file, size, where) for file in found]
    names += [path.name] * len(found)
    files += found
  _check_sizes(images, files, where)
  return images, names


def folders(path: str | pathlib.Path) -> Iterator[pathlib.Path]:
  """The folders in a folder, sorted, without hidden ones."""
  for entry in sorted(pathlib.Path(path).iterdir()):
    if entry.is_dir() and not entry.name.startswith('.'):
      yield entry


def image_files(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """The image files below a folder, sorted, without hidden ones."""
  from PIL import Image  # only where it is used

  suffixes = Image.registered_extensions()
  for path in sorted(folder.rglob('*')):
    hidden = any(part.startswith('.') for part in path.parts[-2:])
    if not hidden and path.suffix.lower() in suffixes and path.is_file():
      yield path


def _check_sizes(
  images: Sequence[np.ndarray], files: Sequence[pathlib.Path], where: str
) -> None:
  for image, file in zip(images, files, strict=True):
    if image.shape[:2] != images[0].shape[:2]:
      raise task.RefusedError(
        f'{where}: {files[0]} has {_size(images[0])} pixels and {file} '
        f'{_size(image)}; set task.kwargs.size, to which all are resized'
      )


def _size(image: np.ndarray) -> str:
  return ' x '.join(map(str, image.shape[:2]))
