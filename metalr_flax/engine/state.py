"""The two states that are carried: one by the inner loop, one by the outer.

Randomness has no field of its own: the sampler's keys live in `data_state`, the
model's (Dropout) in `model_state`, so that everything random moves on exactly
when it is used and a resumed run draws what an uninterrupted one draws.
"""

from typing import Any

import flax.struct
import jax
import optax

PyTree = Any


class InnerState(flax.struct.PyTreeNode, kw_only=True):
  """What one inner update changes: z = (theta, the optimizer's own state).

  Attributes:
    params: model weights theta, a plain nested dict of arrays.
    model_state: the model's other variables (BatchNorm averages, RNG counts).
    opt_state: state of the injected inner optimizer `tx`.
  """

  params: PyTree
  model_state: PyTree
  opt_state: optax.OptState


class MetaTrainState(flax.struct.PyTreeNode, kw_only=True):
  """All that a run needs to go on, bit for bit, and nothing else.

  Attributes:
    step: outer steps done, int32 scalar.
    params: model weights theta, a plain nested dict of arrays.
    model_state: the model's other variables (BatchNorm averages, RNG counts).
    opt_state: state of the injected inner optimizer; its `hyperparams` are
      those of the last window.
    eta: unconstrained meta-parameters by hyperparameter name, and by group
      label where there are groups; float32 scalars (float64 under x64).
    meta_opt_state: state of the outer optimizer `meta_tx` over eta.
    tangents: forward mode's Z where it outlives its window: by leaf path,
      arrays [k, ...]; otherwise `{}`.
    data_state: the sampler's position, whatever `Task.init` returned.
  """

  step: jax.Array
  params: PyTree
  model_state: PyTree
  opt_state: optax.OptState
  eta: dict[str, Any]
  meta_opt_state: optax.OptState
  tangents: dict[str, jax.Array]
  data_state: PyTree

  @property
  def inner(self) -> InnerState:
    """The part that the inner loop carries."""
    return InnerState(
      params=self.params,
      model_state=self.model_state,
      opt_state=self.opt_state,
    )
