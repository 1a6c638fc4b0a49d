r"""Which leaves of a state have a tangent: those that eta moves.

    Z = dz/deta,    z = a state, e.g. (params, model_state, opt_state)

A leaf that no eta can move (a count, the second moments where no Hessian is
seen, ...) has no tangent: none is carried and none is computed. Which leaves
these are is read off the trace of one update's derivative; nothing is computed.

Leaves are addressed by their place in `jax.tree.leaves`: whatever belongs to
the leaves of a state (tangents, a gradient, labels) is a tuple with an entry
for each. Paths are for messages and for the checkpoint.

Shape legend: k directions, the etas that are varied; every tangent has them as
its first axis.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from metalr_flax.engine import jaxprs
from metalr_flax.engine.records import Eta, PyTree

# By place: an array [k, *leaf.shape], or None where eta does not move the leaf.
Tangents = tuple[jax.Array | None, ...]
# What a leaf moves with: names of hyperparameters, or whatever was marked.
Marks = frozenset[Any]


def follow_marks(
  update: Callable[..., PyTree],
  state: PyTree,
  marks: Sequence[Marks],
  *fixed: PyTree,
) -> Iterator[list[Marks]]:
  """What each leaf moves with after 1, 2, ... updates, until nothing is new.

  Args:
    update: `(state, *fixed) -> state`, pure.
    state: for its shapes.
    marks: a set for each leaf: what it moves with before the first update.
    *fixed: what no update changes, e.g. a batch; for its shapes.

  Yields:
    A set for each leaf.
  """
  derivative = jaxprs.trace_derivative(update, state, *fixed)
  now = list(marks)
  while True:
    found = jaxprs.find_reached(derivative, now)
    after = [a | b for a, b in zip(now, found, strict=True)]
    if after == now:
      return
    now = after
    yield now


def find_reach(
  step: Callable[..., PyTree], state: PyTree, eta: Eta, *fixed: PyTree
) -> list[list[Marks]]:
  """The hyperparameters that move each leaf, by the number of updates.

  Args:
    step: `(state, eta, *fixed) -> state`, one update, pure.
    state: for its shapes.
    eta: the meta-parameters, for their names and shapes.
    *fixed: what neither changes, e.g. a batch; for its shapes.

  Returns:
    After 0, 1, 2, ... updates, for each leaf a set of names; the last item
    holds for however many updates follow.
  """
  nothing = [Marks() for _ in jax.tree.leaves(state)]
  names = [
    Marks({name})
    for name in sorted(eta)  # as JAX orders them
    for _ in jax.tree.leaves(eta[name])
  ]

  def update(pair: tuple[PyTree, Eta], *fixed: PyTree) -> tuple[PyTree, Eta]:
    return step(*pair, *fixed), pair[1]

  later = follow_marks(update, (state, eta), [*nothing, *names], *fixed)
  return [nothing, *(marks[: len(nothing)] for marks in later)]


def find_moving(
  step: Callable[..., PyTree], state: PyTree, eta: Eta, *fixed: PyTree
) -> tuple[bool, ...]:
  """Whether eta can move each leaf of a state, in however many updates.

  Args:
    step: see `find_reach`, as for the others.
    state: for its shapes.
    eta: the meta-parameters.
    *fixed: what neither changes.
  """
  reach = find_reach(step, state, eta, *fixed)
  return tuple(bool(names) for names in reach[-1])


def init_tangents(
  moving: Sequence[bool], state: PyTree, count: int
) -> Tangents:
  """Z = 0.

  Args:
    moving: which leaves have a tangent, see `find_moving`.
    state: for its leaves' shapes and dtypes.
    count: k, the number of directions.
  """
  return tuple(
    jnp.zeros((count, *leaf.shape), leaf.dtype) if moves else None
    for leaf, moves in zip(jax.tree.leaves(state), moving, strict=True)
  )
