"""The streams of a run: what they hold, and feeds filled from them.

Where a run has several processes, each reads batches of its own, its share of
the batches that all train on.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import hashlib
from typing import Any

import jax
import numpy as np

from metalr_flax import errors
from metalr_flax import tasks
from metalr_flax.trainer import cursor as cursor_lib
from metalr_flax.trainer import feed as feed_lib

PyTree = Any
# Four feeds at once: one in use, one that waits, one that is filled, and its
# copy on the device. The rest is for what the stream itself holds.
_FEEDS_IN_BUFFER = 16
Positions = dict[str, cursor_lib.Position]


class Streams:
  """The iterators that a stream task's batches are read from.

  Attributes:
    spec: what the feeds of all processes together are made of.
    notes: what a user should know of them, lines for the console.
    look: a digest of the first training batch, to tell two processes' apart.
  """

  def __init__(self, task: tasks.Stream, config: Mapping[str, Any]):
    """Opens them and looks at the first batch of each.

    Args:
      task: the stream.
      config: the run's, resolved.

    Raises:
      ConfigError: where there is no batch, or none that can be trained on.
    """
    self._name = config['task']['name']
    self._buffer_bytes = task.buffer_bytes
    self._cursors = {}
    self._shapes = {}
    self.notes = []
    self.look = ''
    for split in _per_step(config):
      with _refused(self._name, split):
        cursor = cursor_lib.Cursor(task, split, config['seed'])
        self._shapes[split], look, notes = _look(cursor)
      self._cursors[split] = cursor
      self.look = self.look or look
      self.notes += [f'{split} batches of {self._name} {n}' for n in notes]
    count = jax.process_count()
    self.spec = feed_lib.Spec(
      per_step=_per_step(config),
      shapes=jax.tree.map(lambda s: _of_all(s, count), self._shapes),
    )
    self._mine = dataclasses.replace(self.spec, shapes=self._shapes)

  def max_rows(self, limit: int) -> int:
    """The longest chunk whose feeds keep to the buffer; at most `limit`."""
    budget = self._buffer_bytes // _FEEDS_IN_BUFFER
    return max(1, min(limit, budget // self._mine.step_bytes))

  @property
  def positions(self) -> Positions:
    """Where the next batches are, by split; JSON values."""
    return {split: c.position for split, c in self._cursors.items()}

  def seek(self, positions: Positions) -> None:
    """Goes to other positions.

    Raises:
      DataError: where they cannot be found.
    """
    for split, cursor in self._cursors.items():
      with self._failed(split):
        cursor.seek(positions[split])

  def later(self, positions: Positions, steps: int) -> Positions:
    """The positions some outer steps after those given."""
    return {
      split: {**positions[split], 'skip': positions[split]['skip'] + steps * n}
      for split, n in self.spec.per_step.items()
    }

  def fill(
    self,
    rows: int,
    step: int,
    count: int,
    *,
    go_on: Callable[[], bool] = lambda: True,
  ) -> feed_lib.Feed | None:
    """Fills a feed, in memory of its own, with the next batches.

    Args:
      rows: outer steps that it has room for.
      step: outer steps done before it.
      count: outer steps to fill it for.
      go_on: asked before each batch.

    Returns:
      This process's share of the feed, on the host; None where it was not to
      go on.

    Raises:
      DataError: where a batch cannot be read, or is not like the first.
    """
    per_step = self.spec.per_step
    feed = jax.tree.map(
      lambda s: np.zeros(s.shape, s.dtype), self._mine.of_rows(rows)
    ).replace(
      step=np.int32(step),
      first={split: np.int32(step * n) for split, n in per_step.items()},
    )
    for split, n in per_step.items():
      with self._failed(split):
        for row in range(count * n):
          if not go_on():
            return None
          batch = self._cursors[split].next()
          _put(batch, feed.batches[split], row, self._shapes[split])
    return feed

  def first(self, count: int) -> feed_lib.Feed:
    """The feed of the first outer steps, on the device.

    Raises:
      DataError: see `fill`.
    """
    return jax.device_put(self.fill(count, 0, count))

  @contextlib.contextmanager
  def _failed(self, split: str) -> Iterator[None]:
    """Turns what a stream raises in the middle of a run into a DataError."""
    try:
      yield
    except Exception as error:  # of the user's own code
      raise errors.DataError(
        f'task.name={self._name}: its {split} batches: '
        f'{cursor_lib.describe(error)}'
      ) from error


def eval_batches(task: tasks.Stream, name: str) -> list[PyTree]:
  """What a stream is evaluated on, read into memory.

  Args:
    task: the stream.
    name: its name in the config.

  Raises:
    ConfigError: where it cannot be read.
  """
  with _refused(name, 'test'):
    return [cursor_lib.to_arrays(batch) for batch in task.eval_batches()]


@contextlib.contextmanager
def _refused(name: str, split: str) -> Iterator[None]:
  """Turns what a stream raises before the run into a ConfigError."""
  try:
    yield
  except tasks.RefusedError as error:
    raise errors.ConfigError(errors.text_of(error)) from error
  except (cursor_lib.BadBatchError, ValueError, OSError) as error:
    raise errors.ConfigError(
      f'task.name={name}: its {split} batches: {cursor_lib.describe(error)}'
    ) from error


def _per_step(config: Mapping[str, Any]) -> dict[str, int]:
  """The batches that an outer step draws of each split."""
  meta = config['meta']
  drawn = {'train': meta['unroll_length']}
  if meta['estimator'] != 'none' and meta['objective'] == 'held_out':
    drawn['meta'] = 1
  return drawn


def _of_all(shape: jax.ShapeDtypeStruct, count: int) -> jax.ShapeDtypeStruct:
  """The shape of what `count` processes have a share of each; scalars alike."""
  if not shape.shape:
    return shape
  first, *rest = shape.shape
  return jax.ShapeDtypeStruct((first * count, *rest), shape.dtype)


def _look(cursor: cursor_lib.Cursor) -> tuple[PyTree, str, list[str]]:
  """Shapes of a split's batches, a digest; the cursor is where it was."""
  start = cursor.position
  batch = cursor.next()
  cursor.seek(start)
  shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), batch)
  if not jax.tree.leaves(shapes):
    raise cursor_lib.BadBatchError('a batch has no arrays; give it some')
  sha = hashlib.sha256(b''.join(a.tobytes() for a in jax.tree.leaves(batch)))
  notes = [] if cursor.stateful else _notes(cursor, batch)
  return shapes, sha.hexdigest(), notes


