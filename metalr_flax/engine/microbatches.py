r"""Computes a batch's loss in parts, one after the other, to save memory.

    L(theta; batch) = 1/n sum_i L(theta; part i)

Each part is computed again when the loss is differentiated, so that only one
part's activations are alive at any time; every derivative passes through. The
price is one more forward pass.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp

from metalr_flax.engine import losses
from metalr_flax.engine.records import LossFn, PyTree


class UnevenError(ValueError):
  """A batch cannot be cut into equal parts."""


def split(
  loss_fn: LossFn,
  count: int,
  place: Callable[[PyTree], PyTree] | None = None,
) -> LossFn:
  """The same loss of a batch, computed in equal parts.

  It is the same where a loss is a mean over the batch's examples, and its
  metrics are. What the model keeps of a batch (BatchNorm) is kept of each part.

  Args:
    loss_fn: `(params, model_state, batch, **hyperparams) -> (loss,
      (model_state, metrics))`.
    count: n, how many parts; 1 is the loss itself.
    place: says where the parts `[n, B / n, ...]` lie on several devices, so
      that each part is computed by all of them.

  Returns:
    A function of the same signature: the means of the parts' losses and
    metrics, and the model_state after the last part. Every array of a batch is
    cut along its first axis; scalars go to each part.

  Raises:
    UnevenError: when it is traced, for arrays that n does not divide.
  """
  if count == 1:
    return loss_fn
  checked = losses.checked('loss_fn', loss_fn)

  def in_parts(
    params: PyTree, model_state: PyTree, batch: PyTree, /, **given: Any
  ) -> Any:
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def body(model_state: PyTree, part: PyTree) -> tuple[PyTree, Any]:
      loss, (model_state, metrics) = checked(params, model_state, part, **given)
      return model_state, (loss, metrics)

    parts = jax.tree.map(lambda leaf: _cut(leaf, count), batch)
    parts = place(parts) if place else parts
    model_state, found = jax.lax.scan(body, model_state, parts)
    loss, metrics = jax.tree.map(lambda values: jnp.mean(values, 0), found)
    return loss, (model_state, metrics)

  return in_parts


def _cut(leaf: jax.Array, count: int) -> jax.Array:
  """`[B, ...]` as `[n, B / n, ...]`; a scalar n times."""
  if not jnp.ndim(leaf):
    return jnp.broadcast_to(leaf, (count,))
  size, *rest = jnp.shape(leaf)
  if size % count:
    raise UnevenError(
      f'microbatches={count}: must divide the {size} examples that a loss is '
      f'taken on; choose a divisor of {size}'
    )
  return leaf.reshape(count, size // count, *rest)
