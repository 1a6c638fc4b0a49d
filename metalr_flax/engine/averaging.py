r"""A running average of the model that needs no horizon.

    x <- x + (1 - 2^(-1/h)) (z - x),    h = max(share t, min(10, t / 2))

z is the model after the t-th outer step, x its average. Its half-life h is a
share of the steps done so far, so the average forgets the beginning at the pace
at which the run gets longer, whenever it ends (anytime averaging,
https://arxiv.org/abs/2602.03702). The updates themselves never see it.

BatchNorm's running statistics are averaged with the weights: those of the
newest weights do not fit an average of many.
"""

import math

import jax
import jax.numpy as jnp

from metalr_flax.engine import jaxprs
from metalr_flax.engine.records import MetaTrainState, PyTree

_SHORTEST = 10.0  # outer steps, where a run has done 20


def begin(state: MetaTrainState) -> dict[str, PyTree]:
  """The average before the first outer step: the model itself.

  Args:
    state: the first one.

  Returns:
    Trees like `params` and `model_state`, by these names; floats in float32 at
    least, since most steps of an average are too small for bfloat16.
  """
  return jax.tree.map(_widened, _of_model(state))


def update(state: MetaTrainState, share: float) -> dict[str, PyTree]:
  """The average after an outer step.

  Args:
    state: after the step; its average is that of the step before.
    share: the half-life's, in (0, 1].

  Returns:
    What takes the place of `state.average`. What is no finite float is that of
    the state.
  """
  done = state.step.astype(jnp.float32)
  half_life = jnp.maximum(share * done, jnp.minimum(_SHORTEST, done / 2))
  weight = -jnp.expm1(-math.log(2.0) / half_life)

  def mix(x: jax.Array, z: jax.Array) -> jax.Array:
    if not jaxprs.is_float(z):
      return z
    z = z.astype(x.dtype)
    mixed = x + weight.astype(x.real.dtype) * (z - x)
    return jnp.where(jnp.isfinite(mixed), mixed, z)

  return jax.tree.map(mix, state.average, _of_model(state))


def averaged(state: MetaTrainState) -> MetaTrainState:
  """The state with its average for its model, in the model's dtypes."""
  model = jax.tree.map(
    lambda x, z: x.astype(z.dtype) if jaxprs.is_float(z) else x,
    state.average,
    _of_model(state),
  )
  return state.replace(**model)


def _of_model(state: MetaTrainState) -> dict[str, PyTree]:
  return {'params': state.params, 'model_state': state.model_state}


def _widened(leaf: jax.Array) -> jax.Array:
  if not jaxprs.is_float(leaf):
    return leaf
  return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
