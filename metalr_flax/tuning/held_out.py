"""Which gradient eta follows: that of held-out data, where the caller gives it.

Without any, eta follows the training gradient. From the first held-out one on
it follows those alone, and rests at updates that come without.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from metalr_flax.engine import optimizers
from metalr_flax.engine.records import PyTree
from metalr_flax.tuning import select


class Outer(NamedTuple):
  """The gradient of the outer loss at an update.

  Attributes:
    grads: of the training gradient's structure.
    known: whether eta may follow it, boolean scalar.
    held_out: whether a held-out one, and a finite one, was ever given, boolean
      scalar.
    begins: whether this is the first of them, boolean scalar.
  """

  grads: PyTree
  known: jax.Array
  held_out: jax.Array
  begins: jax.Array


def choose(
  grads: PyTree, meta_grads: PyTree | None, held_out: jax.Array
) -> Outer:
  """The outer gradient of an update.

  Args:
    grads: the training gradient.
    meta_grads: the held-out one, of its structure and shapes; within
      `optax.masked` and `optax.partition` of the whole structure. None where
      the caller gives none; one that is not finite counts as none.
    held_out: whether one was given before, boolean scalar.

  Raises:
    ValueError: for another structure or other shapes.
  """
  if meta_grads is None:
    return Outer(grads, ~held_out, held_out, jnp.zeros_like(held_out))
  matched = _matched(optimizers.as_arrays(meta_grads), grads)
  finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(matched)]
  usable = functools.reduce(jnp.logical_and, finite, jnp.ones_like(held_out))
  # Before the first that is finite, one that is not is as if not given.
  after = held_out | usable
  followed = select.where(after, matched, grads)
  return Outer(followed, usable | ~held_out, after, usable & ~held_out)


def _matched(meta_grads: PyTree, grads: PyTree) -> PyTree:
  """The held-out gradients of what `grads` has, in its containers."""
  wanted, found = _by_path(grads), _by_path(meta_grads)
  if len(found) > len(wanted):
    found = _by_path(_masked_as(grads, meta_grads))
  if found.keys() == wanted.keys():  # also where their order is another
    found = {path: found[path] for path in wanted}
  shapes = [[leaf.shape for leaf in x.values()] for x in (found, wanted)]
  if shapes[0] != shapes[1]:
    raise ValueError(
      f'self_tuning: meta_grads: has arrays of shapes {shapes[0]}, the '
      f'gradients {shapes[1]}; give the gradient of the same parameters, in '
      f'the same containers'
    )
  return jax.tree.unflatten(jax.tree.structure(grads), list(found.values()))


def _by_path(tree: PyTree) -> dict[str, jax.Array]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _masked_as(masked: PyTree, tree: PyTree) -> PyTree:
  """The tree without what is masked in another; as it is where they differ."""
  is_masked = lambda node: isinstance(node, optax.MaskedNode)
  try:
    return jax.tree.map(
      lambda m, t: m if is_masked(m) else t, masked, tree, is_leaf=is_masked
    )
  except ValueError:
    return tree
