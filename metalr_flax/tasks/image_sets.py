"""Reads labelled images: NPZ arrays, or folders of files."""

import pathlib
from typing import Any
import zipfile

import numpy as np

from metalr_flax.tasks import pictures
from metalr_flax.tasks import task

Size = tuple[int, int]
# Pixels in [0, 1], float32 [N, H, W, C], and the class of each image.
Examples = tuple[np.ndarray, list[Any]]
_PARTS = {'train', 'meta', 'test'}


def read(path: str, size: Size | None, where: str) -> dict[str, Examples]:
  """Reads the images of a file or folder.

  Args:
    path: see `Images`; '' for scikit-learn's digits.
    size: height and width to resize to; None to keep them.
    where: the field and path, for messages.

  Returns:
    Examples by the part that a folder puts them in; else all as 'train'.

  Raises:
    RefusedError: naming the file that is wrong.
  """
  if not path:
    return {'train': _own(size)}
  if not pathlib.Path(path).is_dir():
    return {'train': _read_arrays(path, size, where)}
  folders = {folder.name: folder for folder in pictures.folders(path)}
  if not {'train', 'test'} <= {*folders}:
    return {'train': _read_folder(path, size, where)}
  for name in sorted({*folders} - _PARTS):
    raise task.RefusedError(
      f'{where}: has the folder {name} beside train and test; of those there '
      f'may be one named meta, move others elsewhere'
    )
  parts = {n: _read_folder(path, size, where) for n, path in folders.items()}
  return _of_one_shape(parts, where)


def files_of(path: str) -> list[pathlib.Path]:
  """The files that `read` reads."""
  if not path:
    return []
  root = pathlib.Path(path)
  return [*pictures.image_files(root)] if root.is_dir() else [root]


def pixels_of(images: Any, size: Size | None, where: str) -> np.ndarray:
  """Images of an array as pixels in [0, 1].

  Args:
    images: `[N, H, W]` or `[N, H, W, C]`; bytes, of which 255 is 1, or floats
      in [0, 1].
    size: height and width to resize to; None to keep them.
    where: what gave them, for messages.

  Returns:
    float32 `[N, H, W, C]`.

  Raises:
    RefusedError: for another shape, type or range.
  """
  images = np.asarray(images)
  if images.ndim not in (3, 4) or not images.size:
    raise task.RefusedError(
      f'{where}: images has the shape {images.shape}; it must be [N, H, W] or '
      f'[N, H, W, C], and not empty'
    )
  if images.dtype == np.uint8:
    pixels = images.astype(np.float32) / 255
  elif images.dtype.kind == 'f':
    pixels = images.astype(np.float32)
  else:
    raise task.RefusedError(
      f'{where}: images is {images.dtype}; make it uint8 (0 to 255) or floats '
      f'in [0, 1]'
    )
  wrong = ~((pixels >= 0) & (pixels <= 1)).reshape(len(pixels), -1).all(axis=1)
  if wrong.any():
    raise task.RefusedError(
      f'{where}: image {np.flatnonzero(wrong)[0] + 1} has values outside '
      f'[0, 1]; scale the images, or make them uint8'
    )
  pixels = pixels[..., None] if pixels.ndim == 3 else pixels
  if size and pixels.shape[1:3] != size:
    pixels = np.stack([pictures.resize(image, size) for image in pixels])
  return pixels


def _read_arrays(path: str, size: Size | None, where: str) -> Examples:
  """The arrays `images` and `labels` of an NPZ file."""
  images, labels = _load(path, where)
  if labels.ndim != 1 or labels.dtype.kind not in 'iuUb':
    raise task.RefusedError(
      f'{where}: labels is {labels.dtype} of shape {labels.shape}; it must be '
      f'[N] of integers or text'
    )
  pixels = pixels_of(images, size, where)
  if len(labels) != len(pixels):
    raise task.RefusedError(
      f'{where}: has {len(pixels)} images and {len(labels)} labels; give as '
      f'many'
    )
  return pixels, labels.tolist()


def _load(path: str, where: str) -> tuple[np.ndarray, np.ndarray]:
  hint = 'write one with numpy.savez(path, images=..., labels=...)'
  try:
    with open(path, 'rb') as opened, np.load(opened) as file:
      return file['images'], file['labels']
  except OSError as error:
    reason = error.strerror or 'no NPZ file'
    raise task.RefusedError(
      f'{where}: cannot be read ({reason}); give an NPZ file or a folder of '
      f'images'
    ) from error
  except KeyError as error:
    names = ', '.join(file.files) or 'none'
    raise task.RefusedError(
      f'{where}: must have the arrays images and labels and has {names}; {hint}'
    ) from error
  except (ValueError, EOFError, TypeError, AttributeError) as error:
    raise task.RefusedError(
      f'{where}: is no NPZ file of plain arrays ({_first_words(error)}); {hint}'
    ) from error
  except zipfile.BadZipFile as error:
    raise task.RefusedError(
      f'{where}: is damaged ({error}); write it again'
    ) from error


def _first_words(error: Exception) -> str:
  """NumPy goes on to say how such a file could be loaded unsafely."""
  return str(error).partition('.')[0]


def _read_folder(path: Any, size: Size | None, where: str) -> Examples:
  images, names = pictures.read_classes(pathlib.Path(path), size, where)
  if len({image.shape[-1] for image in images}) > 1:
    images = [np.broadcast_to(i, (*i.shape[:2], 3)) for i in images]
  return np.stack(images).astype(np.float32) / 255, names


def _of_one_shape(
  parts: dict[str, Examples], where: str
) -> dict[str, Examples]:
  """Parts whose images have the same size, and as many channels."""
  channels = max(pixels.shape[-1] for pixels, _ in parts.values())
  shape = parts['train'][0].shape[1:3]
  for name, (pixels, _) in parts.items():
    if pixels.shape[1:3] != shape:
      raise task.RefusedError(
        f'{where}: the images of {name} have {pixels.shape[1:3]} pixels, those '
        f'of train {shape}; set task.kwargs.size, to which all are resized'
      )
  return {
    name: (np.broadcast_to(pixels, (*pixels.shape[:3], channels)), names)
    for name, (pixels, names) in parts.items()
  }


def _own(size: Size | None) -> Examples:
  from sklearn import datasets  # a second to import: only where it is used

  data = datasets.load_digits()
  return pixels_of(data.images / 16, size, 'digits'), data.target.tolist()
