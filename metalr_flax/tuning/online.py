r"""One online step of forward mode on gradients that somebody else takes.

    dF/deta = g . Z,    Z <- gamma Z + d updates / d eta

It is the engine's window of K = 1 without the Hessian, in the order that an
optimizer needs: eta moves first, then the inner update runs.

Tangents are kept by the place of their leaf in (params, opt_state): a loop may
give params of another kind to `update` than it gave to `init`, with other paths
and the same leaves. They are float32 at least: in bfloat16 a sum of 300 updates
stands still.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metalr_flax.engine import curvature
from metalr_flax.engine import forward
from metalr_flax.engine import forward_gradient
from metalr_flax.engine import optimizers
from metalr_flax.engine import problem as problem_lib
from metalr_flax.engine import state as state_lib

PyTree = Any
# By name, by group label below it where there are groups; scalars.
Eta = dict[str, Any]


def slopes(
  eta: Eta,
  grads: PyTree,
  params: PyTree,
  tangents: forward.Tangents,
  labels: PyTree | None,
) -> Eta:
  """dF/deta = g . Z.

  Args:
    eta: scalars by hyperparameter name.
    grads: g as the optimizer gets them (of complex parameters the conjugate of
      what `jax.grad` gives), of params' structure, or of that of the fast ones
      with `optax.lookahead`.
    params: where g was taken, for the paths.
    tangents: Z there.
    labels: the group of each parameter, None where there are none.

  Returns:
    Scalars of eta's structure, float32 at least.
  """
  contract = forward_gradient.make_contract(
    eta, params, labels=labels, per_group=False
  )
  return contract(
    jnp.zeros(len(eta)),
    forward.leaves_of('params', _as_slope(grads, params)),
    _by_path(tangents, _inner(params, ())),
  )


def push_update(
  propose: Callable[..., tuple[PyTree, optax.OptState]],
  params: PyTree,
  opt_state: optax.OptState,
  eta: Eta,
  tangents: forward.Tangents,
) -> tuple[PyTree, optax.OptState, forward.Tangents]:
  """The inner optimizer's update, and what it adds to Z.

  Args:
    propose: `(params, opt_state, eta) -> (updates, opt_state)`.
    params: before the update.
    opt_state: before the update.
    eta: scalars by hyperparameter name.
    tangents: Z before the update, discounted.

  Returns:
    The updates and the optimizer's state after them; and d updates / d eta at
    the places of the parameters, dz/deta itself at those of the state.
  """
  inner = _inner(params, opt_state)
  by_path = _by_path(tangents, inner)
  leaves = forward.pick_leaves(inner, tuple(by_path))
  z = {path: by_path[path].astype(leaves[path].dtype) for path in leaves}

  def step(leaves: dict, eta: PyTree) -> tuple[PyTree, PyTree]:
    moved = forward.replace_leaves(inner, leaves)
    updates, new_state = propose(moved.params, moved.opt_state, eta)
    # In the parameters' places: what is added to them.
    after = inner.replace(params=updates, opt_state=new_state)
    return forward.pick_leaves(after, tuple(z)), (updates, new_state)

  _, dots, (updates, opt_state) = forward.push(
    step, (leaves, eta), (z, forward.directions(eta, per_group=False))
  )
  places = {path: i for i, path in enumerate(forward.names(inner))}
  return updates, opt_state, {_key(places[p]): d for p, d in dots.items()}


def advance(
  tangents: forward.Tangents, dots: forward.Tangents, params: PyTree
) -> forward.Tangents:
  """Z after the update: what `push_update` gave, added to discounted tangents.

  Args:
    tangents: Z before the update, discounted.
    dots: what `push_update` returned.
    params: for the number of their leaves.
  """
  count = len(jax.tree.leaves(params))
  return {
    place: (z + dots[place] if int(place) < count else dots[place]).astype(
      z.dtype
    )
    for place, z in tangents.items()
  }


def init_tangents(
  params: PyTree,
  opt_state: optax.OptState,
  eta: Eta,
  tx: optax.GradientTransformation,
  labels: PyTree | None,
) -> forward.Tangents:
  """Z = 0 of the leaves that eta can move when gradients count as constants."""
  if not eta:
    return {}
  constant: curvature.GradFn = lambda params, model_state, grads: (
    (jnp.zeros(()), (model_state, {})),
    grads,
  )

  def never(*args: Any) -> Any:
    raise NotImplementedError

  problem = problem_lib.Problem(
    loss_fn=never,
    meta_loss_fn=never,
    next_batch=lambda grads: (grads, grads),
    next_meta_batch=never,
    tx=tx,
    bijections=dict.fromkeys(eta, 'log'),
    unroll_length=1,
    labels=labels,
  )
  inner = _inner(params, opt_state)
  grads = optimizers.gradients_like(params)
  tangents = forward_gradient.init_tangents(
    eta, inner, grads, problem, grad_fn=constant, per_group=False
  )
  places = {path: i for i, path in enumerate(forward.names(inner))}
  return {
    _key(places[path]): z.astype(jnp.promote_types(z.dtype, jnp.float32))
    for path, z in tangents.items()
  }


def init_displacement(params: PyTree) -> forward.Tangents:
  """No displacement, as tangents of one direction."""
  return {
    _key(place): jnp.zeros_like(
      leaf, dtype=jnp.promote_types(leaf.dtype, jnp.float32)
    )[None]
    for place, leaf in enumerate(jax.tree.leaves(params))
  }


def add_updates(
  displacement: forward.Tangents, updates: PyTree
) -> forward.Tangents:
  """The displacement after an update."""
  leaves = jax.tree.leaves(updates)
  return {
    place: (d + leaves[int(place)][None]).astype(d.dtype)
    for place, d in displacement.items()
  }


def go_back(updates: PyTree, displacement: forward.Tangents) -> PyTree:
  """The updates less the displacement."""
  leaves, treedef = jax.tree.flatten(updates)
  return jax.tree.unflatten(
    treedef,
    [
      u - displacement[_key(place)][0].astype(u.dtype)
      for place, u in enumerate(leaves)
    ],
  )


def _as_slope(grads: PyTree, params: PyTree) -> PyTree:
  """What a change of params is multiplied by to give that of the loss.

  The real part of the product counts, `sum(real(conj(g) * dtheta))`. The loss
  is that of the fast parameters where there are slow ones.
  """
  slope = jax.tree.map(jnp.conj, grads)
  if not isinstance(params, optax.LookaheadParams):
    return slope
  return optax.LookaheadParams(
    fast=slope, slow=jax.tree.map(jnp.zeros_like, params.slow)
  )


def _inner(params: PyTree, opt_state: optax.OptState) -> state_lib.InnerState:
  return state_lib.InnerState(
    params=params, model_state={}, opt_state=opt_state
  )


def _key(place: int) -> str:
  return f'{place:06d}'  # sorted as text they keep their order


def _by_path(
  tangents: forward.Tangents, inner: state_lib.InnerState
) -> forward.Tangents:
  paths = forward.names(inner)
  return {paths[int(p)]: z for p, z in tangents.items() if int(p) < len(paths)}
