"""Dropout whose rate can be learned."""

from flax import nnx
import jax
import jax.numpy as jnp


class GaussianDropout(nnx.Module):
  """Multiplies its input by noise of mean 1, at a rate given with each call.

  The noise is normal with the variance rate / (1 - rate), which is that of
  dropout (Srivastava et al. 2014, section 10,
  https://jmlr.org/papers/v15/srivastava14a.html). Unlike a mask of zeros and
  ones it has a derivative in the rate, so the rate can be learned.

  Attributes:
    rngs: the stream `dropout` of random keys.
  """

  def __init__(self, *, rngs: nnx.Rngs):
    """Forks the stream.

    Args:
      rngs: the source of the stream.
    """
    self.rngs = rngs.dropout.fork()

  def __call__(self, x: jax.Array, rate: jax.typing.ArrayLike) -> jax.Array:
    """Adds noise to x of any shape; the rate is in (0, 1)."""
    deviation = jnp.sqrt(rate / (1 - rate)).astype(x.dtype)
    noise = jax.random.normal(self.rngs(), x.shape, x.dtype)
    return x * (1 + deviation * noise)
