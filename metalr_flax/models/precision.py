"""The dtype that a model computes in, which is not that of its weights."""

import jax
import jax.numpy as jnp

_NAMES = ('float32', 'bfloat16')


def compute_dtype(name: str | None) -> jnp.dtype | None:
  """The dtype of a config's name.

  Args:
    name: 'float32', 'bfloat16', or None for that of the weights and the input.

  Raises:
    ValueError: for another one. (float16 needs its loss to be scaled.)
  """
  if name is None:
    return None
  if name not in _NAMES:
    raise ValueError(f'dtype={name}: must be one of {", ".join(_NAMES)}')
  return jnp.dtype(name)


def as_logits(x: jax.Array, dtype: jnp.dtype | None) -> jax.Array:
  """A model's output, in float32 where it computes in a dtype of its own."""
  return x if dtype is None else x.astype(jnp.float32)
