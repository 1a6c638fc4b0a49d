"""A vector of weights, for problems that need no network."""

from flax import nnx
import jax


class Vector(nnx.Module):
  """y = x . theta.

  Attributes:
    theta: float32 [size], normal with standard deviation `scale`.
  """

  def __init__(self, size: int, *, scale: float = 1.0, rngs: nnx.Rngs):
    """Draws the weights.

    Args:
      size: how many, >= 1.
      scale: their standard deviation, 0 for all of them 0.
      rngs: the source of the initial weights.

    Raises:
      ValueError: for another size.
    """
    if size < 1:
      raise ValueError(f'size={size}: must be >= 1')
    self.theta = nnx.Param(scale * jax.random.normal(rngs.params(), (size,)))

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[..., size]` to `[...]`."""
    return x @ self.theta[...]
