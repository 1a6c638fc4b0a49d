"""The sum of the last one to three updates: to look along, and to go back by.

It is kept as tangents of one direction, by the place of the parameter: arrays
[1, ...], float32 at least.
"""

import jax
import jax.numpy as jnp

from metalr_flax.engine.records import PyTree
from metalr_flax.engine.tangents import Tangents


def init(params: PyTree) -> Tangents:
  """No displacement."""

  def zeros(leaf: jax.Array) -> jax.Array:
    dtype = jnp.promote_types(leaf.dtype, jnp.float32)
    return jnp.zeros_like(leaf, dtype=dtype)[None]

  return tuple(zeros(leaf) for leaf in jax.tree.leaves(params))


def add(displacement: Tangents, updates: PyTree) -> Tangents:
  """The displacement after an update."""
  leaves = tuple(jax.tree.leaves(updates))
  return jax.tree.map(
    lambda d, u: (d + u[None]).astype(d.dtype), displacement, leaves
  )


def subtract(updates: PyTree, displacement: Tangents) -> PyTree:
  """The updates less the displacement."""
  leaves, treedef = jax.tree.flatten(updates)
  left = jax.tree.map(
    lambda u, d: u - d[0].astype(u.dtype), tuple(leaves), displacement
  )
  return jax.tree.unflatten(treedef, left)
