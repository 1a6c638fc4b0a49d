r"""The slope of somebody else's loss, and the push that prepares the next one.

    dF/deta = g . Z,    Z <- gamma Z + d updates / d eta

It is the engine's forward mode with K = 1 and without the Hessian, in the order
that an optimizer needs: eta moves first, then the inner update runs.

Tangents go by place among the leaves of (params, opt_state): a loop may give
params of another container to `update` than it gave to `init`, with other paths
and the same leaves. They are float32 at least: in bfloat16 a sum stops
growing after 300 updates.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from metalr_flax.engine import forward
from metalr_flax.engine import slopes as slopes_lib
from metalr_flax.engine import tangents as tangents_lib
from metalr_flax.engine.records import Eta, PyTree
from metalr_flax.engine.tangents import Tangents

# ((params, opt_state), eta, *fixed) -> (updates, opt_state)
Update = Callable[..., tuple[PyTree, optax.OptState]]


def init_tangents(
  update: Update,
  params: PyTree,
  opt_state: optax.OptState,
  eta: Eta,
  *fixed: PyTree,
) -> Tangents:
  """Z = 0 of the leaves that eta can move when gradients count as constants.

  Args:
    update: the inner optimizer's, `((params, opt_state), eta, *fixed) ->
      (updates, opt_state)`.
    params: for their shapes.
    opt_state: for its shapes.
    eta: the meta-parameters; nothing has a tangent where there are none.
    *fixed: what eta does not move, for its shapes.
  """
  state = params, opt_state
  if not eta:
    return ()
  moving = tangents_lib.find_moving(update, state, eta, *fixed)
  return jax.tree.map(
    _widened, tangents_lib.init_tangents(moving, state, len(eta))
  )


def find_slopes(
  eta: Eta,
  grads: PyTree,
  params: PyTree,
  tangents: Tangents,
  labels: PyTree | None,
) -> Eta:
  """dF/deta = g . Z.

  Args:
    eta: scalars by hyperparameter name.
    grads: g as the optimizer gets them (of complex parameters the conjugate of
      what `jax.grad` gives), of params' structure, or of that of the fast ones
      with `optax.lookahead`.
    params: where g was taken.
    tangents: Z there; those of params come first.
    labels: the group of each parameter, None where there are none.

  Returns:
    Scalars of eta's structure, float32 at least.
  """
  gradient = jax.tree.leaves(_as_slope(grads, params))
  groups = [''] * len(gradient) if labels is None else jax.tree.leaves(labels)
  contract = slopes_lib.make_contract(eta, groups)
  return contract(jnp.zeros(len(eta)), gradient, tangents[: len(gradient)])


def find_norms(
  eta: Eta,
  tree: PyTree,
  labels: PyTree | None,
  scale: jax.typing.ArrayLike = 1.0,
) -> Eta:
  """The norm of each group's leaves, over a scale.

  Args:
    eta: scalars by hyperparameter name; each gets the same norm.
    tree: of params' structure, or their leaves.
    labels: the group of each parameter, None where there are none.
    scale: what leaves are divided by before they are squared, scalar: their
      squares may be too small for float32.

  Returns:
    Scalars of eta's structure, float32.
  """
  leaves = jax.tree.leaves(tree)
  groups = [''] * len(leaves) if labels is None else jax.tree.leaves(labels)
  contract = slopes_lib.make_contract(eta, groups)
  # Divided where it is summed up: an array made for two sums would be stored.
  scaled = [_widened(leaf) / scale for leaf in leaves]
  squares = contract(
    jnp.zeros(len(eta)),
    [jnp.conj(leaf) for leaf in scaled],
    tuple(leaf[None] for leaf in scaled),
  )
  return jax.tree.map(jnp.sqrt, squares)


def find_cosines(
  eta: Eta,
  grads: PyTree,
  params: PyTree,
  displacement: Tangents,
  labels: PyTree | None,
  scale: jax.Array,
) -> tuple[Eta, Eta]:
  """Cosines of g and the displacement, each over a group's parameters.

  Args:
    eta: scalars by hyperparameter name; each gets the same cosine.
    grads: g, as for `find_slopes`.
    params: where g was taken.
    displacement: by the place of the parameter, [1, ...].
    labels: the group of each parameter, None where there are none.
    scale: about the size of the displacement over that of the gradient, scalar.

  Returns:
    Scalars in [-1, 1] of eta's structure, float32, 0 where either is 0; and
    norms of the displacement.
  """
  slopes = find_slopes(eta, grads, params, displacement, labels)
  sizes = find_norms(eta, _as_slope(grads, params), labels)
  leaves = [d[0] for d in jax.tree.leaves(displacement)]
  displaced = find_norms(eta, leaves, labels, scale)
  tiny = jnp.finfo(jnp.float32).tiny
  cosines = jax.tree.map(
    lambda slope, g, d: slope / scale / jnp.maximum(g * d, tiny),
    slopes,
    sizes,
    displaced,
  )
  return cosines, jax.tree.map(lambda d: d * scale, displaced)


def push_update(
  update: Update,
  params: PyTree,
  opt_state: optax.OptState,
  eta: Eta,
  tangents: Tangents,
) -> tuple[PyTree, optax.OptState, Tangents]:
  """The inner optimizer's update, and what it adds to Z.

  Args:
    update: `((params, opt_state), eta) -> (updates, opt_state)`.
    params: before the update.
    opt_state: before the update.
    eta: scalars by hyperparameter name.
    tangents: Z before the update, discounted.

  Returns:
    The updates and the optimizer's state after them; and d updates / d eta at
    the places of params, dz/deta itself at those of opt_state.
  """
  state = params, opt_state
  if not eta:
    return *update(state, eta), ()
  z = tuple(
    None if z is None else z.astype(leaf.dtype)
    for z, leaf in zip(tangents, jax.tree.leaves(state), strict=True)
  )
  (updates, opt_state), dots, _, _ = forward.push_update(
    lambda state, eta: (update(state, eta), (), ()),
    state,
    eta,
    z,
    forward.directions(eta, per_group=False),
  )
  return updates, opt_state, dots


def advance(tangents: Tangents, dots: Tangents, params: PyTree) -> Tangents:
  """Z after the update: what `push_update` gave, added to discounted tangents.

  Args:
    tangents: Z before the update, discounted.
    dots: what `push_update` returned.
    params: for the number of their leaves.
  """
  count = len(jax.tree.leaves(params))
  add = lambda z, dot: (z + dot).astype(z.dtype)
  take = lambda z, dot: dot.astype(z.dtype)
  return (
    *jax.tree.map(add, tangents[:count], dots[:count]),
    *jax.tree.map(take, tangents[count:], dots[count:]),
  )


def _as_slope(grads: PyTree, params: PyTree) -> PyTree:
  """The loss's slope in params: the gradient, conjugated where it is complex.

  The real part of the product counts, `sum(real(conj(g) * dtheta))`. The loss
  is that of the fast parameters where there are slow ones.
  """
  slope = jax.tree.map(jnp.conj, grads)
  if not isinstance(params, optax.LookaheadParams):
    return slope
  return optax.LookaheadParams(
    fast=slope, slow=jax.tree.map(jnp.zeros_like, params.slow)
  )


def _widened(leaf: jax.Array) -> jax.Array:
  return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
