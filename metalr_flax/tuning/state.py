"""The state of a self-tuned optimizer."""

from typing import Any, NamedTuple

import jax
import optax

from metalr_flax.engine.records import Eta
from metalr_flax.engine.tangents import Tangents
from metalr_flax.tuning import factors
from metalr_flax.tuning import guard as guard_lib


class SelfTuningState(NamedTuple):
  """The state of a self-tuned optimizer, a plain pytree of arrays.

  Attributes:
    opt_state: the inner optimizer's own; its `hyperparams` are the last used.
    base: each learned hyperparameter as the user set it.
    eta: logarithms of the factors on them, float32 scalars.
    meta_opt_state: what moves eta remembers: `steering.Steering`, or the state
      of `meta_tx`.
    tangents: Z by the place of its leaf in (params, opt_state): arrays
      [k, ...], k hyperparameters, or None where the leaf does not move.
    displacement: the sum of the last one to three updates, [1, ...] by place.
    guard: against explosions; None where nothing is guarded.
    scales: norms of the first parameters that each learning rate moves, by its
      name; empty where nothing is guarded.
    step: updates done, int32 scalar.
    held_out: whether finite `meta_grads` were ever given, boolean scalar.
  """

  opt_state: optax.OptState
  base: factors.Values
  eta: Eta
  meta_opt_state: Any
  tangents: Tangents
  displacement: Tangents
  guard: guard_lib.Guard | None
  scales: Eta
  step: jax.Array
  held_out: jax.Array
