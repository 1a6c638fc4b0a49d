"""Tasks on which the best value of a hyperparameter of the loss is known.

The data are made afresh for each batch, or a closed form says what the best
value is for the data there are; so what is found can be told right or wrong.
"""

from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from metalr_flax import tasks
from metalr_flax.models import dropout
from metalr_flax.tasks import classification

Pair = tuple[Any, Any]


class _Fresh(tasks.Task):
  """Batches that are never seen twice; the two streams share one key."""

  loss = classification.Classification.loss
  outputs = classification.Classification.outputs
  classes = 2
  input_name = 'image'

  def __init__(self, batch_size: int):
    """Args: batch_size: B, examples in every batch."""
    self.batch_size = batch_size

  def init(self, rng: jax.Array) -> jax.Array:
    """The key of the next batch."""
    return rng

  def _draw(self, key: jax.Array, *, held_out: bool) -> Any:
    raise NotImplementedError

  def next(self, data_state: jax.Array) -> Pair:
    """A batch to train on."""
    data_state, key = jax.random.split(data_state)
    return data_state, self._draw(key, held_out=False)

  def next_meta(self, data_state: jax.Array) -> Pair:
    """A held-out batch."""
    data_state, key = jax.random.split(data_state)
    return data_state, self._draw(key, held_out=True)


class NoisyLabels(_Fresh):
  """Clean labels to train on, held-out labels that are partly random.

  Classes are far apart, so the true label is certain; of the held-out labels a
  share is replaced by one drawn evenly from all classes. A model trained with
  label smoothing a says 1 - a + a / C for the true class, and the held-out loss
  is least where that is how often the label is the true one: at a = the share.
  """

  classes = 5
  share = 0.2

  def _draw(self, key: jax.Array, *, held_out: bool) -> Any:
    keys = jax.random.split(key, 4)
    shape, classes = (self.batch_size,), self.classes
    true = jax.random.randint(keys[0], shape, 0, classes)
    noise = 0.3 * jax.random.normal(keys[1], (*shape, classes))
    x = 3 * jax.nn.one_hot(true, classes) + noise
    random = jax.random.randint(keys[2], shape, 0, classes)
    replaced = jax.random.bernoulli(keys[3], self.share, shape) & held_out
    return {'image': x, 'label': jnp.where(replaced, random, true)}


class RareClass(_Fresh):
  """Class 1 is rare in training and as frequent as class 0 in held-out data.

  Each class is normal with the same covariance, so logistic regression is
  right, and weights on the classes change the odds that it learns by their
  ratio: the held-out loss is least at a weight that makes up for the rarity.
  """

  frequency = 0.1
  best_weight = (1 - frequency) / frequency

  def _draw(self, key: jax.Array, *, held_out: bool) -> Any:
    label_key, x_key = jax.random.split(key)
    frequency = 0.5 if held_out else self.frequency
    y = jax.random.bernoulli(label_key, frequency, (self.batch_size,))
    x = jax.random.normal(x_key, (self.batch_size, 2))
    x = x + jnp.where(y, 1.0, -1.0)[:, None] * jnp.array([[0.8, 0.3]])
    return {'image': x, 'label': y.astype(jnp.int32)}


class NoisyInputs(nnx.Module):
  """A linear model whose inputs get dropout in training."""

  def __init__(self, *, size: int, rngs: nnx.Rngs):
    """Args: size: D, inputs; rngs: the source of the dropout's stream."""
    self.weights = nnx.Param(jnp.zeros(size))
    self.dropout = dropout.GaussianDropout(rngs=rngs)

  def __call__(
    self, x: jax.Array, dropout_rate: jax.typing.ArrayLike | None = None
  ) -> jax.Array:
    """Maps [B, D] to [B]."""
    if dropout_rate is not None:
      x = self.dropout(x, dropout_rate)
    return x @ self.weights[...]


class FewExamples(tasks.Task):
  """Linear regression on few noisy examples, all of them in each batch.

  Dropout on the inputs adds a / 2 sum_j mean(x_j^2) w_j^2 to the mean loss, a =
  rate / (1 - rate), so the trained weights are those of ridge regression, and
  the best rate is found by solving that for each of many rates. Each example is
  in the batch many times, with noise of its own, so that the noise of single
  updates does not count.
  """

  size, examples, copies, held_out_examples, noise = 20, 40, 16, 1000, 2.0

  def __init__(self, split_seed: int = 0):
    """Args: split_seed: of the data."""
    rng = np.random.default_rng(split_seed)
    weights = rng.standard_normal(self.size)
    self.train, self.held_out = (
      self._make(rng, weights, count)
      for count in (self.examples, self.held_out_examples)
    )

  def _make(
    self, rng: np.random.Generator, weights: np.ndarray, count: int
  ) -> dict[str, jax.Array]:
    x = rng.standard_normal((count, self.size))
    y = x @ weights + self.noise * rng.standard_normal(count)
    return {'x': jnp.asarray(x, jnp.float32), 'y': jnp.asarray(y, jnp.float32)}

  def init(self, rng: jax.Array) -> Any:
    """Nothing is drawn."""
    return {}

  def next(self, data_state: Any) -> Pair:
    """All examples, several times."""
    repeat = lambda x: jnp.tile(x, (self.copies,) + (1,) * (x.ndim - 1))
    return data_state, jax.tree.map(repeat, self.train)

  def next_meta(self, data_state: Any) -> Pair:
    """All held-out examples."""
    return data_state, self.held_out

  def loss(
    self,
    model: nnx.Module,
    batch: Any,
    dropout_rate: jax.typing.ArrayLike | None = None,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Half the mean squared error."""
    residual = model(batch['x'], dropout_rate) - batch['y']
    return 0.5 * jnp.mean(residual**2), {}

  def best_rate(self) -> float:
    """The rate whose ridge regression has the least held-out loss."""
    rates = np.linspace(0.002, 0.8, 2000)
    losses = [self._held_out_loss(rate) for rate in rates]
    return float(rates[int(np.argmin(losses))])

  def _held_out_loss(self, rate: float) -> float:
    x, y = (np.asarray(self.train[n], np.float64) for n in ('x', 'y'))
    penalty = rate / (1 - rate) * np.diag(np.mean(x**2, axis=0))
    moments = x.T @ x / len(y) + penalty
    weights = np.linalg.solve(moments, x.T @ y / len(y))
    held_x, held_y = (np.asarray(self.held_out[n]) for n in ('x', 'y'))
    return float(0.5 * np.mean((held_x @ weights - held_y) ** 2))
