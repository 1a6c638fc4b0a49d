r"""The inner loop: K updates of the model with fixed hyperparameters.

    theta_{k+1} = theta_k - tx(lambda)(dL/dtheta(theta_k; batch_k)),   k < K

Everything here is pure, and differentiable in lambda.

Shape legend: K unroll_length.
"""

from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import optax

from metalr_flax import optimizers
from metalr_flax import state as state_lib

PyTree = Any
Metrics = dict[str, jax.Array]
# (params, model_state, batch) -> (loss, (model_state, metrics)); all pure.
LossFn = Callable[[PyTree, PyTree, PyTree], tuple[jax.Array, Any]]
# data_state -> (data_state, batch); pure.
NextBatch = Callable[[PyTree], tuple[PyTree, PyTree]]


def inner_step(
  inner: state_lib.InnerState,
  hyperparams: Mapping[str, jax.Array],
  batch: PyTree,
  *,
  loss_fn: LossFn,
  tx: optax.GradientTransformation,
) -> tuple[state_lib.InnerState, Metrics]:
  """One update of the model on one batch.

  Args:
    inner: params, model_state and opt_state before the update.
    hyperparams: values for the injected optimizer, scalars by name.
    batch: whatever `loss_fn` takes.
    loss_fn: `(params, model_state, batch) -> (loss, (model_state, metrics))`.
    tx: the inner optimizer, made by `optax.inject_hyperparams`.

  Returns:
    The state after the update, and the batch's metrics before it, `loss` among
    them (scalars).
  """
  (loss, (model_state, metrics)), grads = jax.value_and_grad(
    loss_fn, has_aux=True
  )(inner.params, inner.model_state, batch)
  chex.assert_rank(loss, 0)
  opt_state = optimizers.with_hyperparams(inner.opt_state, hyperparams)
  updates, opt_state = tx.update(grads, opt_state, inner.params)
  params = optax.apply_updates(inner.params, updates)
  inner = inner.replace(
    params=params, model_state=model_state, opt_state=opt_state
  )
  return inner, {'loss': loss, **metrics}


def unroll(
  inner: state_lib.InnerState,
  data_state: PyTree,
  hyperparams: Mapping[str, jax.Array],
  *,
  loss_fn: LossFn,
  tx: optax.GradientTransformation,
  next_batch: NextBatch,
  unroll_length: int,
) -> tuple[state_lib.InnerState, PyTree, Metrics]:
  """K inner updates, each on a fresh batch drawn inside the loop.

  A scan, never unrolled: with an unrolled loop XLA fuses across updates, and
  the bits of a result depend on how a run was cut.

  Args:
    inner: the state before the window.
    data_state: the sampler's position before the window.
    hyperparams: values for the injected optimizer, the same for all K updates.
    loss_fn: see `inner_step`.
    tx: see `inner_step`.
    next_batch: `data_state -> (data_state, batch)`.
    unroll_length: K >= 1.

  Returns:
    The inner state and data state after the window, and the metrics of the K
    batches, arrays of shape [K].
  """

  def body(carry: tuple, _: None) -> tuple[tuple, Metrics]:
    inner, data_state = carry
    data_state, batch = next_batch(data_state)
    inner, metrics = inner_step(
      inner, hyperparams, batch, loss_fn=loss_fn, tx=tx
    )
    return (inner, data_state), metrics

  # One update writes the hyperparameters into the state; doing it before the
  # scan gives the carry its final types.
  opt_state = optimizers.with_hyperparams(inner.opt_state, hyperparams)
  carry = inner.replace(opt_state=opt_state), data_state
  (inner, data_state), metrics = jax.lax.scan(body, carry, length=unroll_length)
  chex.assert_tree_shape_prefix(metrics, (unroll_length,))
  return inner, data_state, metrics
