r"""The inner loop: K updates of the model with fixed hyperparameters.

    theta_{k+1} = theta_k - tx(lambda)(dL/dtheta(theta_k; batch_k)),   k < K

Everything here is pure, and differentiable in lambda by either mode.

Shape legend: K unroll_length.
"""

from collections.abc import Callable, Collection, Mapping
import functools
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from metalr_flax.engine import jaxprs
from metalr_flax.engine import optimizers
from metalr_flax.engine import options
from metalr_flax.engine import safe_derivatives
from metalr_flax.engine.records import (
  GradFn,
  InnerState,
  Metrics,
  NextBatch,
  PyTree,
)

REMATS = ('none', 'step', 'sqrt')


def inner_step(
  inner: InnerState,
  hyperparams: Mapping[str, Any],
  batch: PyTree,
  *,
  grad_fn: GradFn,
  tx: optax.GradientTransformation,
  loss_hyperparams: Collection[str] = (),
  for_reverse: bool = False,
) -> tuple[InnerState, Metrics, PyTree]:
  """One update of the model on one batch.

  Args:
    inner: params, model_state and opt_state before the update.
    hyperparams: values for the injected optimizer, scalars by name (and group),
      and for the loss.
    batch: whatever the loss takes.
    grad_fn: loss and gradient, `curvature.exact(loss_fn)` or another curvature.
    tx: the inner optimizer, made by `optax.inject_hyperparams`.
    loss_hyperparams: the names of those that the loss takes.
    for_reverse: whether reverse mode is to go through it.

  Returns:
    The state after the update; the batch's metrics before it, `loss` among them
    (scalars; NaN where the gradient is not finite, which an optimizer that
    clips it or takes its sign would hide); and the gradient dL/dtheta.

  Raises:
    ValueError: for a hyperparameter that `tx` has not injected.
  """
  of_tx, of_loss = divide(hyperparams, loss_hyperparams)
  optimizers.check_injected(of_tx, inner.opt_state)
  (loss, (model_state, metrics)), grads = grad_fn(
    inner.params, inner.model_state, batch, **of_loss
  )
  chex.assert_rank(loss, 0)
  updates, opt_state = propose(
    inner.params,
    inner.opt_state,
    jax.tree.map(jnp.conj, grads),  # of complex numbers as optax wants it
    of_tx,
    tx=tx,
    for_reverse=for_reverse,
  )
  inner = inner.replace(
    params=optax.apply_updates(inner.params, updates),
    model_state=model_state,
    opt_state=opt_state,
  )
  loss = jnp.where(all_finite(grads), loss, jnp.nan)
  return inner, {**metrics, 'loss': loss}, grads


