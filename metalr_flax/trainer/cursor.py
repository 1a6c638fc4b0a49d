"""A cursor: a place in a stream's batches that can be saved and found again."""

import base64
from collections.abc import Iterable, Iterator
import itertools
import json
import pathlib
import traceback
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metalr_flax import errors
from metalr_flax import tasks
from metalr_flax.tasks import grain_data

PyTree = Any
# JSON: `state` of the iterator (None for the start), and batches to skip then.
Position = dict[str, Any]
START: Position = {'state': None, 'skip': 0}


class BadBatchError(Exception):
  """A stream gave no batch, or one that cannot be trained on."""


class Cursor:
  """Reads the batches of a split, from any position on.

  Attributes:
    split: its name.
    stateful: whether the iterator's own state is saved; where it has none, a
      position is a number of batches from the start.
  """

  def __init__(self, task: tasks.Stream, split: str, seed: int):
    """Opens the split at its start.

    Args:
      task: the stream.
      split: 'train' or 'meta'.
      seed: the run's.

    Raises:
      BadBatchError: where `batches` returns nothing to iterate over.
    """
    self.split = split
    self._open = lambda: _iterator(task.batches(split, seed))
    self._iterator = self._open()
    self._drawn = 0  # since the start, or since the state it was set to
    self.stateful = _encoded(self._iterator) is not None

  def next(self) -> PyTree:
    """The next batch: a pytree of NumPy arrays.

    Raises:
      BadBatchError: where there is none, or it does not hold numbers.
    """
    try:
      batch = next(self._iterator)
    except StopIteration:
      raise BadBatchError(self._ended()) from None
    self._drawn += 1
    return to_arrays(batch)

  @property
  def position(self) -> Position:
    """Where the next batch is; JSON values."""
    if self.stateful:
      return {'state': _encoded(self._iterator), 'skip': 0}
    return {'state': None, 'skip': self._drawn}

  def seek(self, position: Position) -> None:
    """Goes to a position.

    Raises:
      BadBatchError: where the stream ends before it.
    """
    state = position['state']
    if state is None:
      self._iterator = self._open()
    else:
      self._iterator.set_state(_decoded(state))  # type: ignore[attr-defined]
    self._drawn = 0
    for _ in itertools.islice(self._iterator, position['skip']):
      self._drawn += 1
    if self._drawn < position['skip']:
      raise BadBatchError(self._ended())

  def _ended(self) -> str:
    if not self._drawn and not self.stateful:
      return 'there is none; a batch needs more examples than there are?'
    return (
      f'they end after {self._drawn} more; make them go on through epochs '
      f'without an end'
    )


def _iterator(batches: Iterable[PyTree]) -> Iterator[PyTree]:
  if hasattr(batches, 'to_iter_dataset'):  # a grain.MapDataset
    return grain_data.iterate(batches)
  try:
    return iter(batches)
  except TypeError:
    raise BadBatchError(
      f'batches() returns a {type(batches).__name__}, not an iterable of '
      f'batches'
    ) from None


def to_arrays(batch: PyTree) -> PyTree:
  """A batch as NumPy arrays, in dtypes that JAX has.

  Raises:
    BadBatchError: where it does not hold numbers.
  """
  return jax.tree_util.tree_map_with_path(_array, batch)


def _array(path: Any, leaf: Any) -> np.ndarray:
  array = np.asarray(leaf)
  number = jnp.issubdtype(array.dtype, np.number)
  if not number and array.dtype != np.bool_:
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    raise BadBatchError(
      f'{name or "a batch"} holds {_kind(array)}, not numbers; convert it'
    )
  dtype = jax.dtypes.canonicalize_dtype(array.dtype)
  return array.astype(dtype, copy=False)


def _kind(array: np.ndarray) -> str:
  if array.dtype.kind in 'USa':
    return 'text'
  example = array.reshape(-1)[0] if array.size else None
  return f'objects ({type(example).__name__})'


def _encoded(iterator: Iterator) -> Any:
  """An iterator's state as JSON values; None where it has none such."""
  if not hasattr(iterator, 'get_state') or not hasattr(iterator, 'set_state'):
    return None
  state = iterator.get_state()
  if isinstance(state, bytes):
    return {'base64': base64.b64encode(state).decode()}
  try:
    plain = json.loads(json.dumps(state, default=int))
    return {'json': plain} if plain == state else None
  except (TypeError, ValueError):
    return None


def _decoded(state: dict[str, Any]) -> Any:
  if 'base64' in state:
    return base64.b64decode(state['base64'])
  return json.loads(json.dumps(state['json']))  # a copy: it may be changed


def describe(error: BaseException) -> str:
  """What a stream's own code raised, in one line with its place."""
  if isinstance(error, BadBatchError):
    return errors.text_of(error)
  text = errors.text_of(error).partition('\n')[0]
  if isinstance(error, ValueError):
    return text
  frame = traceback.extract_tb(error.__traceback__)[-1]
  place = f'{pathlib.Path(frame.filename).name}:{frame.lineno}'
  return f'{type(error).__name__}: {text} ({place})'
