r"""From Z to the meta-gradient: the slope of a loss along each direction.

    dF/deta = (dF/dz) Z

One reverse gradient dF/dz serves all directions.

Shape legend: k directions.
"""

from collections.abc import Callable, Sequence
import functools

import jax
import jax.numpy as jnp

from metalr_flax.engine import jaxprs
from metalr_flax.engine import paths
from metalr_flax.engine.records import Eta, InnerState
from metalr_flax.engine.tangents import Tangents

# By place: dF/dz, or None where the loss does not depend on the leaf.
Gradient = Sequence[jax.Array | None]
# By place: the group of a parameter ('' without groups), None for other leaves.
Labels = Sequence[str | None]
# (the loss's tangents [k], its gradient, Z) -> slope, of eta's structure.
Contract = Callable[[jax.Array, Gradient, Tangents], Eta]


def make_contract(eta: Eta, labels: Labels | None) -> Contract:
  """Makes the function from slopes along the directions to slopes in eta.

  Args:
    eta: the meta-parameters.
    labels: where a direction varies all groups at once, see
      `forward.directions`: the group of each leaf of the state. None where each
      array of eta has a direction of its own.
  """
  if labels is None:
    treedef = jax.tree.structure(eta)
    return lambda dots, grads, z: jax.tree.unflatten(treedef, list(dots))
  return functools.partial(_by_label, eta, labels)


def _by_label(
  eta: Eta,
  labels: Labels,
  dots: jax.Array,
  grads: Gradient,
  tangents: Tangents,
) -> Eta:
  """Of each group the share of its own parameters, which no other eta moves."""
  slopes = dict.fromkeys(['', *filter(None, labels)], jnp.zeros_like(dots))
  for label, g, z in zip(labels, grads, tangents, strict=True):
    if label is not None and g is not None and z is not None:
      slopes[label] += dot(g, z)
  # Sorted, as JAX returns dicts: Z's rows must not depend on who made eta.
  return {
    name: {label: slopes[label][i] for label in eta[name]}
    if isinstance(eta[name], dict)
    else slopes[''][i]
    for i, name in enumerate(sorted(eta))
  }


def dot(gradient: jax.Array, tangents: jax.Array) -> jax.Array:
  """One leaf's share of the slope in each direction, [k], at least float32.

  Of complex leaves the real part: `jax.grad` gives what makes it the slope.
  """
  dtype = jnp.promote_types(tangents.dtype, jnp.float32)
  dots = jax.vmap(lambda z: jnp.sum(gradient * z, dtype=dtype))(tangents)
  return jnp.real(dots)


def differentiate(
  loss_fn: Callable[[InnerState], jax.Array],
  inner: InnerState,
  tangents: dict[str, jax.Array],
  contract: Contract,
  start: jax.Array,
) -> tuple[jax.Array, Eta]:
  """A loss of the inner state, and its slope in eta.

  Args:
    loss_fn: `inner -> loss`, a scalar; it does not depend on opt_state.
    inner: where to differentiate.
    tangents: Z there, by path.
    contract: see `make_contract`; its places are those of `paths.name_leaves`.
    start: zeros [k], what the slopes are added to.
  """
  leaves = paths.name_leaves(inner)
  floats = {
    name: leaf
    for name, leaf in leaves.items()
    if jaxprs.is_float(leaf) and name.split('/')[0] != 'opt_state'
  }
  loss, grads = jax.value_and_grad(
    lambda floats: loss_fn(paths.with_leaves(inner, {**leaves, **floats}))
  )(floats)
  by_place, z = (paths.by_place(x, leaves) for x in (grads, tangents))
  terms = [
    dot(g, z)
    for g, z in zip(by_place, z, strict=True)
    if g is not None and z is not None
  ]
  return loss, contract(sum(terms, start=start), by_place, z)
