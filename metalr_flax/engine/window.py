"""One window of inner updates, and what it leaves behind."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from metalr_flax.engine import bijections
from metalr_flax.engine import curvature
from metalr_flax.engine import inner as inner_lib
from metalr_flax.engine import losses
from metalr_flax.engine import problem as problem_lib
from metalr_flax.engine import state as state_lib

PyTree = Any


class Window(flax.struct.PyTreeNode, kw_only=True):
  """What a window leaves behind.

  Attributes:
    inner: params, model_state and opt_state after the K updates.
    data_state: the sampler's position after the window's batches.
    tangents: forward mode's Z after the K updates; `{}` if it is not kept.
    metrics: scalars by public metric key (`train/loss`, `meta/loss`, ...).
  """

  inner: state_lib.InnerState
  data_state: PyTree
  tangents: dict[str, jax.Array]
  metrics: inner_lib.Metrics


def run_plain(
  eta: bijections.Eta,
  inner: state_lib.InnerState,
  data_state: PyTree,
  problem: problem_lib.Problem,
  *,
  grad_fn: curvature.GradFn,
  remat: str,
) -> Window:
  """K inner updates, differentiable in eta.

  Args:
    eta: unconstrained meta-parameters.
    inner: the inner state before the window.
    data_state: the sampler's position before the window.
    problem: the bilevel problem.
    grad_fn: the inner loss's gradient with its curvature.
    remat: what reverse mode keeps, see `inner.unroll`.
  """
  inner, data_state, metrics = inner_lib.unroll(
    inner,
    data_state,
    bijections.constrain(eta, problem.bijections),
    grad_fn=grad_fn,
    tx=problem.tx,
    next_batch=problem.next_batch,
    unroll_length=problem.unroll_length,
    remat=remat,
  )
  return Window(
    inner=inner, data_state=data_state, tangents={}, metrics=means(metrics)
  )


def run_judged(
  eta: bijections.Eta,
  inner: state_lib.InnerState,
  data_state: PyTree,
  problem: problem_lib.Problem,
  *,
  grad_fn: curvature.GradFn,
  remat: str,
  online: bool,
) -> tuple[jax.Array, Window]:
  """The same with the outer loss: that of the K batches, or of one held out.

  A held-out loss is taken on the params *after* the K updates: on those from
  before the last one, the gradient of a window of one update would be exactly
  0.
  """
  window = run_plain(
    eta, inner, data_state, problem, grad_fn=grad_fn, remat=remat
  )
  if online:
    meta_loss = window.metrics['train/loss']
  else:
    data_state, batch = problem.next_meta_batch(window.data_state)
    meta_loss, _ = losses.checked('meta_loss_fn', problem.meta_loss_fn)(
      window.inner.params, window.inner.model_state, batch
    )
    window = window.replace(data_state=data_state)
  metrics = {**window.metrics, 'meta/loss': meta_loss}
  return meta_loss, window.replace(metrics=metrics)


def means(metrics: inner_lib.Metrics) -> inner_lib.Metrics:
  """The K batches' metrics [K] as means, by public key."""
  return {f'train/{name}': jnp.mean(v) for name, v in metrics.items()}
