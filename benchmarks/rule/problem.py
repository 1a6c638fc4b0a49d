"""A problem: what is trained, and the number that it is judged by.

Shape legend: N examples, B batch, D coordinates.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

Params = Any
Batch = Any
Loss = Callable[[Params, Batch], jax.Array]
Draw = Callable[[jax.Array, jax.Array], Batch]

MEMORISED = 1e-2  # added to the objective where it can be brought to about 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
  """A problem without state of its own: all is of params, key and step.

  There is no model state either: batch norm takes the statistics of the batch
  in training and those of the whole training set where it is judged, so that an
  average of the params can be judged as fairly as the params.

  Attributes:
    source: where the problem comes from; 'ours' where we made it.
    init: `key -> params`, the first ones, float32.
    draw: `(key, step) -> batch`, of step 0, 1, ...; the same for each method.
    loss: `(params, batch) -> scalar`, what a step's gradient is of.
    objective: `(params, batch) -> scalar`, the training objective on fixed data
      or in the mean over all data, without noise. Where the problem is `moving`
      it is that of the batch's time; elsewhere the batch is not looked at.
    moving: whether what is looked for moves as training goes on. The objective
      is then a mean over the second half of a run, each time of the params
      before they have seen the batch.
    unseen: `params -> scalar`, the loss on data of no batch; None where there
      is none or where every batch is new.
    floor: what is added to the objective before ratios are taken.
    scale: what the rates of the grid are multiplied by where the optimizer is
      SGD, with or without momentum: of a mean over D coordinates gradients are
      D times too small, of features far from size 1 too large.
    minimum: makes params of the least objective; None where none is known.
    threshold: the published level at which the problem counts as solved; NaN
      where there is none.
    threshold_of: 'objective', or 'distance', the root mean square of the
      params less those of `minimum`.
  """

  source: str
  init: Callable[[jax.Array], Params]
  draw: Draw
  loss: Loss
  objective: Loss
  moving: bool = False
  unseen: Callable[[Params], jax.Array] | None = None
  floor: float = 0.0
  scale: float = 1.0
  minimum: Callable[[], Params] | None = None
  threshold: float = float('nan')
  threshold_of: str = 'objective'

  def is_solved(self, params: Params, objective: jax.Array) -> jax.Array:
    """Whether the published level is reached, boolean scalar."""
    if self.threshold_of == 'objective':
      return objective <= self.threshold
    assert self.minimum is not None
    return distance(params, self.minimum()) <= self.threshold


def distance(params: Params, others: Params) -> jax.Array:
  """The root mean square of the params' differences."""
  pairs = zip(jax.tree.leaves(params), jax.tree.leaves(others), strict=True)
  return jnp.sqrt(
    jnp.mean(jnp.concatenate([jnp.ravel(a - b) ** 2 for a, b in pairs]))
  )


def no_batch(key: jax.Array, step: jax.Array) -> None:
  """Draws nothing: each step has the same loss."""
  del key, step


def draw_from(examples: Any, size: int) -> Draw:
  """Draws batches of a data set, with replacement.

  Args:
    examples: a tree of arrays [N, ...].
    size: B, of the arrays of a batch [B, ...].
  """
  count = len(jax.tree.leaves(examples)[0])

  def draw(key: jax.Array, step: jax.Array) -> Batch:
    key = jax.random.fold_in(key, step)
    rows = jax.random.randint(key, (size,), 0, count)
    return jax.tree.map(lambda a: a[rows], examples)

  return draw
