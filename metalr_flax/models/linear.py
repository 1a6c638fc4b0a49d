"""The reference problem's model: one weight."""

from flax import nnx
import jax


class Linear(nnx.Module):
  """y = theta * x, elementwise.

  Attributes:
    theta: float32 scalar, exactly `normal(key(init_seed))`. (`nnx.Rngs` would
      fold its key first and give another value.)
  """

  def __init__(self, *, init_seed: int = 42, rngs: nnx.Rngs):
    del rngs
    self.theta = nnx.Param(jax.random.normal(jax.random.key(init_seed)))

  def __call__(self, x: jax.Array) -> jax.Array:
    """Predictions of x's shape."""
    return self.theta[...] * x
