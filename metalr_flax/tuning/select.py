"""Choices between trees by one boolean, which may be traced."""

import jax
import jax.numpy as jnp

from metalr_flax.engine.types import PyTree


def where(condition: jax.Array, one: PyTree, other: PyTree) -> PyTree:
  """`one` where the condition holds, otherwise `other`."""
  return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, other)


def zero_where(condition: jax.Array, tree: PyTree) -> PyTree:
  """Zeros where the condition holds, otherwise the tree."""
  return jax.tree.map(lambda a: jnp.where(condition, 0, a), tree)
