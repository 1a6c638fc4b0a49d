"""Language modelling, a byte at a time, of text that needs no download.

Without a file it is the Python manual's reference pages as the standard library
carries them (`pydoc_data.topics`, about 466 kB of English; each Python version
has its own text, so losses compare within one version alone). Some paragraphs
stand on two pages: about a twelfth of the test part's windows are in the train
part, too.
"""

from collections.abc import Iterable
import pathlib
from typing import Any

import chex
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from metalr_flax.tasks import arguments
from metalr_flax.tasks import task

_EVAL_BATCH = 64


class Text(task.Task):
  """Predict the next byte of a text cut into train, meta and test parts.

  The parts are contiguous, in this order: no window reaches from one into
  another. Inner batches are random windows of the train part, the outer loss's
  are random windows of the meta part; evaluation uses evenly spaced windows of
  the test part, the same for every seed.

  Shape legend: B batch_size, T sequence_length.

  Attributes:
    vocab_size: 256, one symbol for each byte: the model's `vocab_size`.
    batch_size: windows in a batch.
    sequence_length: bytes predicted in a window.
    eval_sequences: windows to evaluate on.
    train, meta, test: the parts, uint8.
  """

  vocab_size = 256
  loss_label = 'cross-entropy (nats a byte)'

  def __init__(
    self,
    batch_size: int = 16,
    *,
    path: str = '',
    sequence_length: int = 64,
    meta_fraction: float = 0.1,
    test_fraction: float = 0.1,
    eval_sequences: int = 256,
  ):
    """Reads the text.

    Args:
      batch_size: B.
      path: a file of UTF-8 text; '' for the standard library's own.
      sequence_length: T >= 1.
      meta_fraction: the meta part's share of the text, in (0, 1).
      test_fraction: the test part's.
      eval_sequences: windows to evaluate on, >= 1.

    Raises:
      ValueError: for an argument outside these, or a file that cannot be read,
        is not UTF-8, or leaves a part without a whole window.
    """
    arguments.check_integer('sequence_length', sequence_length, 1)
    arguments.check_integer('eval_sequences', eval_sequences, 1)
    self.batch_size = batch_size
    self.sequence_length = sequence_length
    self.eval_sequences = eval_sequences
    parts = _split(_read(path), meta_fraction, test_fraction)
    for name, part in zip(('train', 'meta', 'test'), parts, strict=True):
      if len(part) <= sequence_length:
        raise ValueError(
          f'{path or "pydoc_data.topics"}: its {name} part has {len(part)} '
          f'bytes and must have sequence_length + 1 = {sequence_length + 1} at '
          f'least; use a longer text or a smaller sequence_length'
        )
    self.train, self.meta, self.test = parts

  def init(self, rng: jax.Array) -> Any:
    """A key for each of the train and meta parts."""
    train_key, meta_key = jax.random.split(rng)
    return {'train': train_key, 'meta': meta_key}

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
    """Cross-entropy in nats a byte, also in bits, and accuracy; means.

    Args:
      model: maps int32 `[B, T]` to logits `[B, T, V]`, V at least 256.
      batch: `inputs` and `targets`, int32 `[B, T]`.

    Raises:
      ValueError: for a smaller V, for it would make NaN of rare bytes alone.
    """
    logits, targets = model(batch['inputs']), batch['targets']
    chex.assert_shape(logits, (*targets.shape, None))
    if logits.shape[-1] < self.vocab_size:
      raise ValueError(
        f'the model knows {logits.shape[-1]} symbols of {self.vocab_size}; set '
        f'model.kwargs.vocab_size={self.vocab_size}'
      )
    loss = jnp.mean(
      optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    )
    accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == targets)
    return loss, {'accuracy': accuracy, 'bits_per_byte': loss / np.log(2)}

  def eval_batches(self) -> Iterable[Any]:
    """Evenly spaced windows of the test part, up to 64 in a batch."""
    last = len(self.test) - self.sequence_length - 1
    starts = np.linspace(0, last, self.eval_sequences).astype(np.int32)
    cuts = range(_EVAL_BATCH, len(starts), _EVAL_BATCH)
    for part in np.split(starts, list(cuts)):
      yield self._windows(self.test, jnp.asarray(part))

  def _draw(self, key: jax.Array, part: jax.Array) -> tuple[jax.Array, Any]:
    key, draw_key = jax.random.split(key)
    starts = jax.random.randint(
      draw_key, (self.batch_size,), 0, len(part) - self.sequence_length
    )
    return key, self._windows(part, starts)

  def _windows(self, part: jax.Array, starts: jax.Array) -> dict[str, Any]:
    """The T + 1 bytes from each start, as inputs and what follows them."""
    offsets = jnp.arange(self.sequence_length + 1)
    rows = starts[:, None] + offsets[None, :]
    windows = jnp.take(part, rows, axis=0).astype(jnp.int32)
    return {'inputs': windows[:, :-1], 'targets': windows[:, 1:]}


def _read(path: str) -> bytes:
  if not path:
    from pydoc_data import topics  # half a megabyte: only where it is used

    return ''.join(
      topics.topics[name] for name in sorted(topics.topics)
    ).encode()
  try:
    text = pathlib.Path(path).read_bytes()
    text.decode()
  except OSError as error:
    raise ValueError(
      f'{path}: cannot be read ({error.strerror}); give a file of UTF-8 text'
    ) from error
  except UnicodeDecodeError as error:
    raise ValueError(
      f'{path}: is not UTF-8 text (byte {error.start}); convert it'
    ) from error
  return text


def _split(
  text: bytes, meta_fraction: float, test_fraction: float
) -> tuple[jax.Array, ...]:
  arguments.check_fractions(meta_fraction, test_fraction)
  data = np.frombuffer(text, np.uint8)
  meta = round(len(data) * meta_fraction)
  test = round(len(data) * test_fraction)
  cuts = (len(data) - meta - test, len(data) - test)
  return tuple(jnp.asarray(part) for part in np.split(data, cuts))
