"""The noisy quadratic, a model problem for learning rates."""

from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from metalr_flax.tasks import arguments
from metalr_flax.tasks import sampling
from metalr_flax.tasks import task


class NoisyQuadratic(task.Task):
  """Minimise L(theta) = 1/2 sum_i h_i theta_i^2 from noisy gradients of it.

  A batch's loss is L(theta) + eps . theta, and its gradient h theta + eps, with
  eps ~ N(0, noise^2 diag(h) / B): large where the curvature is. Up to a term
  without theta, a batch's loss is a quadratic with a minimum of its own, at
  -eps / h: the noise model of Schaul et al. 2013, No more pesky learning rates,
  https://arxiv.org/abs/1206.1106, and of Wu et al. 2018, Understanding
  short-horizon bias, https://arxiv.org/abs/1803.02021.

  For a model with one parameter `theta` of shape [size], such as `vector`.

  Attributes:
    batch_size: B, which divides the noise's variance and costs nothing.
    h: the eigenvalues, float32 [size], from 1 / condition to 1 in equal ratios.
    noise: standard deviation of an example's gradient where h is 1.
  """

  def __init__(
    self,
    batch_size: int = 1,
    *,
    size: int = 100,
    condition: float = 1e3,
    noise: float = 0.3,
  ):
    """Sets the problem.

    Args:
      batch_size: B >= 1.
      size: coordinates of theta, >= 1.
      condition: the largest eigenvalue over the smallest, >= 1.
      noise: >= 0.

    Raises:
      ValueError: for an argument outside these.
    """
    arguments.check_integer('batch_size', batch_size, 1)
    arguments.check_integer('size', size, 1)
    arguments.check_number('condition', condition, 1)
    arguments.check_number('noise', noise, 0)
    self.batch_size = batch_size
    self.h = jnp.asarray(np.geomspace(1 / condition, 1, size), jnp.float32)
    self.noise = noise

  def init(self, rng: jax.Array) -> dict[str, jax.Array]:
    """The stream's `key` and its `step`."""
    return sampling.init_draws(rng)

  def next(
    self, data_state: dict[str, jax.Array]
  ) -> tuple[dict[str, jax.Array], jax.Array]:
    """The vector eps as one row, float32 [1, size].

    A row, because the curvature 'subsample' cuts a batch along its first axis.
    """
    data_state, key = sampling.next_key(data_state)
    scale = self.noise * jnp.sqrt(self.h / self.batch_size)
    eps = scale * jax.random.normal(key, self.h.shape)
    return data_state, eps[None]

  def next_meta(
    self, data_state: dict[str, jax.Array]
  ) -> tuple[dict[str, jax.Array], jax.Array]:
    """The next vector: all of them are fresh, and so held out."""
    return self.next(data_state)

  def loss(
    self, model: nnx.Module, batch: jax.Array
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """L(theta) + eps . theta.

    Args:
      model: has `theta`, [size].
      batch: eps, [1, size].

    Raises:
      ValueError: for another model.
    """
    theta = arguments.theta_of(model, self.h.size)
    return self._loss(theta) + jnp.mean(batch @ theta), {}

  def objective(self, model: nnx.Module, data_state: Any) -> jax.Array:
    """L(theta), the mean of the batches' losses."""
    del data_state
    return self._loss(arguments.theta_of(model, self.h.size))

  def _loss(self, theta: jax.Array) -> jax.Array:
    return 0.5 * jnp.sum(self.h * theta**2)
