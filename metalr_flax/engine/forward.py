r"""Forward mode: the derivative of the inner state is carried along with it.

    Z_{k+1} = (dPhi/dz) Z_k + (dPhi/dlambda) phi'(eta),    Z = dz/deta

with z = (params, model_state, opt_state) and Phi one inner update. Memory does
not depend on K, and Z can live on from window to window (Franceschi et al.
2017, https://arxiv.org/abs/1703.01785; Williams and Zipser 1989).

A direction is one eta that is varied. All directions share one primal update
and one gradient. A leaf of z that no eta can move (a count, the second moments
where no Hessian is seen, ...) has no tangent: none is carried and none is
computed. Which leaves these are is read off the trace, see `tangents`.

Shape legend: k directions; every tangent has them as its first axis.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp

from metalr_flax.engine import bijections as bijections_lib
from metalr_flax.engine import curvature
from metalr_flax.engine import inner as inner_lib
from metalr_flax.engine import problem as problem_lib
from metalr_flax.engine import state as state_lib

PyTree = Any
# By the leaf's path in InnerState: arrays [k, *leaf.shape].
Tangents = dict[str, jax.Array]
# (loss tangents [k], gradient by path, Z) -> slope, of eta's structure.
Contract = Callable[[jax.Array, dict[str, jax.Array], Tangents], PyTree]


def directions(eta: bijections_lib.Eta, *, per_group: bool) -> PyTree:
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


def names(inner: state_lib.InnerState) -> list[str]:
  """The path of every leaf of the inner state, in order.

  Raises:
    ValueError: where two leaves have one path: 'a/b', and 'b' in 'a'.
  """
  found = [
    jax.tree_util.keystr(path, simple=True, separator='/')
    for path, _ in jax.tree_util.tree_leaves_with_path(inner)
  ]
  if len({*found}) < len(found):
    raise ValueError(f'two variables share one path; rename one of {found}')
  return found


def replace_leaves(
  inner: state_lib.InnerState, leaves: dict[str, jax.Array]
) -> state_lib.InnerState:
  """The inner state with some leaves exchanged, by path."""
  values, treedef = jax.tree.flatten(inner)
  pairs = zip(names(inner), values, strict=True)
  return jax.tree.unflatten(treedef, [leaves.get(n, v) for n, v in pairs])


def pick_leaves(
  inner: state_lib.InnerState, wanted: Sequence[str]
) -> dict[str, jax.Array]:
  """Some leaves of the inner state, by path."""
  found = dict(zip(names(inner), jax.tree.leaves(inner), strict=True))
  return {name: found[name] for name in wanted}


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


def unroll(
  eta: bijections_lib.Eta,
  inner: state_lib.InnerState,
  data_state: PyTree,
  tangents: Tangents,
  eta_dots: PyTree,
  problem: problem_lib.Problem,
  grad_fn: curvature.GradFn,
  contract: Contract | None,
) -> tuple[state_lib.InnerState, PyTree, Tangents, PyTree, inner_lib.Metrics]:
  """K inner updates with their tangents.

  Args:
    eta: the meta-parameters.
    inner: the inner state before the window.
    data_state: the sampler's position before the window.
    tangents: Z before the window, of the moving leaves.
    eta_dots: the directions, see `directions`.
    problem: the bilevel problem.
    grad_fn: the inner loss's gradient with its curvature.
    contract: gives the slope of a batch's own loss, before its update, from
      its tangents [k], its gradient and Z; None where the outer loss is held
      out.

  Returns:
    The inner state, data state and Z after the window; the mean of the slopes,
    of eta's structure; and the metrics of the K batches, [K].
  """
  phi = functools.partial(
    bijections_lib.constrain, bijections=problem.bijections
  )
  hyperparams, hyperparam_dots, _ = push(
    lambda e: (phi(e), None), (eta,), (eta_dots,)
  )

  body = functools.partial(
    _push_inner_step,
    hyperparams=hyperparams,
    hyperparam_dots=hyperparam_dots,
    problem=problem,
    grad_fn=grad_fn,
    contract=contract,
  )
  carry = inner_lib.started(inner, hyperparams), data_state, tangents
  carry, (metrics, slopes) = jax.lax.scan(
    lambda carry, _: body(*carry), carry, length=problem.unroll_length
  )
  slope = jax.tree.map(lambda s: jnp.mean(s, axis=0), slopes)
  return (*carry, slope, metrics)


def _push_inner_step(
  inner: state_lib.InnerState,
  data_state: PyTree,
  z: Tangents,
  *,
  hyperparams: PyTree,
  hyperparam_dots: PyTree,
  problem: problem_lib.Problem,
  grad_fn: curvature.GradFn,
  contract: Contract | None,
) -> tuple[tuple, tuple]:
  """One inner update with its tangents: the scan's carry and its outputs."""
  data_state, batch = problem.next_batch(data_state)

  def step(leaves: dict, hyperparams: PyTree) -> tuple[PyTree, PyTree]:
    new, metrics, grads = inner_lib.inner_step(
      replace_leaves(inner, leaves),
      hyperparams,
      batch,
      grad_fn=grad_fn,
      tx=problem.tx,
    )
    return (pick_leaves(new, tuple(z)), metrics['loss']), (new, metrics, grads)

  _, (z_new, loss_dots), (new, metrics, grads) = push(
    step, (pick_leaves(inner, tuple(z)), hyperparams), (z, hyperparam_dots)
  )
  grads = leaves_of('params', grads)
  slope = contract(loss_dots, grads, z) if contract else ()
  return (new, data_state, z_new), (metrics, slope)


def leaves_of(field: str, tree: PyTree) -> dict[str, jax.Array]:
  """A tree's leaves by the paths that they have as a field of InnerState."""
  paths = jax.tree_util.tree_leaves_with_path({field: tree})
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in paths
  }
