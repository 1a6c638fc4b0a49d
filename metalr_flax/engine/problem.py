"""What is being optimized: the parts of a bilevel problem in one record."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import optax

from metalr_flax.engine import bijections as bijections_lib
from metalr_flax.engine import inner


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
  """A bilevel problem: an inner loop, and the loss that judges it.

  Attributes:
    loss_fn: inner loss, `(params, model_state, batch) -> (loss, (model_state,
      metrics))`; metrics are scalars by name.
    meta_loss_fn: outer loss F of a window's last batch, the same signature; the
      model_state that it returns is dropped.
    next_batch: `data_state -> (data_state, batch)`, draws an inner batch.
    next_meta_batch: the same for the outer loss's batch.
    tx: inner optimizer made by `optax.inject_hyperparams`, or by
      `optimizers.make_grouped` where there are groups.
    bijections: the learned hyperparameters, each with its bijection's spec,
      e.g. `{'learning_rate': 'sigmoid'}`.
    unroll_length: K >= 1, inner updates in a window.
    labels: the group's name of each parameter, a tree of params' structure;
      None where all share one set of hyperparameters.

  Raises:
    ValueError: for an unknown bijection or an unroll_length that is no integer
      of 1 or more.
  """

  loss_fn: inner.LossFn
  meta_loss_fn: inner.LossFn
  next_batch: inner.NextBatch
  next_meta_batch: inner.NextBatch
  tx: optax.GradientTransformation
  bijections: Mapping[str, str]
  unroll_length: int
  labels: Any = None

  def __post_init__(self) -> None:
    """Refuses what no window could use."""
    inner.check_unroll_length(self.unroll_length)
    if not isinstance(self.bijections, Mapping):
      raise ValueError(
        f'bijections: must be specs by name, not '
        f"{type(self.bijections).__name__}; e.g. {{'learning_rate': 'log'}}"
      )
    for name in self.bijections:
      bijections_lib.find_bijection(name, self.bijections)
