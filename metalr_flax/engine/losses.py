"""Checks what a loss function returns; an error is one line."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metalr_flax.engine import jaxprs
from metalr_flax.engine.records import LossFn, PyTree

_PAIRS = (tuple, list)


class LossError(TypeError):
  """A loss function returned something that cannot be learned from."""


def checked(name: str, loss_fn: LossFn) -> LossFn:
  """Returns `loss_fn` with a check of what it returns.

  Args:
    name: the argument that gave it, for the message.
    loss_fn: `(params, model_state, batch, **hyperparams) -> (loss,
      (model_state, metrics))`.

  Returns:
    The same function. It raises a LossError where the loss is no float scalar
    of JAX, or the metrics are not scalars by name.
  """

  def checked_loss(
    params: PyTree, model_state: PyTree, batch: PyTree, /, **given: Any
  ) -> Any:
    result = loss_fn(params, model_state, batch, **given)
    fault = _fault_of(result)
    if fault:
      raise LossError(f'{name}: {fault}')
    return result

  return checked_loss


def check_uses_params(
  name: str,
  loss_fn: LossFn,
  params: PyTree,
  model_state: PyTree,
  batch: PyTree,
  /,
  **given: Any,
) -> None:
  """Refuses a loss that does not depend on the parameters it is given.

  Of a model in its closure, for one: every gradient of it is 0.

  Args:
    name: the argument that gave it, for the message.
    loss_fn: see `checked`.
    params: for their shapes.
    model_state: for its shapes.
    batch: for its shapes.
    **given: the loss's own hyperparameters.

  Raises:
    LossError: where it does not, and as `checked`.
  """
  loss_fn = checked(name, loss_fn)
  if not jaxprs.depends_on_first(
    lambda p, s, b: loss_fn(p, s, b, **given)[0], params, model_state, batch
  ):
    raise LossError(
      f'{name}: its loss does not depend on the parameters, so that its '
      f'gradient is 0; compute it from the params that it is given'
    )


def _fault_of(result: Any) -> str | None:
  """What is wrong with a loss function's result, None where nothing."""
  if not isinstance(result, _PAIRS) or len(result) != 2:
    return (
      f'returned {_type_of(result)}; return (loss, (model_state, metrics)), '
      f'{{}} for what there is not'
    )
  loss, aux = result
  if isinstance(aux, _PAIRS) and len(aux) == 1:  # `make_loss_fn`
    return 'returned no metrics; return (loss, metrics), e.g. (loss, {})'
  if not isinstance(aux, _PAIRS) or len(aux) != 2:
    return (
      f'returned (loss, {_type_of(aux)}); return (loss, (model_state, '
      f'metrics)), {{}} for what there is not'
    )
  if not isinstance(loss, jax.Array):
    return (
      f'returned the loss as {_type_of(loss)}, a constant without a gradient; '
      f'compute it from the parameters with jax.numpy'
    )
  if loss.ndim or not jnp.issubdtype(loss.dtype, jnp.floating):
    return (
      f'returned the loss as {_type_of(loss)}; return a float scalar, e.g. by '
      f'jnp.mean'
    )
  return _fault_of_metrics(aux[1])


def _fault_of_metrics(metrics: Any) -> str | None:
  if not isinstance(metrics, Mapping):
    return (
      f'returned {_type_of(metrics)} for metrics; return scalars by name, {{}} '
      f'where there are none'
    )
  for name, value in metrics.items():
    if np.ndim(value):
      return (
        f'returned the metric {name!r} as {_type_of(value)}; return scalars, '
        f'e.g. by jnp.mean'
      )
  return None


def _type_of(value: Any) -> str:
  """A value's type in an error message: `float32[16]`, `tuple of 3`, ..."""
  if isinstance(value, jax.Array):
    return str(jax.typeof(value))
  if isinstance(value, _PAIRS):
    return f'{type(value).__name__} of {len(value)}'
  return type(value).__name__
