"""Leaves of the inner state by their paths, for the checkpoint and messages."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax

from metalr_flax.engine.records import InnerState, PyTree

T = TypeVar('T')


def leaves_of(field: str, tree: PyTree) -> dict[str, Any]:
  """A tree's leaves by the paths that they have as a field of InnerState."""
  return dict(_named({field: tree}))


def name_leaves(inner: InnerState) -> dict[str, jax.Array]:
  """The leaves of the inner state by path.

  Raises:
    ValueError: where two leaves have one path: 'a/b', and 'b' in 'a'.
  """
  found = _named(inner)
  names = [name for name, _ in found]
  if len({*names}) < len(names):
    raise ValueError(f'two variables share one path; rename one of {names}')
  return dict(found)


def with_leaves(inner: InnerState, leaves: dict[str, jax.Array]) -> InnerState:
  """The inner state with its leaves exchanged, by path."""
  values = [leaves[name] for name, _ in _named(inner)]
  return jax.tree.unflatten(jax.tree.structure(inner), values)


def by_place(
  values: Mapping[str, T], leaves: Mapping[str, Any]
) -> tuple[T | None, ...]:
  """Values by the place of their path among some leaves, None without one.

  Args:
    values: by path.
    leaves: by path, e.g. of `name_leaves`; JAX orders them by name.
  """
  return tuple(values.get(name) for name in sorted(leaves))


def by_path(
  values: Sequence[T | None], leaves: Mapping[str, Any]
) -> dict[str, T]:
  """The inverse of `by_place`."""
  pairs = zip(sorted(leaves), values, strict=True)
  return {name: value for name, value in pairs if value is not None}


def _named(tree: PyTree) -> list[tuple[str, Any]]:
  """The leaves of a tree, each with its path: 'a/b'."""
  return [
    (jax.tree_util.keystr(path, simple=True, separator='/'), leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  ]
