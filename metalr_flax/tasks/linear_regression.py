"""The reference problem: y = 10 x + noise, one parameter, endless samples.

It is the problem of optax's meta-learning example
(https://optax.readthedocs.io/en/latest/_collections/examples/meta_learning.html),
with that example's own generator: with `jax_threefry_partitionable` False, key
0 and batches of one, the samples are the example's, bit for bit.
"""

from collections.abc import Iterable
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from metalr_flax.tasks import reference_generator as generator
from metalr_flax.tasks import task


class LinearRegression(task.Task):
  """y = slope * x + N(0, noise^2) with x ~ U(0, 10).

  Attributes:
    batch_size: B, samples in a batch.
    slope: the true theta.
    noise: standard deviation of y given x, in y's unit.
    skip: samples to draw and drop first (the example prints five).
    eval_size: samples in the evaluation batch, drawn from another key.
  """

  loss_label = 'half squared error'

  def __init__(
    self,
    batch_size: int = 1,
    *,
    slope: float = 10.0,
    noise: float = 1.0,
    skip: int = 0,
    eval_size: int = 1024,
  ):
    if skip < 0 or eval_size < 1:
      raise ValueError('skip must be >= 0 and eval_size >= 1')
    self.batch_size = batch_size
    self.slope = slope
    self.noise = noise
    self.skip = skip
    self.eval_size = eval_size

  def init(self, rng: jax.Array) -> jax.Array:
    """The generator's key after the skipped samples."""
    return jax.lax.fori_loop(
      0, self.skip, lambda _, key: jax.random.split(key, 3)[0], rng
    )

  def next(self, data_state: jax.Array) -> tuple[jax.Array, Any]:
    """A batch `{'x': [B], 'y': [B]}`, float32."""
    # As it stands where this is traced; `build.randomness` sets it for a run.
    partitionable = jax.config.jax_threefry_partitionable  # type: ignore[attr-defined]
    if partitionable:
      key, x_key, noise_key = jax.random.split(data_state, 3)
      shape = (self.batch_size,)
      x = jax.random.uniform(x_key, shape, minval=0.0, maxval=10.0)
      noise = jax.random.normal(noise_key, shape)
    else:
      keys = generator.split(jax.random.key_data(data_state), 3)
      key = jax.random.wrap_key_data(keys[0])
      x = generator.uniform(keys[1], self.batch_size, 0.0, 10.0)
      noise = generator.normal(keys[2], self.batch_size)
    return key, {'x': x, 'y': self.slope * x + self.noise * noise}

  def next_meta(self, data_state: jax.Array) -> tuple[jax.Array, Any]:
    """The next batch: all of them are fresh, and so held out."""
    return self.next(data_state)

  def loss(
    self, model: nnx.Module, batch: Any
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Half the squared error, mean over the batch."""
    return jnp.mean(optax.l2_loss(model(batch['x']), batch['y'])), {}

  def eval_batches(self) -> Iterable[Any]:
    """One batch of samples, the same for every seed of training."""
    rng = np.random.default_rng(0)  # not JAX's: nothing to compile for it
    x = rng.uniform(0.0, 10.0, self.eval_size)
    y = self.slope * x + self.noise * rng.standard_normal(self.eval_size)
    return [{'x': x.astype(np.float32), 'y': y.astype(np.float32)}]

  def summarize(self, model: nnx.Module) -> dict[str, jax.Array]:
    """`theta`, where the model has that parameter."""
    theta = getattr(model, 'theta', None)
    return {} if theta is None else {'theta': theta[...]}

  def known_answers(self) -> dict[str, float]:
    """The slope, and the noise's share of the loss, which no theta avoids."""
    return {'loss': self.noise**2 / 2, 'theta': self.slope}
