"""The base class of tasks that classify a small data set."""

from collections.abc import Iterable, Mapping
import pathlib
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from metalr_flax.tasks import arguments
from metalr_flax.tasks import parts as parts_lib
from metalr_flax.tasks import splits
from metalr_flax.tasks import task

Arrays = parts_lib.Arrays


class Classification(parts_lib.InParts):
  """Classify the examples of a data set in three parts, all in memory.

  Attributes:
    classes: C, the labels being 0 to C - 1.
    train, meta, test: `{input_name: float32 [N, ...], 'label': int32 [N]}`.
  """

  loss_label = 'cross-entropy (nats)'

  def __init__(
    self,
    parts: tuple[Arrays, Arrays, Arrays],
    *,
    batch_size: int,
    meta_batch_size: int | None,
    files: Iterable[str | pathlib.Path] = (),
  ):
    """Puts the parts on the device, see `InParts`."""
    super().__init__(
      parts,
      batch_size=batch_size,
      meta_batch_size=meta_batch_size,
      files=files,
    )
    self.classes = 1 + max(int(part['label'].max()) for part in parts)

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
      label_smoothing: see `cross_entropy`.
      class_weights: see `cross_entropy`.
      dropout_rate: in [0, 1), for a model whose call takes it, see
        `models.dropout.GaussianDropout`.

    Raises:
      ValueError: for a value outside these, or logits of another shape.
    """
    logits = self.outputs(model, batch, dropout_rate)
    check_logits(logits, batch['label'], self.classes)
    return cross_entropy(
      logits,
      batch['label'],
      label_smoothing=label_smoothing,
      class_weights=class_weights,
    )


def check_logits(logits: jax.Array, labels: jax.Array, classes: int) -> None:
  """Refuses outputs that are not one number for each class.

  Args:
    logits: a model's outputs, to be `[B, classes]`.
    labels: `[B]`.
    classes: how many there are.

  Raises:
    RefusedError: saying how many the model must have.
  """
  if jnp.shape(logits) != (*labels.shape, classes):
    raise task.RefusedError(
      f'model.kwargs: the model gives outputs of shape {jnp.shape(logits)} for '
      f'{len(labels)} examples of {classes} classes; give it {classes} outputs'
    )


def cross_entropy(
  logits: jax.Array,
  labels: jax.Array,
  *,
  label_smoothing: jax.typing.ArrayLike | None = None,
  class_weights: Mapping[str, jax.typing.ArrayLike] | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Softmax cross-entropy in nats, mean over the batch, and accuracy.

  Args:
    logits: `[B, C]`.
    labels: int32 `[B]`, 0 to C - 1.
    label_smoothing: share of each label that is spread evenly over all
      classes, in [0, 1) (Szegedy et al. 2016,
      https://arxiv.org/abs/1512.00567).
    class_weights: the weight of an example in the mean by its class, `{'0':
      2.0}`; 1 for a class that is not named. Only their ratios matter.

  Raises:
    ValueError: for a value outside these, or a class that there is not.
  """
  arguments.check_share('label_smoothing', label_smoothing)
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  if label_smoothing is not None:
    even = -jnp.mean(jax.nn.log_softmax(logits), axis=-1)
    losses = losses + label_smoothing * (even - losses)
  accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == labels)
  mean = _weighted_mean(losses, labels, class_weights or {}, logits.shape[-1])
  return mean, {'accuracy': accuracy}


def _weighted_mean(
  losses: jax.Array,
  labels: jax.Array,
  class_weights: Mapping[str, jax.typing.ArrayLike],
  classes: int,
) -> jax.Array:
  """The mean of losses [B], each with the weight of its class."""
  if not class_weights:
    return jnp.mean(losses)
  if not isinstance(class_weights, Mapping):
    raise ValueError(
      f"class_weights: must be weights by class, as {{'0': 2.0}}, not "
      f'{class_weights!r}'
    )
  weights = jnp.ones_like(losses)
  for name, weight in class_weights.items():
    if not name.isdecimal() or int(name) >= classes:
      raise ValueError(
        f'class_weights: {name!r} is no class; they are 0 to {classes - 1}'
      )
    weights = jnp.where(labels == int(name), weight, weights)
  return jnp.sum(weights * losses) / jnp.sum(weights)


def split(
  data: Arrays, fractions: tuple[float, float], seed: int
) -> tuple[Arrays, Arrays, Arrays]:
  """Disjoint random parts, each class's share kept in all three.

  Args:
    data: arrays `[N, ...]`, among them `label`, int `[N]`.
    fractions: the meta and the test part's share of N, each > 0, together < 1.
    seed: of the split.

  Returns:
    The train, meta and test parts.

  Raises:
    ValueError: for other fractions, or too few examples of a class.
  """
  arguments.check_fractions(*fractions)
  train, meta, test = splits.divide(
    len(data['label']), data['label'], fractions, seed, 'the data'
  )
  return _rows(data, train), _rows(data, meta), _rows(data, test)


def _rows(data: Arrays, rows: np.ndarray) -> Arrays:
  return {name: array[rows] for name, array in data.items()}
