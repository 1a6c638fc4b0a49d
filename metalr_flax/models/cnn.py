"""A small convolutional network for images."""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import chex
from flax import nnx
import jax
import jax.numpy as jnp

from metalr_flax.models import precision

# A layer norm takes the statistics of a whole image. Those of one pixel are 0
# where the image is blank, and its norm 0 / 0 but for epsilon.
_NORMS: dict[str, Callable[..., nnx.Module]] = {
  'batch': functools.partial(nnx.BatchNorm, momentum=0.9),
  'layer': functools.partial(nnx.LayerNorm, reduction_axes=(-3, -2, -1)),
}


class Block(nnx.Module):
  """Convolution of 3 x 3, norm, ReLU.

  Attributes:
    conv: He-normal weights and no bias, for the norm has one.
    norm: one scale and one bias for each channel.
  """

  def __init__(
    self,
    d_in: int,
    d_out: int,
    *,
    norm: str,
    dtype: jnp.dtype | None,
    rngs: nnx.Rngs,
  ):
    """Builds the layers.

    Args:
      d_in: channels of the input.
      d_out: channels of the output.
      norm: one of 'batch' and 'layer'.
      dtype: what to compute in, None for that of the input.
      rngs: the source of the initial weights.
    """
    self.conv = nnx.Conv(
      d_in,
      d_out,
      kernel_size=(3, 3),
      use_bias=False,
      kernel_init=nnx.initializers.he_normal(),
      conv_general_dilated=convolve,
      dtype=dtype,
      rngs=rngs,
    )
    self.norm = _NORMS[norm](d_out, dtype=dtype, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[B, H, W, d_in]` to `[B, H, W, d_out]`."""
    return jax.nn.relu(self.norm(self.conv(x)))


class CNN(nnx.Module):
  """Convolutions, the image halved between them, then its mean and a layer.

  Images are channel-last (NHWC).

  Attributes:
    dtype: what the layers compute in, None for that of their input.
    blocks: one for each of `features`.
    dropout: on the image's mean, None where its rate is 0.
    head: dense layer from the last of `features` to the classes.
  """

  def __init__(
    self,
    *,
    features: Sequence[int] = (16, 32),
    num_classes: int = 10,
    in_channels: int = 1,
    norm: str = 'layer',
    dropout: float = 0.0,
    dtype: str | None = None,
    rngs: nnx.Rngs,
  ):
    """Builds the layers.

    Args:
      features: channels after each convolution, at least one.
      num_classes: width of the output.
      in_channels: channels of the images.
      norm: 'layer', or 'batch' with running averages for evaluation.
      dropout: share of the last features that training drops, in [0, 1).
      dtype: what it computes in, 'float32' or 'bfloat16'; the weights and the
        output are float32 all the same. None is the dtype of its input.
      rngs: the source of the initial weights, and of the dropout's stream.

    Raises:
      ValueError: for an argument outside these.
    """
    if norm not in _NORMS:
      raise ValueError(f'norm={norm}: must be one of {", ".join(_NORMS)}')
    if not 0 <= dropout < 1:
      raise ValueError(f'dropout={dropout}: must be in [0, 1)')
    if not features:
      raise ValueError('features=(): must name one width at least')
    self.dtype = precision.compute_dtype(dtype)
    widths = (in_channels, *features)
    self.blocks = nnx.List(
      Block(d_in, d_out, norm=norm, dtype=self.dtype, rngs=rngs)
      for d_in, d_out in zip(widths, features, strict=False)
    )
    self.dropout = nnx.Dropout(dropout, rngs=rngs) if dropout else None
    self.head = nnx.Linear(widths[-1], num_classes, dtype=self.dtype, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps images `[B, H, W, C]` to logits `[B, num_classes]`."""
    chex.assert_rank(x, 4)
    for index, block in enumerate(self.blocks):
      x = block(_halved(x) if index else x)
    x = jnp.mean(x, axis=(1, 2))
    if self.dropout is not None:
      x = self.dropout(x)
    return precision.as_logits(self.head(x), self.dtype)


def convolve(
  x: jax.Array, kernel: jax.Array, *args: Any, **kwargs: Any
) -> jax.Array:
  """A 'SAME' convolution of stride 1 as one matrix product.

  XLA:CPU takes ten times as long for the gradient of its own convolution
  inside a scan; with this one a window of the digits run takes an eighth of the
  time, and comes to the same numbers.

  Args:
    x: images `[B, H, W, C]`.
    kernel: `[odd, odd, C, D]`.
    *args: what else `nnx.Conv` passes: stride 1, 'SAME', no dilation.
    **kwargs: the same.

  Returns:
    `[B, H, W, D]`.
  """
  del args, kwargs
  (height, width), (rows, columns) = x.shape[1:3], kernel.shape[:2]
  around = [(size // 2, size // 2) for size in (rows, columns)]
  padded = jnp.pad(x, [(0, 0), *around, (0, 0)])
  patches = jnp.concatenate(
    [
      padded[:, row : row + height, column : column + width]
      for row in range(rows)
      for column in range(columns)
    ],
    axis=-1,
  )
  return patches @ kernel.reshape(patches.shape[-1], kernel.shape[-1])


def _halved(x: jax.Array) -> jax.Array:
  """The image at half size: means of 2 x 2 pixels, of fewer at odd edges."""
  return nnx.avg_pool(
    x, (2, 2), strides=(2, 2), padding='SAME', count_include_pad=False
  )
