"""The base class of tasks that classify a small data set."""

from collections.abc import Iterable, Mapping
import numbers
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from metalr_flax.tasks import arguments
from metalr_flax.tasks import sampling
from metalr_flax.tasks import task

Arrays = dict[str, np.ndarray]


class Classification(task.Task):
  """Classify the examples of a data set in three parts, all in memory.

  Inner batches come from the train part, the outer loss's from the meta part,
  evaluation uses the whole test part.

  Attributes:
    input_name: the key of the model's input in a batch, set by derived classes.
    batch_size: B, examples in an inner batch.
    meta_batch_size: examples in the outer loss's batch.
    train, meta, test: `{input_name: float32 [N, ...], 'label': int32 [N]}`.
  """

  input_name: str
  loss_label = 'cross-entropy (nats)'

  def __init__(
    self,
    parts: tuple[Arrays, Arrays, Arrays],
    *,
    batch_size: int,
    meta_batch_size: int | None,
  ):
    """Puts the parts on the device.

    Args:
      parts: the train, meta and test parts.
      batch_size: B, from 1 to the train part's size.
      meta_batch_size: the same of the meta part; B unless given.

    Raises:
      ValueError: for an argument outside these.
    """
    self.batch_size = batch_size
    self.meta_batch_size = meta_batch_size or batch_size
    self.train, self.meta, self.test = (
      {name: jnp.asarray(array) for name, array in part.items()}
      for part in parts
    )
    for name, size, data in (
      ('batch_size', self.batch_size, self.train),
      ('meta_batch_size', self.meta_batch_size, self.meta),
    ):
      arguments.check_integer(name, size, 1)
      if size > len(data['label']):
        raise ValueError(f'{name} {size} > {len(data["label"])} examples')

  def init(self, rng: jax.Array) -> Any:
    """One stream of epochs for each of the train and meta parts."""
    train_key, meta_key = jax.random.split(rng)
    return {
      'train': sampling.init_epochs(train_key, len(self.train['label'])),
      'meta': sampling.init_epochs(meta_key, len(self.meta['label'])),
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
      label_smoothing: share of each label that is spread evenly over all
        classes, in [0, 1) (Szegedy et al. 2016,
        https://arxiv.org/abs/1512.00567).
      class_weights: the weight of an example in the mean by its class, `{'0':
        2.0}`; 1 for a class that is not named. Only their ratios matter.
      dropout_rate: in [0, 1), for a model whose call takes it, see
        `models.dropout.GaussianDropout`.

    Raises:
      ValueError: for a value outside these, or a class that there is not.
    """
    _check_share('label_smoothing', label_smoothing)
    _check_share('dropout_rate', dropout_rate)
    given = {} if dropout_rate is None else {'dropout_rate': dropout_rate}
    logits, labels = model(batch[self.input_name], **given), batch['label']
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if label_smoothing is not None:
      even = -jnp.mean(jax.nn.log_softmax(logits), axis=-1)
      losses = losses + label_smoothing * (even - losses)
    accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == labels)
    mean = _weighted_mean(losses, labels, class_weights or {}, logits.shape[-1])
    return mean, {'accuracy': accuracy}

  def objective(self, model: nnx.Module, data_state: Any) -> jax.Array:
    """The cross-entropy's mean over the whole train part."""
    del data_state
    return self.loss(model, self.train)[0]

  def eval_batches(self) -> Iterable[Any]:
    """The test part in one batch."""
    return [self.test]


def _check_share(name: str, value: Any) -> None:
  """Refuses a fixed share outside [0, 1); a learned one is an array."""
  if value is None or isinstance(value, jax.Array):
    return
  if not isinstance(value, numbers.Real) or not 0 <= float(value) < 1:
    raise ValueError(f'{name}: must be a number >= 0 and < 1, not {value!r}')


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
  from sklearn import model_selection  # slow to import: only where it is used

  meta_fraction, test_fraction = fractions
  arguments.check_fractions(meta_fraction, test_fraction)
  rest, test = model_selection.train_test_split(
    np.arange(len(data['label'])),
    test_size=test_fraction,
    stratify=data['label'],
    random_state=seed,
  )
  train, meta = model_selection.train_test_split(
    rest,
    test_size=meta_fraction / (1 - test_fraction),
    stratify=data['label'][rest],
    random_state=seed,
  )
  return _rows(data, train), _rows(data, meta), _rows(data, test)


def _rows(data: Arrays, rows: np.ndarray) -> Arrays:
  return {name: array[rows] for name, array in data.items()}
