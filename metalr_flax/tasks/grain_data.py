"""Batches through Grain: shuffled epochs of shards, or of a user's dataset."""

from collections.abc import Callable, Iterator, Sequence
import sys
from types import ModuleType
from typing import Any

import numpy as np

from metalr_flax.tasks import records

Arrays = dict[str, np.ndarray]


def _library() -> ModuleType:
  try:
    import grain
  except ImportError as error:
    raise ValueError(
      f'streams need the package grain ({error}); '
      f"pip install 'metalr_flax[data]'"
    ) from error
  return grain


def iterate(dataset: Any) -> Any:
  """Iterates over a MapDataset in the thread that asks, nothing read ahead.

  Grain's own default reads 500 elements ahead, whatever their size.

  Args:
    dataset: a `grain.MapDataset`.

  Returns:
    Its `grain.DatasetIterator`.
  """
  options = _library().ReadOptions(num_threads=0, prefetch_buffer_size=0)
  return iter(dataset.to_iter_dataset(options))


def of_shards(
  shards: records.Shards,
  *,
  batch_size: int,
  seed: int,
  share: tuple[int, int],
  window_bytes: int,
) -> Any:
  """Shuffled batches of all records, epoch after epoch without an end.

  The blocks of the shards come in a random order, another in each epoch, and
  the records are shuffled within windows of several blocks. What an epoch has
  left over goes into the first batch of the next.

  Args:
    shards: the records.
    batch_size: B, records in a batch.
    seed: of the order.
    share: `(index, count)`: every count-th block, from the index-th on.
    window_bytes: the size of a window; of one block at least.

  Returns:
    A `grain.DatasetIterator` of arrays [B, ...] by name.

  Raises:
    ValueError: where the share has less than a batch.
  """
  grain, (index, count) = _library(), share
  blocks = range(len(shards.blocks))[index::count]
  mine = sum(shards.blocks[b][2] - shards.blocks[b][1] for b in blocks)
  _check_enough(mine, batch_size, share)

  def window(places: Sequence[int], rng: np.random.Generator) -> Arrays:
    rows = shards.read(places)
    order = rng.permutation(len(next(iter(rows.values()))))
    return {name: array[order] for name, array in rows.items()}

  windows = (
    grain.MapDataset.source(blocks)
    .seed(seed)
    .shuffle()
    .batch(max(1, window_bytes // shards.block_bytes), batch_fn=list)
    .random_map(window)
    .repeat()
  )
  options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
  return iter(
    grain.experimental.RebatchIterDataset(
      windows.to_iter_dataset(options), batch_size, drop_remainder=True
    )
  )


def of_dataset(
  dataset: Any, *, batch_size: int, seed: int, share: tuple[int, int]
) -> Any:
  """Batches of a user's dataset of examples.

  Args:
    dataset: a `grain.MapDataset` of one epoch, which is shuffled, batched and
      repeated; or a `grain.IterDataset` without an end, batched as it is.
    batch_size: B, examples in a batch.
    seed: of the order.
    share: `(index, count)`: every count-th example, from the index-th on.

  Returns:
    A `grain.DatasetIterator` of batches.

  Raises:
    ValueError: where there is less than a batch, or no way to share.
  """
  index, count = share
  if not hasattr(dataset, 'to_iter_dataset'):
    if count > 1:
      raise ValueError(
        f'a grain.IterDataset cannot be shared by {count} processes; return a '
        f'grain.MapDataset'
      )
    return iter(dataset.batch(batch_size, drop_remainder=True))
  if len(dataset) >= sys.maxsize:
    raise ValueError(
      'the grain.MapDataset repeats itself; return one epoch, without repeat()'
    )
  mine = dataset[index::count]
  _check_enough(len(mine), batch_size, share)
  shuffled = mine.seed(seed).shuffle()
  return iterate(shuffled.batch(batch_size, drop_remainder=True).repeat())


def check_dataset(dataset: Any) -> None:
  """Refuses what is no dataset of Grain.

  Raises:
    ValueError: saying what it is.
  """
  grain = _library()
  if not isinstance(dataset, (grain.MapDataset, grain.IterDataset)):
    raise ValueError(
      f'returns a {type(dataset).__name__}; it must return a grain.MapDataset '
      f'or grain.IterDataset of examples'
    )


def in_order(dataset: Any) -> Iterator[Any]:
  """The examples of a dataset as it is."""
  lazy = hasattr(dataset, 'to_iter_dataset')
  return iterate(dataset) if lazy else iter(dataset)


def _check_enough(found: int, batch_size: int, share: tuple[int, int]) -> None:
  if found >= batch_size:
    return
  index, count = share
  of = f' for process {index} of {count}' if count > 1 else ''
  raise ValueError(
    f'there are {found} examples{of}, fewer than a batch of {batch_size}; '
    f'lower task.batch_size'
  )


def digits(split: str, seed: int) -> Any:
  """Scikit-learn's handwritten digits: 70 % 'train', 10 % 'meta', 20 % 'test'.

  An example of a dataset for the task `stream`; see configs/stream.py.

  Args:
    split: which part.
    seed: of the run; the parts are the same for each.

  Returns:
    A `grain.MapDataset` of `{'image': float32 [8, 8, 1] in [0, 1], 'label':
    int32 scalar}`.
  """
  from sklearn import datasets  # a second to import: only where it is used

  del seed
  data = datasets.load_digits()
  images = (data.images[..., None] / 16).astype(np.float32)
  labels = data.target.astype(np.int32)
  order = np.random.default_rng(0).permutation(len(labels))
  cuts = [round(0.7 * len(order)), round(0.8 * len(order))]
  rows = dict(
    zip(('train', 'meta', 'test'), np.split(order, cuts), strict=True)
  )[split]
  example: Callable[[int], dict[str, Any]] = lambda row: {
    'image': images[row],
    'label': labels[row],
  }
  return _library().MapDataset.source(rows).map(example)
