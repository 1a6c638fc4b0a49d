"""The outer step of a run, and its first state as the step wants it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from metalr_flax.engine import averaging
from metalr_flax.engine import meta_gradient
from metalr_flax.engine import outer
from metalr_flax.engine import records
from metalr_flax.engine import sharding
from metalr_flax.trainer import feed as feed_lib


def make_step_fn(
  problem: records.Problem,
  meta_tx: optax.GradientTransformation,
  estimator: meta_gradient.Estimator,
  limit: Callable[[records.MetaTrainState], records.MetaTrainState],
  judge: Callable[..., tuple[records.MetaTrainState, records.Metrics]],
  summarize: Callable[[records.MetaTrainState], dict[str, jax.Array]],
  average: float,
  layout: sharding.Layout | None,
) -> outer.StepFn:
  """Makes the outer step that a run repeats.

  Args:
    problem: the bilevel problem.
    meta_tx: the outer optimizer, unless the step is given a member's own.
    estimator: how a window is differentiated.
    limit: `state -> state`, see `build_optimizers.build_limit`.
    judge: `(before, after, metrics) -> (state, metrics)`, see
      `build_optimizers.build_judge`.
    summarize: `state -> metrics`, of what the task says of the params.
    average: of the params, the share of the old one; 0 keeps none.
    layout: where the state lies on several devices; None for one device.

  Returns:
    `(state, feed=None) -> (state, metrics)`; without a feed batches are drawn
    from the task in memory.
  """

  def step_fn(
    state: records.MetaTrainState,
    feed: feed_lib.Feed | None = None,
    *,
    meta_tx: optax.GradientTransformation = meta_tx,
  ) -> tuple[records.MetaTrainState, records.Metrics]:
    fed = problem if feed is None else feed_lib.fed(problem, feed)
    fed = layout.spread(fed) if layout else fed
    after, metrics = outer.outer_step(
      limit(state), fed, meta_tx=meta_tx, estimator=estimator
    )
    state, metrics = judge(state, after, metrics)
    if average:
      state = state.replace(average=averaging.update(state, average))
    state = layout.keep(state) if layout else state
    return state, {**metrics, **summarize(state)}

  return step_fn


def with_average(
  state: records.MetaTrainState, share: float
) -> records.MetaTrainState:
  """The first state with the average that its run keeps."""
  if not share:
    return state
  return state.replace(average=averaging.begin(state))


def placed(
  state: records.MetaTrainState, layout: sharding.Layout | None
) -> records.MetaTrainState:
  """The first state where it belongs."""
  state = _unshared(state)
  return layout.place(state) if layout else state


def _unshared(state: records.MetaTrainState) -> records.MetaTrainState:
  """Copies of all arrays: a state is donated, and no array may be twice.

  Strongly typed, as a restored state is: the bits must not depend on whether a
  run was resumed.
  """
  return jax.tree.map(_strong_copy, state)


def _strong_copy(leaf: jax.Array) -> jax.Array:
  leaf = jnp.copy(leaf)
  if jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
    return leaf
  return jax.lax.convert_element_type(leaf, leaf.dtype)
