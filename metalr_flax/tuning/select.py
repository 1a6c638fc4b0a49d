"""Choices between trees by one boolean, which may be traced."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from metalr_flax.engine import jaxprs
from metalr_flax.engine.records import PyTree


def where(condition: jax.Array, one: PyTree, other: PyTree) -> PyTree:
  """`one` where the condition holds, otherwise `other`."""
  return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, other)


def zero_where(condition: jax.Array, tree: PyTree) -> PyTree:
  """Zeros where the condition holds, otherwise the tree."""
  return jax.tree.map(lambda a: jnp.where(condition, 0, a), tree)


def held_where(
  condition: jax.Array, old: PyTree, function: Callable[[], tuple[PyTree, Any]]
) -> tuple[PyTree, Any]:
  """A function's `(new, rest)`, with `old` for `new` where the condition holds.

  The choice is made as soon as a leaf of `new` is there, and what the function
  computes from it reads what was chosen. So nothing reads the old leaf after
  the new one is written, and XLA writes it in its place; a choice among the
  function's results would cost a copy of all of `old`.

  Args:
    condition: boolean scalar.
    old: a tree of `new`'s structure and shapes; taken in `new`'s dtypes.
    function: returns `(new, rest)`, pytrees of arrays.

  Returns:
    Both; `rest` means nothing where the condition holds.
  """
  leaves = jax.tree.leaves(old)

  def replace(place: int, value: jax.Array) -> jax.Array:
    if place >= len(leaves):
      return value
    return jnp.where(condition, leaves[place].astype(value.dtype), value)

  return jaxprs.with_outputs(function, replace)()
