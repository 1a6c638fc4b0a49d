"""Language modelling, a byte or a character at a time, of a user's own text.

Without a path it is the Python manual's reference pages as the standard library
carries them (`pydoc_data.topics`, about 466 kB of English; each Python version
has its own text, so losses compare within one version alone). Some paragraphs
stand on two pages: about a twelfth of the test part's windows are in the train
part, too.
"""

from collections.abc import Iterable
from typing import Any

import chex
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from metalr_flax.tasks import arguments
from metalr_flax.tasks import digests
from metalr_flax.tasks import symbols
from metalr_flax.tasks import task
from metalr_flax.tasks import text_files

_EVAL_BATCH = 64
_SINGULAR = {'bytes': 'byte', 'characters': 'character'}


class Text(task.Task):
  """Predict the next symbol of a text cut into train, meta and test parts.

  The parts are contiguous, in this order: no window reaches from one into
  another. Inner batches are random windows of the train part, the outer loss's
  are random windows of the meta part; evaluation uses evenly spaced windows of
  the test part, the same for every seed.

  Shape legend: B batch_size, T sequence_length.

  Attributes:
    unit: 'bytes' or 'characters', what a symbol is.
    vocab_size: the number of symbols, at least the model's: 256 bytes, or the
      characters of the train part and one for all others.
    batch_size: windows in a batch.
    sequence_length: symbols predicted in a window.
    eval_sequences: windows to evaluate on.
    train, meta, test: the parts, integers of few bytes.
  """

  def __init__(
    self,
    batch_size: int = 16,
    *,
    path: str = '',
    unit: str = 'bytes',
    sequence_length: int = 64,
    meta_fraction: float = 0.1,
    test_fraction: float = 0.1,
    eval_sequences: int = 256,
  ):
    """Reads the text.

    Args:
      batch_size: B.
      path: a file of UTF-8 text, or a folder of them, which are joined in the
        order of their names; '' for the standard library's own.
      unit: 'bytes' or 'characters'.
      sequence_length: T >= 1.
      meta_fraction: the meta part's share of the text, in (0, 1).
      test_fraction: the test part's.
      eval_sequences: windows to evaluate on, >= 1.

    Raises:
      RefusedError: for a file that cannot be read, is not UTF-8, or leaves a
        part without a whole window.
      ValueError: for an argument outside these.
    """
    arguments.check_integer('sequence_length', sequence_length, 1)
    arguments.check_integer('eval_sequences', eval_sequences, 1)
    self.batch_size = batch_size
    self.sequence_length = sequence_length
    self.eval_sequences = eval_sequences
    if unit not in _SINGULAR:
      raise task.RefusedError(
        f"task.kwargs.unit={unit}: must be 'bytes' or 'characters'; set one"
      )
    self.unit = unit
    self.loss_label = f'cross-entropy (nats a {_SINGULAR[unit]})'
    arguments.check_fractions(meta_fraction, test_fraction)
    where = f'task.path={path}'
    text = text_files.read(path, where)
    whole: Any = text.encode() if unit == 'bytes' else text
    cuts = _cuts(len(whole), meta_fraction, test_fraction)
    parts = [whole[start:stop] for start, stop in cuts]
    self._check_lengths(parts, where)
    self._symbols = symbols.of(parts[0])
    self.vocab_size = self._symbols.size
    self._data_id = digests.id_of(text_files.files_of(path))
    self.train, self.meta, self.test = (
      jnp.asarray(self._symbols.encode(part)) for part in parts
    )

  def init(self, rng: jax.Array) -> Any:
    """A key for each of the train and meta parts."""
    train_key, meta_key = jax.random.split(rng)
    return {'train': train_key, 'meta': meta_key, **self._data_id}

  def next(self, data_state: Any) -> tuple[Any, Any]:
    """Windows of the train part: int32 [B, T] inputs and targets."""
    key, batch = self._draw(data_state['train'], self.train)
    return {**data_state, 'train': key}, batch

  def next_meta(self, data_state: Any) -> tuple[Any, Any]:
    """Windows of the meta part."""
    key, batch = self._draw(data_state['meta'], self.meta)
    return {**data_state, 'meta': key}, batch

  def loss(
    self, model: nnx.Module, batch: Any
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Cross-entropy in nats a symbol, also in bits, and accuracy; means.

    Args:
      model: maps int32 `[B, T]` to logits `[B, T, V]`, V at least `vocab_size`.
      batch: `inputs` and `targets`, int32 `[B, T]`.

    Raises:
      RefusedError: for a smaller V: it would make NaN of rare symbols alone.
    """
    logits, targets = model(batch['inputs']), batch['targets']
    chex.assert_shape(logits, (*targets.shape, None))
    if logits.shape[-1] < self.vocab_size:
      raise task.RefusedError(
        f'model.kwargs: the model knows {logits.shape[-1]} symbols, the text '
        f'has {self.vocab_size}; set model.kwargs.vocab_size={self.vocab_size}'
      )
    loss = jnp.mean(
      optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    )
    accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == targets)
    bits = f'bits_per_{_SINGULAR[self.unit]}'
    return loss, {'accuracy': accuracy, bits: loss / np.log(2)}

  def eval_batches(self) -> Iterable[Any]:
    """Evenly spaced windows of the test part, up to 64 in a batch."""
    last = len(self.test) - self.sequence_length - 1
    starts = np.linspace(0, last, self.eval_sequences).astype(np.int32)
    cuts = range(_EVAL_BATCH, len(starts), _EVAL_BATCH)
    for part in np.split(starts, list(cuts)):
      yield self._windows(self.test, jnp.asarray(part))

  def encode(self, data: str) -> np.ndarray:
    """A model's input for new text, int32 `[1, T]`.

    Args:
      data: T symbols; characters that the train part has not are all the same
        unknown one.
    """
    whole: Any = data.encode() if self.unit == 'bytes' else data
    return self._symbols.encode(whole)[None].astype(np.int32)

  def decode(self, outputs: Any) -> Any:
    """The most likely symbols, for logits `[T, V]` a text of T.

    Args:
      outputs: logits `[T, V]`, or `[B, T, V]`.

    Returns:
      The text, or for a batch a list of texts; the unknown character, and
      bytes that are no text, are written as U+FFFD.
    """
    best = np.asarray(outputs)[..., : self.vocab_size].argmax(axis=-1)
    if best.ndim == 2:
      return [self._symbols.decode(row) for row in best]
    return self._symbols.decode(best)

  def _check_lengths(self, parts: list[Any], where: str) -> None:
    least = self.sequence_length + 1
    for name, part in zip(('train', 'meta', 'test'), parts, strict=True):
      if len(part) < least:
        raise task.RefusedError(
          f'{where}: its {name} part has {len(part)} {self.unit} and must have '
          f'sequence_length + 1 = {least} at least; use a longer text or a '
          f'smaller task.kwargs.sequence_length'
        )

  def _draw(self, key: jax.Array, part: jax.Array) -> tuple[jax.Array, Any]:
    key, draw_key = jax.random.split(key)
    starts = jax.random.randint(
      draw_key, (self.batch_size,), 0, len(part) - self.sequence_length
    )
    return key, self._windows(part, starts)

  def _windows(self, part: jax.Array, starts: jax.Array) -> dict[str, Any]:
    """The T + 1 symbols from each start, as inputs and what follows them."""
    offsets = jnp.arange(self.sequence_length + 1)
    rows = starts[:, None] + offsets[None, :]
    windows = jnp.take(part, rows, axis=0).astype(jnp.int32)
    return {'inputs': windows[:, :-1], 'targets': windows[:, 1:]}


def _cuts(
  length: int, meta_fraction: float, test_fraction: float
) -> list[tuple[int, int]]:
  """Where the train, the meta and the test part start and stop."""
  meta, test = (round(length * f) for f in (meta_fraction, test_fraction))
  stops = [length - meta - test, length - test, length]
  return list(zip([0, *stops[:-1]], stops, strict=True))