def _notes(cursor: cursor_lib.Cursor, batch: PyTree) -> list[str]:
  """What resuming means for an iterator whose state cannot be saved."""
  start = cursor.position
  again = cursor.next()
  cursor.seek(start)
  skips = 'have no state to save: a resumed run reads them again from the first'
  if jax.tree.all(jax.tree.map(_same, batch, again)):
    return [skips]
  return [
    skips,
    'differ each time they are read, and so will a resumed run; make them '
    'from the seed alone',
  ]


def _same(one: np.ndarray, other: np.ndarray) -> bool:
  return one.shape == other.shape and one.tobytes() == other.tobytes()


def _put(batch: PyTree, into: PyTree, row: int, shapes: PyTree) -> None:
  """Writes a batch into a row of a feed, if it is like the first."""
  found = jax.tree_util.tree_leaves_with_path(batch)
  wanted = jax.tree_util.tree_leaves_with_path(shapes)
  if [path for path, _ in found] != [path for path, _ in wanted]:
    raise cursor_lib.BadBatchError(
      'a batch has other arrays than the first had; give each the same'
    )
  for (path, leaf), (_, shape), rows in zip(
    found, wanted, jax.tree.leaves(into), strict=True
  ):
    if (leaf.shape, leaf.dtype) != (shape.shape, shape.dtype):
      name = jax.tree_util.keystr(path, simple=True, separator='/')
      raise cursor_lib.BadBatchError(
        f'{name or "a batch"} is {leaf.dtype}{list(leaf.shape)} and was '
        f'{shape.dtype}{list(shape.shape)} in the first; make all alike, '
        f'without the remainder of an epoch'
      )
    rows[row] = leaf
