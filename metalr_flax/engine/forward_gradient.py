r"""The slope of a window's outer loss along Z.

    dF/deta = (dF/dz) Z

One reverse gradient of the outer loss serves all directions.
"""

from collections.abc import Iterator
import contextlib
from typing import Any

import jax
import jax.numpy as jnp

from metalr_flax.engine import bijections
from metalr_flax.engine import curvature
from metalr_flax.engine import forward
from metalr_flax.engine import losses
from metalr_flax.engine import problem as problem_lib
from metalr_flax.engine import state as state_lib
from metalr_flax.engine import tangents as tangents_lib
from metalr_flax.engine import window as window_lib

PyTree = Any
Eta = bijections.Eta


class NoForwardRuleError(TypeError):
  """Forward mode met a function that has a reverse rule alone."""


@contextlib.contextmanager
def _naming_the_rule() -> Iterator[None]:
  """Says what to use instead where a forward rule is missing."""
  try:
    yield
  except TypeError as error:
    if 'custom_vjp' not in str(error):
      raise
    raise NoForwardRuleError(
      'the loss has a custom_vjp, which has no forward-mode rule: use '
      "meta.estimator 'reverse', or give the function a jax.custom_jvp"
    ) from error


@_naming_the_rule()
def run(
  eta: Eta,
  inner: state_lib.InnerState,
  data_state: PyTree,
  tangents: forward.Tangents,
  problem: problem_lib.Problem,
  *,
  grad_fn: curvature.GradFn,
  per_group: bool,
  online: bool,
) -> tuple[Eta, window_lib.Window]:
  """A window with its meta-gradient.

  Args:
    eta: unconstrained meta-parameters.
    inner: the inner state before the window.
    data_state: the sampler's position before the window.
    tangents: Z before the window, discounted.
    problem: the bilevel problem.
    grad_fn: the inner loss's gradient with its curvature.
    per_group: whether each group has a direction of its own.
    online: whether the outer loss is the mean of the K inner losses.

  Returns:
    dF/deta with eta's structure, and what the window leaves behind.
  """
  eta_dots = forward.directions(eta, per_group=per_group)
  contract = make_contract(
    eta, inner.params, labels=problem.labels, per_group=per_group
  )
  inner, data_state, tangents, meta_grads, metrics = forward.unroll(
    eta,
    inner,
    data_state,
    tangents,
    eta_dots,
    problem,
    grad_fn,
    contract if online else None,
  )
  means = window_lib.means(metrics)
  meta_loss = means['train/loss']
  if not online:
    data_state, batch = problem.next_meta_batch(data_state)
    meta_loss, grads = _held_out(inner, batch, problem)
    dots = sum(
      (_dot(grads[name], z) for name, z in tangents.items() if name in grads),
      start=jnp.zeros_like(jax.tree.leaves(eta_dots)[0]),
    )
    meta_grads = contract(dots, grads, tangents)
  window = window_lib.Window(
    inner=inner,
    data_state=data_state,
    tangents=tangents,
    metrics={**means, 'meta/loss': meta_loss},
  )
  return meta_grads, window


def init_tangents(
  eta: Eta,
  inner: state_lib.InnerState,
  data_state: PyTree,
  problem: problem_lib.Problem,
  *,
  grad_fn: curvature.GradFn,
  per_group: bool,
) -> forward.Tangents:
  """Z = 0 of the leaves that eta can move; see `run` for the arguments."""
  shapes = tangent_shapes(
    eta, inner, data_state, problem, grad_fn=grad_fn, per_group=per_group
  )
  return zeros(shapes)


def zeros(shapes: dict[str, jax.ShapeDtypeStruct]) -> forward.Tangents:
  """Z = 0, of the shapes that `tangent_shapes` gives."""
  return {name: jnp.zeros(s.shape, s.dtype) for name, s in shapes.items()}


@_naming_the_rule()
def tangent_shapes(
  eta: Eta,
  inner: state_lib.InnerState,
  data_state: PyTree,
  problem: problem_lib.Problem,
  *,
  grad_fn: curvature.GradFn,
  per_group: bool,
) -> dict[str, jax.ShapeDtypeStruct]:
  """Z's leaves by path, see `run` for the arguments."""
  moving = tangents_lib.find_moving(eta, inner, data_state, problem, grad_fn)
  count = len(jax.tree.leaves(eta)) if per_group else len(eta)
  return {
    name: jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype)
    for name, leaf in forward.pick_leaves(inner, moving).items()
  }


def _held_out(
  inner: state_lib.InnerState, batch: PyTree, problem: problem_lib.Problem
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The outer loss and its gradient in params and in model_state's floats."""
  model_state, treedef = jax.tree.flatten(inner.model_state)
  floats = [
    i for i, v in enumerate(model_state) if jnp.issubdtype(v.dtype, jnp.inexact)
  ]

  def loss(params: PyTree, values: list[jax.Array]) -> jax.Array:
    leaves = list(model_state)
    for i, value in zip(floats, values, strict=True):
      leaves[i] = value
    return losses.checked('meta_loss_fn', problem.meta_loss_fn)(
      params, jax.tree.unflatten(treedef, leaves), batch
    )[0]

  values = [model_state[i] for i in floats]
  meta_loss, (grads, slopes) = jax.value_and_grad(loss, argnums=(0, 1))(
    inner.params, values
  )
  paths = list(forward.leaves_of('model_state', inner.model_state))
  named = {paths[i]: s for i, s in zip(floats, slopes, strict=True)}
  return meta_loss, {**forward.leaves_of('params', grads), **named}


def make_contract(
  eta: Eta, params: PyTree, *, labels: PyTree | None, per_group: bool
) -> forward.Contract:
  """How the slope of a loss in the directions becomes its slope in eta.

  Args:
    eta: the meta-parameters.
    params: the model's weights, for their paths.
    labels: the group's name of each, None where there are no groups.
    per_group: whether each group has a direction of its own.
  """
  if per_group:
    treedef = jax.tree.structure(eta)

    def by_direction(
      dots: jax.Array, grads: dict, tangents: forward.Tangents
    ) -> Eta:
      del grads, tangents
      return jax.tree.unflatten(treedef, list(dots))

    return by_direction
  label_of: dict[str, Any] = dict.fromkeys(
    forward.leaves_of('params', params), ''
  )
  if labels is not None:
    label_of = forward.leaves_of('params', labels)

  def by_label(dots: jax.Array, grads: dict, tangents: forward.Tangents) -> Eta:
    # '' for all of no parameters.
    slopes = dict.fromkeys(['', *label_of.values()], jnp.zeros_like(dots))
    for path, z in tangents.items():
      if path in label_of:
        slopes[label_of[path]] += _dot(grads[path], z)
    # Sorted, as JAX returns dicts: Z's rows must not depend on who made eta.
    return {
      name: {label: slopes[label][i] for label in eta[name]}
      if isinstance(eta[name], dict)
      else slopes[''][i]
      for i, name in enumerate(sorted(eta))
    }

  return by_label


def _dot(gradient: jax.Array, tangents: jax.Array) -> jax.Array:
  """One leaf's share of g . Z for each direction, [k], at least float32.

  Of complex leaves the real part: `jax.grad` gives what makes it the slope.
  """
  dtype = jnp.promote_types(tangents.dtype, jnp.float32)
  dots = jax.vmap(lambda z: jnp.sum(gradient * z, dtype=dtype))(tangents)
  return jnp.real(dots)
