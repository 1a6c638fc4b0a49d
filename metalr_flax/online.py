r"""One online step of forward mode on gradients that somebody else takes.

    dF/deta = g . Z,    Z <- gamma Z + d updates / d eta

It is the engine's window of K = 1 without the Hessian, in the order that an
optimizer needs: eta moves first, then the inner update runs.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metalr_flax import curvature
from metalr_flax import forward
from metalr_flax import forward_gradient
from metalr_flax import problem as problem_lib
from metalr_flax import state as state_lib

PyTree = Any
Eta = dict[str, jax.Array]
# A factor exp(eta) from 2e-9 to 5e8.
ETA_RANGE = 20.0


def move_eta(
  eta: Eta,
  meta_opt_state: optax.OptState,
  grads: PyTree,
  params: PyTree,
  tangents: forward.Tangents,
  meta_tx: optax.GradientTransformation,
) -> tuple[Eta, optax.OptState]:
  """The outer update along g . Z.

  Args:
    eta: scalars by hyperparameter name.
    meta_opt_state: the outer optimizer's state.
    grads: g, of params' structure.
    params: where g was taken, for the paths.
    tangents: Z there.
    meta_tx: the outer optimizer.

  Returns:
    The new eta and state; the old ones where the slope is not finite.
  """
  if not eta:
    return eta, meta_opt_state
  contract = forward_gradient.make_contract(
    eta, params, labels=None, per_group=False
  )
  inner = _inner(params, ())
  slopes = contract(
    jnp.zeros(len(eta)),
    forward.leaves_of('params', grads),
    _by_path(tangents, inner),
  )
  moves, new_state = meta_tx.update(slopes, meta_opt_state, eta)
  moved = jax.tree.map(
    lambda e, m: jnp.clip(e + m, -ETA_RANGE, ETA_RANGE), eta, moves
  )
  finite = jnp.all(jnp.isfinite(jnp.stack(jax.tree.leaves(slopes))))
  return jax.tree.map(
    lambda new, old: jnp.where(finite, new, old),
    (moved, new_state),
    (eta, meta_opt_state),
  )


def push_update(
  propose: Callable[..., tuple[PyTree, optax.OptState]],
  params: PyTree,
  opt_state: optax.OptState,
  eta: Eta,
  tangents: forward.Tangents,
) -> tuple[PyTree, optax.OptState, forward.Tangents]:
  """The inner optimizer's update, and Z after it.

  Args:
    propose: `(params, opt_state, eta) -> (updates, opt_state)`.
    params: before the update.
    opt_state: before the update.
    eta: scalars by hyperparameter name.
    tangents: Z before the update, discounted.

  Returns:
    The updates, the optimizer's state and Z after them.
  """
  if not eta:
    return *propose(params, opt_state, eta), tangents
  inner = _inner(params, opt_state)
  z = _by_path(tangents, inner)

  def step(leaves: dict, eta: PyTree) -> tuple[PyTree, PyTree]:
    moved = forward.replace_leaves(inner, leaves)
    updates, new_state = propose(moved.params, moved.opt_state, eta)
    after = inner.replace(
      params=optax.apply_updates(moved.params, updates), opt_state=new_state
    )
    return forward.pick_leaves(after, tuple(z)), (updates, new_state)

  _, z, (updates, opt_state) = forward.push(
    step,
    (forward.pick_leaves(inner, tuple(z)), eta),
    (z, forward.directions(eta, per_group=False)),
  )
  return updates, opt_state, _by_place(z, inner)


def init_tangents(
  params: PyTree,
  opt_state: optax.OptState,
  eta: Eta,
  tx: optax.GradientTransformation,
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
  )
  inner = _inner(params, opt_state)
  tangents = forward_gradient.init_tangents(
    eta, inner, params, problem, grad_fn=constant, per_group=False
  )
  return _by_place(tangents, inner)


def _inner(params: PyTree, opt_state: optax.OptState) -> state_lib.InnerState:
  return state_lib.InnerState(
    params=params, model_state={}, opt_state=opt_state
  )


def _by_place(
  tangents: forward.Tangents, inner: state_lib.InnerState
) -> forward.Tangents:
  places = {path: i for i, path in enumerate(forward.names(inner))}
  return {f'{places[path]:06d}': z for path, z in tangents.items()}


def _by_path(
  tangents: forward.Tangents, inner: state_lib.InnerState
) -> forward.Tangents:
  """Z by path.

  It is kept by place: a loop may give params of another kind to `update` than
  it gave to `init`, with other paths and the same leaves.
  """
  paths = forward.names(inner)
  return {paths[int(p)]: z for p, z in tangents.items() if int(p) < len(paths)}
