"""Two hard linear regressions: ill-conditioned, and with a moving target."""

from typing import Any

import chex
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from metalr_flax.tasks import arguments
from metalr_flax.tasks import sampling
from metalr_flax.tasks import task


class IllConditionedRegression(task.Task):
  """y = x . w + noise over fixed examples, with x along the axes of a rotation.

  The data are X = Z diag(s) Q^T, where Z [N, D] and w [D] are of standard
  normal numbers, s goes from condition**-1/2 to 1 in equal ratios, and Q is a
  random rotation, so that scaling single weights does not help. The Hessian
  X^T X / N has about the given condition. The outer loss has N more examples of
  the same w, made alike.

  Shape legend: B batch_size, D size, N num_examples.

  Attributes:
    batch_size: B.
    data: all examples, `{'x': float32 [N, D], 'y': float32 [N]}`.
    meta: the outer loss's, alike.
  """

  def __init__(
    self,
    batch_size: int = 32,
    *,
    size: int = 50,
    num_examples: int = 1000,
    condition: float = 1e4,
    noise: float = 0.0,
    data_seed: int = 0,
  ):
    """Makes the data.

    Args:
      batch_size: B >= 1.
      size: D >= 1.
      num_examples: N >= 1.
      condition: of the covariance of x, >= 1.
      noise: standard deviation of y given x, >= 0.
      data_seed: of the data alone, >= 0; the run's seed decides which examples
        are drawn when.

    Raises:
      ValueError: for an argument outside these.
    """
    arguments.check_integer('batch_size', batch_size, 1)
    arguments.check_integer('size', size, 1)
    arguments.check_integer('num_examples', num_examples, 1)
    arguments.check_number('condition', condition, 1)
    arguments.check_number('noise', noise, 0)
    arguments.check_integer('data_seed', data_seed, 0)
    self.batch_size = batch_size
    rng = np.random.default_rng(data_seed)
    s = np.geomspace(condition**-0.5, 1, size)
    z = rng.standard_normal((num_examples, size))
    q, w = _rotation(rng, size), rng.standard_normal(size)

    def make(z: np.ndarray) -> dict[str, jax.Array]:
      x = (z * s[None]) @ q.T
      y = x @ w + noise * rng.standard_normal(num_examples)
      return {
        'x': jnp.asarray(x, jnp.float32),
        'y': jnp.asarray(y, jnp.float32),
      }

    self.data = make(z)
    self.meta = make(rng.standard_normal((num_examples, size)))

  def init(self, rng: jax.Array) -> dict[str, jax.Array]:
    """The stream's `key` and its `step`."""
    return sampling.init_draws(rng)

  def next(
    self, data_state: dict[str, jax.Array]
  ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """B examples, each any of the N: `{'x': [B, D], 'y': [B]}`, float32."""
    return self._draw(data_state, self.data)

  def next_meta(
    self, data_state: dict[str, jax.Array]
  ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """The same of the outer loss's N examples."""
    return self._draw(data_state, self.meta)

  def loss(
    self, model: nnx.Module, batch: Any
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Half the squared error, mean over the batch."""
    return _half_squared_error(model, batch), {}

  def objective(self, model: nnx.Module, data_state: Any) -> jax.Array:
    """The same over all N examples."""
    del data_state
    return _half_squared_error(model, self.data)

  def _draw(
    self, data_state: dict[str, jax.Array], examples: dict[str, jax.Array]
  ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    data_state, key = sampling.next_key(data_state)
    rows = jax.random.randint(key, (self.batch_size,), 0, len(examples['y']))
    batch = {n: jnp.take(array, rows, axis=0) for n, array in examples.items()}
    return data_state, batch


class DriftingTarget(task.Task):
  """Online linear regression whose true weights start to move midway.

  y = x . w_t + noise with x ~ N(0, diag(c)^2), c from 10**-1/2 to 1 in equal
  ratios. The target w_t stands still for the first half of the run and then
  takes a step of speed * N(0, I) before each draw: at first a rate that falls
  is best, later one that stays high enough to track. Learned rates were made
  for such targets: Sutton 1992, Adapting bias by gradient descent (IDBD),
  https://cdn.aaai.org/AAAI/1992/AAAI92-027.pdf.

  For a model with one parameter `theta` of shape [D], such as `vector`. The
  outer loss draws from the same stream: its draws count, too.

  Shape legend: B batch_size, D size.

  Attributes:
    batch_size: B.
    c: standard deviations of x, float32 [D].
    still: draws before the target moves, num_steps // 2.
    noise: standard deviation of y given x.
    speed: standard deviation of a step of each of the target's coordinates.
  """

  def __init__(
    self,
    batch_size: int = 16,
    *,
    size: int = 20,
    num_steps: int = 2000,
    noise: float = 0.5,
    speed: float = 0.05,
  ):
    """Sets the problem.

    Args:
      batch_size: B >= 1.
      size: D >= 1.
      num_steps: draws in a run, >= 1; the stream does not end after them.
      noise: >= 0.
      speed: >= 0.

    Raises:
      ValueError: for an argument outside these.
    """
    arguments.check_integer('batch_size', batch_size, 1)
    arguments.check_integer('size', size, 1)
    arguments.check_integer('num_steps', num_steps, 1)
    arguments.check_number('noise', noise, 0)
    arguments.check_number('speed', speed, 0)
    self.batch_size = batch_size
    self.c = jnp.asarray(np.geomspace(10**-0.5, 1, size), jnp.float32)
    self.still = num_steps // 2
    self.noise = noise
    self.speed = speed

  def init(self, rng: jax.Array) -> dict[str, jax.Array]:
    """The stream's `key`, its `step` and w_0 ~ N(0, I), the `target` [D]."""
    data_state = sampling.init_draws(rng)
    key, target_key = jax.random.split(data_state['key'])
    target = jax.random.normal(target_key, self.c.shape)
    return {**data_state, 'key': key, 'target': target}

  def next(
    self, data_state: dict[str, jax.Array]
  ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """B fresh examples, `{'x': [B, D], 'y': [B]}`, float32, of w_t.

    `data_state['target']` is w_t before draw number t, and w_{t+1} after it.
    """
    data_state, key = sampling.next_key(data_state)
    x_key, noise_key, target_key = jax.random.split(key, 3)
    target = data_state['target']
    shape = (self.batch_size, target.size)
    x = self.c[None] * jax.random.normal(x_key, shape)
    noise = self.noise * jax.random.normal(noise_key, shape[:1])
    moved = target + self.speed * jax.random.normal(
      target_key, target.shape, target.dtype
    )
    moves = data_state['step'] >= self.still
    after = {**data_state, 'target': jnp.where(moves, moved, target)}
    return after, {'x': x, 'y': x @ target + noise}

  def next_meta(
    self, data_state: dict[str, jax.Array]
  ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """The next draw: all of them are fresh, and so held out."""
    return self.next(data_state)

  def loss(
    self, model: nnx.Module, batch: Any
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Half the squared error, mean over the batch."""
    return _half_squared_error(model, batch), {}

  def objective(self, model: nnx.Module, data_state: Any) -> jax.Array:
    """The excess over the loss of w_t, 1/2 sum_i (c_i (theta_i - w_ti))^2.

    It is the mean loss of the next batch without noise^2 / 2, which no theta
    can avoid.

    Args:
      model: has `theta`, [D].
      data_state: before draw number t.

    Raises:
      ValueError: for another model.
    """
    theta = arguments.theta_of(model, self.c.size)
    return 0.5 * jnp.sum((self.c * (theta - data_state['target'])) ** 2)


def _half_squared_error(model: nnx.Module, batch: Any) -> jax.Array:
  predictions = model(batch['x'])
  chex.assert_equal_shape([predictions, batch['y']])
  return jnp.mean(optax.l2_loss(predictions, batch['y']))


def _rotation(rng: np.random.Generator, size: int) -> np.ndarray:
  """An orthogonal matrix [size, size], uniform over all of them.

  The signs make QR's choice of Q unique (Mezzadri 2007, How to generate random
  matrices from the classical compact groups,
  https://arxiv.org/abs/math-ph/0609050).
  """
  q, r = np.linalg.qr(rng.standard_normal((size, size)))
  return q * np.sign(np.diagonal(r))[None]
