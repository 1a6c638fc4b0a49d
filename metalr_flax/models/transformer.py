"""A small decoder-only transformer for language modelling.

Shape legend: B batch, T tokens, D d_model, H heads, V vocab_size.
"""

import functools

import chex
from flax import nnx
import jax
import jax.numpy as jnp

from metalr_flax.models import precision

# What the backward pass finds kept of each block, by the name of the choice;
# it computes the rest again.
_REMATS = {
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  'full': jax.checkpoint_policies.nothing_saveable,
}


class Attention(nnx.Module):
  """Causal self-attention with rotary positions.

  Attributes:
    qkv: queries, keys and values of all heads in one product, no biases.
    out: mixes the heads.
    num_heads: H.
  """

  def __init__(
    self,
    d_model: int,
    *,
    num_heads: int,
    dtype: jnp.dtype | None,
    rngs: nnx.Rngs,
  ):
    """Builds the layers.

    Args:
      d_model: D, a multiple of 2 H.
      num_heads: H.
      dtype: what to compute in, None for that of the input.
      rngs: the source of the initial weights.
    """
    self.num_heads = num_heads
    layer = functools.partial(
      nnx.Linear, use_bias=False, dtype=dtype, rngs=rngs
    )
    self.qkv = layer(d_model, 3 * d_model)
    self.out = layer(d_model, d_model)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[B, T, D]` to `[B, T, D]`."""
    batch, length, width = x.shape
    heads = (batch, length, self.num_heads, width // self.num_heads)
    q, k, v = (
      part.reshape(heads) for part in jnp.split(self.qkv(x), 3, axis=-1)
    )
    mixed = jax.nn.dot_product_attention(
      rotate(q), rotate(k), v, is_causal=True
    )
    return self.out(mixed.reshape(x.shape))


class Block(nnx.Module):
  """Attention, then a perceptron on each token; both pre-norm and residual.

  Attributes:
    norms: one before each of the two parts.
    attention: the part that looks at other tokens.
    up, down: the perceptron's layers, with GELU between them.
    dropout: on what the parts add, None where its rate is 0.
  """

  def __init__(
    self,
    d_model: int,
    *,
    num_heads: int,
    d_ff: int,
    dropout: float,
    dtype: jnp.dtype | None,
    rngs: nnx.Rngs,
  ):
    """Builds the layers; the arguments are `Transformer`'s."""
    self.norms = nnx.List(
      nnx.RMSNorm(d_model, dtype=dtype, rngs=rngs) for _ in range(2)
    )
    self.attention = Attention(
      d_model, num_heads=num_heads, dtype=dtype, rngs=rngs
    )
    layer = functools.partial(
      nnx.Linear, use_bias=False, dtype=dtype, rngs=rngs
    )
    self.up = layer(d_model, d_ff)
    self.down = layer(d_ff, d_model)
    self.dropout = nnx.Dropout(dropout, rngs=rngs) if dropout else None

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[B, T, D]` to `[B, T, D]`."""
    x = x + self._dropped(self.attention(self.norms[0](x)))
    hidden = jax.nn.gelu(self.up(self.norms[1](x)))
    return x + self._dropped(self.down(hidden))

  def _dropped(self, x: jax.Array) -> jax.Array:
    return x if self.dropout is None else self.dropout(x)


class Transformer(nnx.Module):
  """Next-token logits; one matrix embeds the tokens and reads them out.

  Pre-norm with RMSNorm, rotary positions, tied embeddings (Press and Wolf
  2017, https://arxiv.org/abs/1608.05859), no biases.

  Attributes:
    dtype: what the layers compute in, None for that of the weights.
    remat: what the backward pass computes again.
    embedding: `[V, D]`; std 0.02 as in GPT-2, so that the first predictions
      are nearly uniform.
    blocks: `num_layers` of them.
    norm: before the output.
  """

  def __init__(
    self,
    *,
    vocab_size: int,
    d_model: int,
    num_heads: int,
    num_layers: int,
    d_ff: int | None = None,
    dropout: float = 0.0,
    dtype: str | None = None,
    remat: str = 'none',
    rngs: nnx.Rngs,
  ):
    """Builds the layers.

    Args:
      vocab_size: V, tokens are 0 .. V - 1.
      d_model: D, a multiple of 2 H: a head's width must be even.
      num_heads: H.
      num_layers: blocks.
      d_ff: width inside the perceptrons; 4 D unless given.
      dropout: share of what each part adds that training drops, in [0, 1).
      dtype: what it computes in, 'float32' or 'bfloat16'; the weights and the
        output are float32 all the same. None is the dtype of its weights.
      remat: what the backward pass computes again to save memory: 'none';
        'dots', all of a block but its products with weights; 'full', all of a
        block from its input on.
      rngs: the source of the initial weights, and of the dropout's stream.

    Raises:
      ValueError: for an argument outside these.
    """
    if num_heads < 1 or d_model % (2 * num_heads):
      raise ValueError(
        f'd_model={d_model}: must be a multiple of 2 * num_heads = '
        f'{2 * num_heads}, with num_heads >= 1'
      )
    if not 0 <= dropout < 1:
      raise ValueError(f'dropout={dropout}: must be in [0, 1)')
    if remat not in ('none', *_REMATS):
      known = ', '.join(map(repr, ('none', *_REMATS)))
      raise ValueError(f'remat={remat!r}: must be one of {known}')
    self.remat = remat
    self.dtype = precision.compute_dtype(dtype)
    # Not nnx.Embed: it computes in its weights' first dtype, float32, whatever
    # they are cast to for a check in float64.
    initial = nnx.initializers.normal(0.02)
    self.embedding = nnx.Param(initial(rngs.params(), (vocab_size, d_model)))
    self.blocks = nnx.List(
      Block(
        d_model,
        num_heads=num_heads,
        d_ff=d_ff or 4 * d_model,
        dropout=dropout,
        dtype=self.dtype,
        rngs=rngs,
      )
      for _ in range(num_layers)
    )
    self.norm = nnx.RMSNorm(d_model, dtype=self.dtype, rngs=rngs)

  def __call__(self, tokens: jax.Array) -> jax.Array:
    """Maps tokens `[B, T]`, int32, to logits `[B, T, V]`, float32."""
    chex.assert_rank(tokens, 2)
    embedding = self.embedding[...]
    if self.dtype is not None:
      embedding = embedding.astype(self.dtype)
    x = jnp.take(embedding, tokens, axis=0)
    apply = Block.__call__
    if self.remat != 'none':
      apply = nnx.remat(apply, policy=_REMATS[self.remat])
    for block in self.blocks:
      x = apply(block, x)
    return precision.as_logits(self.norm(x) @ embedding.T, self.dtype)


def rotate(x: jax.Array, *, base: float = 10_000.0) -> jax.Array:
  """Rotary position embedding: token t's pairs of features turned by t * freq.

  The dot product of two rotated vectors then depends on their positions by the
  difference alone (Su et al. 2021, https://arxiv.org/abs/2104.09864).

  Args:
    x: `[B, T, H, F]`, F even; features i and i + F / 2 are a pair.
    base: the pairs' frequencies fall from 1 towards 1 / base, radians a token.

  Returns:
    The rotated features, of x's shape and dtype.
  """
  length, width = x.shape[1], x.shape[-1]
  # bfloat16 has no position beyond 256 but the even ones.
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  exponents = jnp.arange(0, width, 2, dtype=dtype) / width
  positions = jnp.arange(length, dtype=dtype)
  angles = jnp.outer(positions, base**-exponents)[None, :, None, :]
  cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
  first, second = jnp.split(x, 2, axis=-1)
  return jnp.concatenate(
    [first * cos - second * sin, second * cos + first * sin], axis=-1
  )
