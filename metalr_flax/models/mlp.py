"""A multilayer perceptron."""

from collections.abc import Sequence
import itertools

from flax import nnx
import jax

from metalr_flax.models import dropout
from metalr_flax.models import precision


class MLP(nnx.Module):
  """Dense layers with ReLU between them.

  Attributes:
    layers: `len(features) - 1` dense layers, He-normal weights, zero biases.
    dtype: what the layers compute in, None for that of their input.
    dropout: after each ReLU, at the rate that a call gives; None where no call
      will give one.
  """

  def __init__(
    self,
    *,
    features: Sequence[int],
    gaussian_dropout: bool = False,
    dtype: str | None = None,
    rngs: nnx.Rngs,
  ):
    """Builds the layers.

    Args:
      features: widths from the input to the output, e.g. `(64, 128, 10)`.
      gaussian_dropout: whether calls may give a `dropout_rate`.
      dtype: what it computes in, 'float32' or 'bfloat16'; the weights and the
        output are float32 all the same. None is the dtype of its input.
      rngs: the source of the initial weights, and of the dropout's stream.

    Raises:
      ValueError: for another dtype.
    """
    self.dtype = precision.compute_dtype(dtype)
    self.layers = nnx.List(
      [
        nnx.Linear(
          d_in,
          d_out,
          kernel_init=nnx.initializers.he_normal(),
          dtype=self.dtype,
          rngs=rngs,
        )
        for d_in, d_out in itertools.pairwise(features)
      ]
    )
    self.dropout = (
      dropout.GaussianDropout(rngs=rngs) if gaussian_dropout else None
    )

  def __call__(
    self, x: jax.Array, dropout_rate: jax.typing.ArrayLike | None = None
  ) -> jax.Array:
    """Maps `[B, features[0]]` to `[B, features[-1]]`.

    Raises:
      ValueError: for a dropout_rate in a model without dropout.
    """
    if dropout_rate is not None and self.dropout is None:
      raise ValueError('dropout_rate: needs gaussian_dropout=True')
    for layer in self.layers[:-1]:
      x = jax.nn.relu(layer(x))
      if self.dropout is not None and dropout_rate is not None:
        x = self.dropout(x, dropout_rate)
    return precision.as_logits(self.layers[-1](x), self.dtype)
