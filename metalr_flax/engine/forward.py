r"""Forward mode: tangents are pushed through the updates.

    Z_{k+1} = (dPhi/dz) Z_k + (dPhi/dlambda) phi'(eta),    Z = dz/deta

with Phi one update of a state z. Memory does not depend on the number of
updates, and Z can live on from window to window (Franceschi et al. 2017,
https://arxiv.org/abs/1703.01785; Williams and Zipser 1989).

A direction is one eta that is varied. All directions share one primal update
and one gradient.

Shape legend: k directions; every tangent has them as its first axis.
"""

from collections.abc import Callable, Iterator
import contextlib
from typing import Any

import jax
import jax.numpy as jnp

from metalr_flax.engine.records import Eta, PyTree
from metalr_flax.engine.tangents import Tangents


class NoForwardRuleError(TypeError):
  """A function has no forward-mode derivative, only a reverse one."""


@contextlib.contextmanager
def naming_the_rule() -> Iterator[None]:
  """Says what to use instead where a forward rule is missing.

  Raises:
    NoForwardRuleError: for JAX's error of such a function.
  """
  try:
    yield
  except TypeError as error:
    if 'custom_vjp' not in str(error):
      raise
    raise NoForwardRuleError(
      'the loss has a custom_vjp, which has no forward-mode rule: use '
      "meta.estimator 'reverse', or give the function a jax.custom_jvp"
    ) from error


def count_directions(eta: Eta, *, per_group: bool) -> int:
  """k, the number of directions; see `directions`."""
  return len(jax.tree.leaves(eta)) if per_group else len(eta)


def directions(eta: Eta, *, per_group: bool) -> PyTree:
  """The etas to vary, one a direction.

  Args:
    eta: the meta-parameters.
    per_group: a direction for each array of eta; otherwise one for each
      hyperparameter, which varies all its groups at once. The latter is exact
      where the groups' tangents do not mix.

  Returns:
    Tangents of eta, arrays [k].
  """
  if per_group:
    leaves, treedef = jax.tree.flatten(eta)
    rows = jnp.eye(len(leaves), dtype=leaves[0].dtype)
    return jax.tree.unflatten(treedef, list(rows.T))
  return {
    name: jax.tree.map(
      lambda v, i=i: jnp.zeros(len(eta), v.dtype).at[i].set(1), eta[name]
    )
    for i, name in enumerate(sorted(eta))
  }


def push(
  function: Callable[..., tuple[PyTree, PyTree]],
  primals: tuple,
  tangents: tuple,
) -> tuple[PyTree, PyTree, PyTree]:
  """`jax.jvp(..., has_aux=True)` for k tangents at once.

  Several directions share one linearization.

  Args:
    function: `(*primals) -> (out, aux)`.
    primals: where to differentiate.
    tangents: of the primals' structure, arrays [k, ...].

  Returns:
    out, its tangents [k, ...], and aux.
  """
  if jax.tree.leaves(tangents)[0].shape[0] == 1:
    row = jax.tree.map(lambda t: t[0], tangents)
    out, dots, aux = jax.jvp(function, primals, row, has_aux=True)
    return out, jax.tree.map(lambda t: t[None], dots), aux
  out, linear, aux = jax.linearize(function, *primals, has_aux=True)
  return out, jax.vmap(linear)(*tangents), aux


def push_update(
  update: Callable[[PyTree, PyTree], tuple[PyTree, PyTree, Any]],
  state: PyTree,
  given: PyTree,
  tangents: Tangents,
  given_dots: PyTree,
) -> tuple[PyTree, Tangents, PyTree, Any]:
  """One update of a state, and of its tangents with it.

  Args:
    update: `(state, given) -> (state, value, aux)`; the state's leaves keep
      their places.
    state: before the update.
    given: what the update gets besides, e.g. hyperparameters.
    tangents: Z before the update.
    given_dots: tangents of `given`, arrays [k, ...].

  Returns:
    The state after the update, Z after it, the tangents [k, ...] of the value,
    and aux.
  """
  leaves, treedef = jax.tree.flatten(state)
  moving = [i for i, z in enumerate(tangents) if z is not None]

  def of_moving(values: list[jax.Array], given: PyTree) -> tuple:
    now = list(leaves)
    for place, value in zip(moving, values, strict=True):
      now[place] = value
    after, value, aux = update(jax.tree.unflatten(treedef, now), given)
    after_leaves = jax.tree.leaves(after)
    return ([after_leaves[i] for i in moving], value), (after, aux)

  _, (dots, value_dots), (after, aux) = push(
    of_moving,
    ([leaves[i] for i in moving], given),
    ([tangents[i] for i in moving], given_dots),
  )
  pushed = dict(zip(moving, dots, strict=True))
  z = tuple(pushed.get(i) for i in range(len(tangents)))
  return after, z, value_dots, aux