def divide(
  hyperparams: Mapping[str, Any], loss_hyperparams: Collection[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
  """The hyperparameters of the optimizer, and those of the loss."""
  of_tx = {n: v for n, v in hyperparams.items() if n not in loss_hyperparams}
  return of_tx, {name: hyperparams[name] for name in loss_hyperparams}


def all_finite(tree: PyTree) -> jax.Array:
  """Whether no float of a tree is NaN or infinite, bool scalar."""
  finite = [
    jnp.all(jnp.isfinite(leaf))
    for leaf in jax.tree.leaves(tree)
    if jaxprs.is_float(leaf)
  ]
  # A chain of ands fuses into one kernel; stacking them cost a third of the
  # reference run's time.
  return functools.reduce(jnp.logical_and, finite, jnp.array(True))


def propose(
  params: PyTree,
  opt_state: optax.OptState,
  grads: PyTree,
  hyperparams: Mapping[str, Any],
  *,
  tx: optax.GradientTransformation,
  for_reverse: bool = False,
) -> tuple[PyTree, optax.OptState]:
  """Computes the optimizer's updates, bit for bit, with finite derivatives.

  Args:
    params: of any shapes and dtypes.
    opt_state: state of `tx` before the update.
    grads: dL/dtheta, of params' structure.
    hyperparams: see `inner_step`.
    tx: see `inner_step`.
    for_reverse: see `inner_step`.

  Returns:
    What is to be added to params, and the state after the update.
  """
  opt_state = optimizers.with_hyperparams(opt_state, hyperparams)
  safe_update = safe_derivatives.safely(tx.update, for_reverse=for_reverse)
  updates, opt_state = safe_update(grads, opt_state, params)
  # The next update writes them anew: no derivative passes through this copy.
  opt_state = optimizers.with_hyperparams(
    opt_state, jax.lax.stop_gradient(dict(hyperparams))
  )
  return updates, opt_state


def unroll(
  inner: InnerState,
  data_state: PyTree,
  hyperparams: Mapping[str, Any],
  *,
  grad_fn: GradFn,
  tx: optax.GradientTransformation,
  next_batch: NextBatch,
  unroll_length: int,
  loss_hyperparams: Collection[str] = (),
  remat: str = 'none',
) -> tuple[InnerState, PyTree, Metrics]:
  """K inner updates, each on a fresh batch drawn inside the loop.

  A scan, never unrolled: with an unrolled loop XLA fuses across updates, and
  the bits of a result depend on how a run was cut.

  Args:
    inner: the state before the window.
    data_state: the sampler's position before the window.
    hyperparams: values for the injected optimizer and the loss, the same for
      all K updates.
    grad_fn: see `inner_step`.
    tx: see `inner_step`.
    next_batch: `data_state -> (data_state, batch)`.
    unroll_length: K >= 1.
    loss_hyperparams: see `inner_step`.
    remat: what reverse mode keeps of each update: all of it ('none'), the state
      before it ('step'), or the state before every sqrt(K)-th ('sqrt').

  Returns:
    The inner state and data state after the window, and the metrics of the K
    batches, arrays of shape [K].

  Raises:
    ValueError: for another unroll_length or remat, and see `inner_step`.
  """
  options.check_unroll_length(unroll_length)
  options.check_option('remat', remat, REMATS)

  def body(carry: tuple, _: None) -> tuple[tuple, Metrics]:
    inner, data_state = carry
    data_state, batch = next_batch(data_state)
    inner, metrics, _ = inner_step(
      inner,
      hyperparams,
      batch,
      grad_fn=grad_fn,
      tx=tx,
      loss_hyperparams=loss_hyperparams,
      for_reverse=True,
    )
    return (inner, data_state), metrics

  carry = started(inner, hyperparams), data_state
  (inner, data_state), metrics = _scan(body, carry, unroll_length, remat)
  chex.assert_tree_shape_prefix(metrics, (unroll_length,))
  return inner, data_state, metrics


def started(inner: InnerState, hyperparams: Mapping[str, Any]) -> InnerState:
  """The inner state with a window's hyperparameters written into it.

  Each update does so; doing it before a scan gives the carry its final types.
  """
  opt_state = optimizers.with_hyperparams(
    inner.opt_state, jax.lax.stop_gradient(dict(hyperparams))
  )
  return inner.replace(opt_state=opt_state)


def _scan(
  body: Callable, carry: tuple, length: int, remat: str
) -> tuple[tuple, Metrics]:
  if remat == 'none':
    return jax.lax.scan(body, carry, length=length)
  step = jax.checkpoint(body, prevent_cse=False)
  if remat == 'step':
    return jax.lax.scan(step, carry, length=length)
  size = math.isqrt(length - 1) + 1  # ceil(sqrt(K))

  @jax.checkpoint
  def block(carry: tuple, _: None) -> tuple[tuple, Metrics]:
    return jax.lax.scan(step, carry, length=size)

  blocks, rest = divmod(length, size)
  carry, metrics = jax.lax.scan(block, carry, length=blocks)
  metrics = jax.tree.map(lambda m: m.reshape(-1, *m.shape[2:]), metrics)
  if not rest:
    return carry, metrics
  carry, last = jax.lax.scan(step, carry, length=rest)
  joined = jax.tree.map(lambda *m: jnp.concatenate(m), metrics, last)
  return carry, joined
