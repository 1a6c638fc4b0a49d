"""The base class of tasks whose examples are in memory, in three parts."""

from collections.abc import Iterable
import pathlib
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from metalr_flax.tasks import arguments
from metalr_flax.tasks import digests
from metalr_flax.tasks import sampling
from metalr_flax.tasks import task

Arrays = dict[str, np.ndarray]


class InParts(task.Task):
  """Examples in a train, a meta and a test part, all on the device.

  Inner batches come from the train part, the outer loss's from the meta part,
  evaluation uses the whole test part.

  Attributes:
    input_name: the key of the model's input in a batch, set by derived classes.
    batch_size: B, examples in an inner batch.
    meta_batch_size: examples in the outer loss's batch.
    train, meta, test: `{input_name: float32 [N, ...], 'label': [N]}`.
  """

  input_name: str

  def __init__(
    self,
    parts: tuple[Arrays, Arrays, Arrays],
    *,
    batch_size: int,
    meta_batch_size: int | None,
    files: Iterable[str | pathlib.Path] = (),
  ):
    """Puts the parts on the device.

    Args:
      parts: the train, meta and test parts.
      batch_size: B, from 1 to the train part's size.
      meta_batch_size: the same of the meta part; unless given B, or the whole
        meta part where that is smaller.
      files: of the user, that the parts were read from.

    Raises:
      ValueError: for an argument outside these.
    """
    train, meta, _ = parts
    if meta_batch_size is None and isinstance(batch_size, int):
      meta_batch_size = min(batch_size, len(meta['label']))
    _check_size('task.batch_size', batch_size, len(train['label']))
    _check_size(
      'task.kwargs.meta_batch_size', meta_batch_size, len(meta['label'])
    )
    self.batch_size = batch_size
    self.meta_batch_size = meta_batch_size
    self._data_id = digests.id_of(files)
    self.train, self.meta, self.test = (
      {name: jnp.asarray(array) for name, array in part.items()}
      for part in parts
    )

  def init(self, rng: jax.Array) -> Any:
    """A stream of epochs of the train part, one of the meta part."""
    train_key, meta_key = jax.random.split(rng)
    return {
      'train': sampling.init_epochs(train_key, len(self.train['label'])),
      'meta': sampling.init_epochs(meta_key, len(self.meta['label'])),
      **self._data_id,
    }

  def next(self, data_state: Any) -> tuple[Any, Any]:
    """A batch of B examples of the train part."""
    stream, batch = sampling.next_batch(
      data_state['train'], self.train, self.batch_size
    )
    return {**data_state, 'train': stream}, batch

  def next_meta(self, data_state: Any) -> tuple[Any, Any]:
    """A batch of the meta part."""
    stream, batch = sampling.next_batch(
      data_state['meta'], self.meta, self.meta_batch_size
    )
    return {**data_state, 'meta': stream}, batch

  def outputs(
    self,
    model: nnx.Module,
    batch: Any,
    dropout_rate: jax.typing.ArrayLike | None = None,
  ) -> jax.Array:
    """What a model makes of a batch's inputs.

    Args:
      model: its call takes the inputs `[B, ...]`.
      batch: inputs and labels.
      dropout_rate: for a model whose call takes it, None for others.

    Raises:
      ValueError: for a dropout_rate outside [0, 1).
    """
    arguments.check_share('dropout_rate', dropout_rate)
    given = {} if dropout_rate is None else {'dropout_rate': dropout_rate}
    inputs = batch[self.input_name]
    try:
      return model(inputs, **given)
    except Exception as error:  # which inputs it was given explains most
      shape = ', '.join(['B', *map(str, inputs.shape[1:])])
      error.add_note(f'its inputs are {inputs.dtype} [{shape}]')
      raise

  def objective(self, model: nnx.Module, data_state: Any) -> jax.Array:
    """The loss's mean over the whole train part."""
    del data_state
    return self.loss(model, self.train)[0]

  def eval_batches(self) -> Iterable[Any]:
    """The test part in one batch."""
    return [self.test]


def _check_size(field: str, size: Any, examples: int) -> None:
  arguments.check_integer(field, size, 1)
  if size > examples:
    raise task.RefusedError(
      f'{field}={size}: must be at most {examples}, the examples of its part; '
      f'lower it'
    )
