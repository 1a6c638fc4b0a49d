"""Evaluates a model on data that it was never trained on."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from metalr_flax.engine import averaging
from metalr_flax.engine import records
from metalr_flax.engine import sharding

PyTree = Any
# (params, model_state) -> metrics by name, still on the device.
EvaluateFn = Callable[[PyTree, PyTree], records.Metrics]


def make_evaluate(
  loss_fn: records.LossFn,
  batches: Iterable[PyTree],
  layout: sharding.Layout | None = None,
) -> EvaluateFn:
  """Makes the function that evaluates params on some fixed batches.

  Args:
    loss_fn: `(params, model_state, batch) -> (loss, (model_state, metrics))`
      of the model in evaluation mode.
    batches: the data; the size of a batch is its first array's length.
    layout: where the params and the batches lie on several devices.

  Returns:
    `(params, model_state) -> metrics`: means over all examples by name, `loss`
    among them, scalars; `{}` where there are no batches. The result is not
    waited for.
  """
  batches = [jax.tree.map(jnp.asarray, batch) for batch in batches]
  sizes = [_size(batch) for batch in batches]
  if layout:
    loss_fn = layout.gathering(loss_fn)
    batches = [sharding.put(b, layout.of_any_batch(b)) for b in batches]

  @jax.jit
  def evaluate_batch(
    params: PyTree, model_state: PyTree, batch: PyTree
  ) -> records.Metrics:
    loss, (_, metrics) = loss_fn(params, model_state, batch)
    return {**metrics, 'loss': loss}

  def evaluate(params: PyTree, model_state: PyTree) -> records.Metrics:
    if not batches:
      return {}
    results = [evaluate_batch(params, model_state, b) for b in batches]
    if len(results) == 1:
      return results[0]
    weights = [size / sum(sizes) for size in sizes]
    return jax.tree.map(
      lambda *values: sum(w * v for w, v in zip(weights, values, strict=True)),
      *results,
    )

  return evaluate


def evaluate_state(
  evaluate: EvaluateFn, state: records.MetaTrainState
) -> records.Metrics:
  """Evaluates a state's model, and the average of it where one is kept.

  Args:
    evaluate: see `make_evaluate`.
    state: what to evaluate.

  Returns:
    The metrics of the model by name, and of the average by the same names
    after `average_`.
  """
  metrics = evaluate(state.params, state.model_state)
  if not state.average:
    return metrics
  averaged = averaging.averaged(state)
  of_average = evaluate(averaged.params, averaged.model_state)
  return {
    **metrics,
    **{f'average_{name}': value for name, value in of_average.items()},
  }


def _size(batch: PyTree) -> int:
  shape = jnp.shape(jax.tree.leaves(batch)[0])
  return shape[0] if shape else 1
