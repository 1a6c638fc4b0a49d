"""A window: K inner updates, and the outer loss that judges them.

held_out:  F = meta_loss(theta_K; a batch that took no part)
online:    F = mean over k of loss(theta_k; batch_k), before each update
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from metalr_flax.engine import bijections
from metalr_flax.engine import inner as inner_lib
from metalr_flax.engine import losses
from metalr_flax.engine.records import (
  Carry,
  Eta,
  GradFn,
  InnerState,
  Metrics,
  Problem,
)  # fmt: skip

# Of a window's metrics; with blanks, as no metric of a user's is called.
FIRST_LOSS = 'train/loss of the first batch'
# (inner state after the window, mean of its K inner losses) -> F
OuterLoss = Callable[[InnerState, jax.Array], jax.Array]


def unroll(
  eta: Eta,
  carry: Carry,
  problem: Problem,
  *,
  grad_fn: GradFn,
  remat: str = 'none',
) -> tuple[Carry, Metrics]:
  """K inner updates, differentiable in eta by reverse mode.

  Args:
    eta: unconstrained meta-parameters.
    carry: before the window; its tangents stay as they are.
    problem: the bilevel problem.
    grad_fn: the inner loss's gradient with its curvature.
    remat: what reverse mode keeps, see `inner.unroll`.

  Returns:
    The carry after the window, and the means of the K batches' metrics.
  """
  inner, data_state, metrics = inner_lib.unroll(
    carry.inner,
    carry.data_state,
    bijections.constrain(eta, problem.bijections),
    grad_fn=grad_fn,
    tx=problem.tx,
    next_batch=problem.next_batch,
    unroll_length=problem.unroll_length,
    loss_hyperparams=problem.loss_hyperparams,
    remat=remat,
  )
  return carry.replace(inner=inner, data_state=data_state), summarize(
    metrics, problem
  )


def summarize(metrics: Metrics, problem: Problem) -> Metrics:
  """The K batches' metrics [K] as means, by public key.

  Args:
    metrics: arrays [K] by name, `loss` among them.
    problem: says whether the first loss is wanted by itself.
  """
  means = {f'train/{name}': jnp.mean(v) for name, v in metrics.items()}
  if problem.first_loss:
    means[FIRST_LOSS] = metrics['loss'][0]
  return means


def draw_outer_loss(
  carry: Carry, problem: Problem, *, online: bool
) -> tuple[OuterLoss, Carry]:
  """The outer loss F of a window, the held-out batch drawn where it has one.

  A held-out loss is taken on the params *after* the K updates: on those from
  before the last one, the gradient of a window of one update would be exactly
  0.

  Args:
    carry: after the window's updates.
    problem: the bilevel problem.
    online: whether F is the mean of the window's inner losses.

  Returns:
    `(inner, train_loss) -> F`, and the carry after the batch.
  """
  if online:
    return (lambda inner, train_loss: train_loss), carry
  data_state, batch = problem.next_meta_batch(carry.data_state)
  loss_fn = losses.checked('meta_loss_fn', problem.meta_loss_fn)

  def held_out(inner: InnerState, train_loss: jax.Array) -> jax.Array:
    del train_loss
    return loss_fn(inner.params, inner.model_state, batch)[0]

  return held_out, carry.replace(data_state=data_state)
