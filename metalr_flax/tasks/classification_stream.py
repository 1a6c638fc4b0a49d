"""The built-in stream: classifies examples of shards or of Grain's datasets."""

from collections.abc import Callable, Iterable, Mapping
import importlib
import itertools
from typing import Any

from flax import nnx
import jax
import numpy as np

from metalr_flax.tasks import arguments
from metalr_flax.tasks import classification
from metalr_flax.tasks import grain_data
from metalr_flax.tasks import records
from metalr_flax.tasks import stream
from metalr_flax.tasks import task

# A window of records is held as records, as one string of them, and shuffled.
_WINDOWS_IN_BUFFER = 16


class ClassificationStream(stream.Stream):
  """Classify examples that are read as the run goes, of any amount.

  They come from ArrayRecord shards (`path`) or from a function of the user's
  that returns a dataset of Grain (`dataset`). Each process reads a share of its
  own. For another loss derive a class of your own from it.

  Attributes:
    batch_size: B, examples in an inner batch and in the outer loss's.
    input_name: the field of the model's input; `label` is that of the classes.
    eval_examples: examples of the split 'test' to evaluate on.
    buffer_bytes: see `Stream`; the shards' shuffling is within it, too.
  """

  loss_label = 'cross-entropy (nats)'

  def __init__(
    self,
    batch_size: int = 32,
    *,
    path: str = '',
    dataset: str = '',
    input_name: str = 'image',
    eval_examples: int = 1000,
    buffer_mb: int = 64,
  ):
    """Finds the data; nothing is read yet.

    Args:
      batch_size: B.
      path: the shards: a folder that has `train*.array_record`, `meta*` and
        `test*`, or a pattern with `{split}` for the split's name. They are
        written by `metalr_flax.tasks.records.write`.
      dataset: instead of a path `package.module:function`; called as
        `function(split, seed)` with the split 'train', 'meta' or 'test', it
        returns its examples: a `grain.MapDataset` of one epoch, or a
        `grain.IterDataset` without an end. For 'test', where the seed is 0, it
        may return None.
      input_name: the field of the model's input.
      eval_examples: how many of 'test' to evaluate on, >= 1: they are held in
        memory.
      buffer_mb: megabytes for what is read ahead.

    Raises:
      ValueError: for arguments outside these, or no shards for training.
    """
    arguments.check_integer('eval_examples', eval_examples, 1)
    arguments.check_integer('buffer_mb', buffer_mb, 1)
    if bool(path) == bool(dataset):
      raise task.RefusedError(
        f'task.path={path}: and task.kwargs.dataset={dataset}: must be one of '
        f'them; give a path of shards, or a function that returns a dataset'
      )
    self.batch_size = batch_size
    self.input_name = input_name
    self.eval_examples = eval_examples
    self.buffer_bytes = buffer_mb * 2**20
    self._path, self._name = path, dataset
    if path:
      self._find('train')
    else:
      self._function = _import(dataset)

  def batches(
    self, split: str, seed: int, share: tuple[int, int] | None = None
  ) -> Iterable[Any]:
    """Shuffled batches of a split without an end.

    Args:
      split: 'train' or 'meta'.
      seed: of the order.
      share: `(index, count)` of the process; this one's unless given.

    Raises:
      ValueError: where there is no data or less than a batch.
    """
    if share is None:
      share = jax.process_index(), jax.process_count()
    given: dict[str, Any] = {
      'batch_size': self.batch_size, 'seed': seed, 'share': share
    }  # fmt: skip
    if self._path:
      window = self.buffer_bytes // _WINDOWS_IN_BUFFER
      shards = records.Shards(self._find(split))
      return grain_data.of_shards(shards, window_bytes=window, **given)
    return grain_data.of_dataset(self._dataset(split, seed), **given)

  def loss(
    self,
    model: nnx.Module,
    batch: Any,
    *,
    label_smoothing: jax.typing.ArrayLike | None = None,
    class_weights: Mapping[str, jax.typing.ArrayLike] | None = None,
    dropout_rate: jax.typing.ArrayLike | None = None,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Softmax cross-entropy in nats, mean over the batch, and accuracy.

    Args:
      model: maps the batch's inputs to logits [B, C].
      batch: inputs and labels.
      label_smoothing: see `classification.cross_entropy`.
      class_weights: see `classification.cross_entropy`.
      dropout_rate: in [0, 1), for a model whose call takes it, see
        `models.dropout.GaussianDropout`.

    Raises:
      ValueError: for a value outside these, or a batch without these fields.
    """
    arguments.check_share('dropout_rate', dropout_rate)
    given = {} if dropout_rate is None else {'dropout_rate': dropout_rate}
    return classification.cross_entropy(
      model(_field(batch, self.input_name), **given),
      _field(batch, 'label'),
      label_smoothing=label_smoothing,
      class_weights=class_weights,
    )

  def eval_batches(self) -> Iterable[Any]:
    """The first examples of 'test', B in a batch; none where there are none."""
    examples = itertools.islice(self._test(), self.eval_examples)
    while batch := [*itertools.islice(examples, self.batch_size)]:
      yield jax.tree.map(lambda *rows: np.stack(rows), *batch)

  def _test(self) -> Iterable[Any]:
    if self._path:
      paths = records.find(self._path, 'test')
      return _rows(records.Shards(paths)) if paths else ()
    dataset = self._function('test', 0)
    if dataset is None:
      return ()
    return grain_data.in_order(self._dataset('test', 0))

  def _dataset(self, split: str, seed: int) -> Any:
    dataset = self._function(split, seed)
    try:
      grain_data.check_dataset(dataset)
    except ValueError as error:
      raise task.RefusedError(
        f'task.kwargs.dataset={self._name}: {error}'
      ) from error
    return dataset

  def _find(self, split: str) -> list[str]:
    paths = records.find(self._path, split)
    if not paths:
      raise task.RefusedError(
        f'task.path={self._path}: has no shard of the split {split} '
        f'({split}*{records.SUFFIX}, or its pattern); write some with '
        f'metalr_flax.tasks.records.write'
      )
    return paths


def _field(batch: Any, name: str) -> Any:
  if isinstance(batch, Mapping) and name in batch:
    return batch[name]
  shown = ', '.join(batch) if isinstance(batch, Mapping) else type(batch)
  raise task.RefusedError(
    f'task.kwargs.input_name: an example has {shown}, and no {name}; name the '
    f"model's input there, and call the class label"
  )


def _rows(shards: records.Shards) -> Iterable[dict[str, np.ndarray]]:
  """The examples of shards, in order."""
  for block in range(len(shards.blocks)):
    arrays = shards.read([block])
    for row in range(len(next(iter(arrays.values())))):
      yield {name: array[row] for name, array in arrays.items()}


def _import(name: str) -> Callable[[str, int], Any]:
  module, _, function = name.partition(':')
  try:
    found = getattr(importlib.import_module(module), function)
  except (ImportError, AttributeError, ValueError) as error:
    raise task.RefusedError(
      f'task.kwargs.dataset={name}: cannot be imported ({error}); write it as '
      f'package.module:function, its folder the current one or on PYTHONPATH'
    ) from error
  if not callable(found):
    raise task.RefusedError(
      f'task.kwargs.dataset={name}: is no function; name one'
    )
  return found
