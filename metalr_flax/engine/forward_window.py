"""Forward mode over one window: K updates, their tangents, and the slope.

Shape legend: K unroll_length, k directions.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from metalr_flax.engine import bijections
from metalr_flax.engine import forward
from metalr_flax.engine import inner as inner_lib
from metalr_flax.engine import paths
from metalr_flax.engine import slopes
from metalr_flax.engine import window
from metalr_flax.engine.records import (
  Carry,
  Eta,
  GradFn,
  InnerState,
  Metrics,
  Problem,
  PyTree,
)


@forward.naming_the_rule()
def differentiate(
  eta: Eta,
  carry: Carry,
  problem: Problem,
  *,
  grad_fn: GradFn,
  per_group: bool,
  online: bool,
) -> tuple[Eta, Carry, Metrics]:
  """Runs a window with its tangents, and finds the slope of its outer loss.

  Args:
    eta: unconstrained meta-parameters.
    carry: before the window; its tangents are of the leaves that eta moves,
      discounted.
    problem: the bilevel problem.
    grad_fn: the inner loss's gradient with its curvature.
    per_group: see `forward.directions`.
    online: see `window.draw_outer_loss`.

  Returns:
    As `meta_gradient.Estimator`, the carry with Z after the window.
  """
  contract = slopes.make_contract(
    eta, None if per_group else _labels_by_place(carry.inner, problem.labels)
  )
  carry, meta_grads, metrics = _unroll(
    eta,
    carry,
    problem,
    grad_fn=grad_fn,
    per_group=per_group,
    contract=contract if online else None,
  )
  outer_loss, carry = window.draw_outer_loss(carry, problem, online=online)
  of_inner = lambda inner: outer_loss(inner, metrics['train/loss'])
  if online:
    loss = of_inner(carry.inner)
  else:
    count = forward.count_directions(eta, per_group=per_group)
    start = jnp.zeros(count, jax.tree.leaves(eta)[0].dtype)
    loss, meta_grads = slopes.differentiate(
      of_inner, carry.inner, carry.tangents, contract, start
    )
  return meta_grads, carry, {**metrics, 'meta/loss': loss}


def _unroll(
  eta: Eta,
  carry: Carry,
  problem: Problem,
  *,
  grad_fn: GradFn,
  per_group: bool,
  contract: slopes.Contract | None,
) -> tuple[Carry, Eta, Metrics]:
  """K inner updates with their tangents.

  Returns:
    The carry after the window; the mean of the slopes of each batch's own loss
    before its update, of eta's structure, where `contract` gives them; and the
    means of the K batches' metrics.
  """
  phi = functools.partial(bijections.constrain, bijections=problem.bijections)
  hyperparams, hyperparam_dots, _ = forward.push(
    lambda e: (phi(e), None),
    (eta,),
    (forward.directions(eta, per_group=per_group),),
  )

  def body(carry: Carry, _: None) -> tuple[Carry, tuple[Metrics, Any]]:
    data_state, batch = problem.next_batch(carry.data_state)

    def update(leaves: PyTree, hyperparams: PyTree) -> tuple:
      new, metrics, grads = inner_lib.inner_step(
        paths.with_leaves(carry.inner, leaves),
        hyperparams,
        batch,
        grad_fn=grad_fn,
        tx=problem.tx,
        loss_hyperparams=problem.loss_hyperparams,
      )
      return paths.name_leaves(new), metrics['loss'], (new, metrics, grads)

    leaves = paths.name_leaves(carry.inner)
    z = paths.by_place(carry.tangents, leaves)
    _, z_new, dots, (new, metrics, grads) = forward.push_update(
      update, leaves, hyperparams, z, hyperparam_dots
    )
    slope: Any = ()
    if contract:
      by_path = paths.leaves_of('params', grads)
      slope = contract(dots, paths.by_place(by_path, leaves), z)
    tangents = paths.by_path(z_new, leaves)
    carry = Carry(inner=new, data_state=data_state, tangents=tangents)
    return carry, (metrics, slope)

  inner = inner_lib.started(carry.inner, hyperparams)
  carry, (metrics, slope) = jax.lax.scan(
    body, carry.replace(inner=inner), length=problem.unroll_length
  )
  mean = functools.partial(jnp.mean, axis=0)
  metrics = window.summarize(metrics, problem)
  return carry, jax.tree.map(mean, slope), metrics


def _labels_by_place(inner: InnerState, labels: PyTree | None) -> slopes.Labels:
  """The group of each parameter, '' for all where there are none."""
  if labels is None:
    labels = jax.tree.map(lambda _: '', inner.params)
  return paths.by_place(
    paths.leaves_of('params', labels), paths.name_leaves(inner)
  )
