"""A multilayer perceptron."""

from collections.abc import Sequence
import itertools

from flax import nnx
import jax


class MLP(nnx.Module):
  """Dense layers with ReLU between them.

  Attributes:
    layers: `len(features) - 1` dense layers, He-normal weights, zero biases.
  """

  def __init__(self, *, features: Sequence[int], rngs: nnx.Rngs):
    """Builds the layers.

    Args:
      features: widths from the input to the output, e.g. `(64, 128, 10)`.
      rngs: the source of the initial weights.
    """
    self.layers = nnx.List(
      [
        nnx.Linear(
          d_in, d_out, kernel_init=nnx.initializers.he_normal(), rngs=rngs
        )
        for d_in, d_out in itertools.pairwise(features)
      ]
    )

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[B, features[0]]` to `[B, features[-1]]`."""
    for layer in self.layers[:-1]:
      x = jax.nn.relu(layer(x))
    return self.layers[-1](x)
