r"""The outer loop: eta moves along its meta-gradient, window after window.

eta <- eta - meta_tx(dF/deta)
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any

import flax.struct
import jax
from jax.extend import core
import jax.numpy as jnp
import optax

from metalr_flax.engine import agreement
from metalr_flax.engine import bijections
from metalr_flax.engine import inner as inner_lib
from metalr_flax.engine import jaxprs
from metalr_flax.engine import meta_gradient
from metalr_flax.engine import optimizers
from metalr_flax.engine.records import (
  InnerState,
  MetaTrainState,
  Metrics,
  Problem,
  PyTree,
)  # fmt: skip

StepFn = Callable[[MetaTrainState], tuple[MetaTrainState, Metrics]]


class Chunk(flax.struct.PyTreeNode, kw_only=True):
  """The record of several outer steps done in one device call.

  Attributes:
    rows: metrics by key, each of shape [max_steps]; row i is the i-th step's.
    count: steps tried, int32 scalar; the last of them is the first that was not
      finite where `finite` is False.
    finite: whether losses, gradients and state stayed finite; the step that
      made them otherwise was rejected.
    parts: the same for 'losses and gradients' and each field of the state in
      that step.
  """

  rows: Metrics
  count: jax.Array
  finite: jax.Array
  parts: dict[str, jax.Array]


# Finite values beyond it are clipped: the square of 1e15 is within float32.
MAX_META_GRAD = 1e15
# A gradient that is not finite makes its loss NaN, see `inner.inner_step`.
_MEASURED = 'losses and gradients'
_WATCHED = ('train/loss', 'meta/loss', 'meta/grad_norm')
_REVERSE = meta_gradient.Estimator()
_Carry = tuple[MetaTrainState, Chunk]


def init_state(
  problem: Problem,
  *,
  params: PyTree,
  model_state: PyTree,
  data_state: PyTree,
  hyperparams: Mapping[str, Any],
  meta_tx: optax.GradientTransformation,
  estimator: meta_gradient.Estimator = _REVERSE,
) -> MetaTrainState:
  """The state before the first outer step.

  Args:
    problem: the bilevel problem.
    params: the model's initial weights.
    model_state: its other variables, `{}` if it has none.
    data_state: what the sampler starts from.
    hyperparams: initial value of each learned hyperparameter, Python floats
      inside their bijections' open ranges; by group label where the problem
      has groups.
    meta_tx: the outer optimizer.
    estimator: the one that the outer steps will use.

  Returns:
    A state at step 0.

  Raises:
    ValueError: for hyperparameters that are not the problem's or that its `tx`
      has not injected, and for values outside their ranges.
  """
  opt_state = optimizers.init_state(problem.tx, params)
  inner = InnerState(
    params=params, model_state=model_state, opt_state=opt_state
  )
  agreement.check_names(hyperparams, inner, problem)
  eta = bijections.unconstrain(hyperparams, problem.bijections)
  state = MetaTrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    model_state=model_state,
    opt_state=opt_state,
    eta=eta,
    meta_opt_state=meta_tx.init(eta),
    tangents={},
    data_state=data_state,
  )
  tangents = estimator.init_tangents(eta, inner, data_state, problem)
  return state.replace(tangents=tangents)


def outer_step(
  state: MetaTrainState,
  problem: Problem,
  *,
  meta_tx: optax.GradientTransformation,
  estimator: meta_gradient.Estimator = _REVERSE,
) -> tuple[MetaTrainState, Metrics]:
  """One window of inner updates, then one update of eta.

  Pure: jit it, scan it, or call it as it is.

  ```python
  step = jax.jit(functools.partial(outer_step, problem=..., meta_tx=...))
  for _ in range(num_outer_steps):
    state, metrics = step(state)
  ```

  Args:
    state: the state before.
    problem: the bilevel problem.
    meta_tx: the outer optimizer over eta.
    estimator: how to differentiate a window, the one that `init_state` was
      given.

  Returns:
    The state after, and scalars by public metric key. `train/loss` is the mean
    of the K losses before each update, `hyperparams/<name>` is the value that
    the *next* window will use.

  Raises:
    ValueError: when it is traced, see `Estimator.__call__`.
    TypeError: the same.
  """
  meta_grads, carry, metrics = estimator(state.eta, state.carry, problem)
  eta, meta_opt_state = state.eta, state.meta_opt_state
  if meta_grads is not None:
    meta_grads = jax.tree.map(
      lambda g: bijections.clip_finite(g, -MAX_META_GRAD, MAX_META_GRAD),
      meta_grads,
    )
    updates, meta_opt_state = meta_tx.update(meta_grads, meta_opt_state, eta)
    eta = optax.apply_updates(eta, updates)
    eta = bijections.project(eta, problem.bijections)
    metrics = {**metrics, 'meta/grad_norm': optax.tree.norm(meta_grads)}
  learned = bijections.constrain(eta, problem.bijections)
  metrics = {**metrics, **bijections.flatten(learned, 'hyperparams')}
  state = state.with_carry(carry).replace(
    step=state.step + 1, eta=eta, meta_opt_state=meta_opt_state
  )
  return state, metrics


def outer_steps(
  state: MetaTrainState,
  num_steps: jax.Array,
  *,
  step_fn: StepFn,
  max_steps: int,
) -> tuple[MetaTrainState, Chunk]:
  """Up to `num_steps` outer steps in one device call.

  The count is a traced value and the metrics go to preallocated rows, so one
  executable serves chunks of every length, and the bits of a run do not depend
  on how it was cut. The loop ends early at the first step that is not finite,
  which is rejected as a whole: its row stays to tell what it was, its state
  does not. (That keeps one more copy of the state alive.)

  Args:
    state: the state before.
    num_steps: how many steps to take, int32 scalar, at most `max_steps`.
    step_fn: `state -> (state, metrics)`, an `outer_step` with its problem.
    max_steps: rows to preallocate, >= 1.

  Returns:
    The state after the last step that was finite, and the steps' record.

  Raises:
    ValueError: for counts that are out of order, where they are known: a traced
      `num_steps` is not looked at.
  """
  check_counts(num_steps, max_steps)
  step_fn, rows = traced(step_fn, state, max_steps)

  def body(carry: _Carry) -> _Carry:
    state, chunk = carry
    new_state, metrics = step_fn(state)
    rows = jax.tree.map(
      lambda row, value: row.at[chunk.count].set(value), chunk.rows, metrics
    )
    parts = finite_parts(new_state, state, metrics)
    finite = functools.reduce(jnp.logical_and, parts.values())
    state = jax.tree.map(functools.partial(jnp.where, finite), new_state, state)
    return state, Chunk(
      rows=rows, count=chunk.count + 1, finite=finite, parts=parts
    )

  def go_on(carry: _Carry) -> jax.Array:
    _, chunk = carry
    return (chunk.count < num_steps) & chunk.finite

  chunk = Chunk(
    rows=rows,
    count=jnp.zeros((), jnp.int32),
    finite=jnp.array(True),
    parts=dict.fromkeys(part_names(state), jnp.array(True)),
  )
  return jax.lax.while_loop(go_on, body, (state, chunk))


def traced(
  step_fn: StepFn, state: MetaTrainState, max_steps: int
) -> tuple[StepFn, Metrics]:
  """Traces a step once.

  Args:
    step_fn: `state -> (state, metrics)`.
    state: for its shapes.
    max_steps: rows to preallocate.

  Returns:
    A function that does the same and is not traced again, and zeros for the
    metrics of its steps, [max_steps, ...].
  """
  jaxpr, out = jax.make_jaxpr(step_fn, return_shape=True)(state)
  run, treedef = core.jaxpr_as_fun(jaxpr), jax.tree.structure(out)

  def step(state: MetaTrainState) -> Any:
    return jax.tree.unflatten(treedef, run(*jax.tree.leaves(state)))

  rows = jax.tree.map(
    lambda s: jnp.zeros((max_steps, *s.shape), s.dtype), out[1]
  )
  return step, rows


def part_names(state: MetaTrainState) -> list[str]:
  """The names of what is looked at in each step, see `Chunk.parts`."""
  return [_MEASURED, *(field.name for field in dataclasses.fields(state))]


def check_counts(num_steps: Any, max_steps: Any) -> None:
  """Refuses more steps than there are rows.

  Raises:
    ValueError: for counts that are out of order, where they are known.
  """
  if not _is_count(max_steps) or max_steps < 1:
    raise ValueError(f'max_steps={max_steps!r}: must be an integer >= 1')
  if isinstance(num_steps, jax.core.Tracer):
    return
  if not _is_count(num_steps) or not 0 <= num_steps <= max_steps:
    raise ValueError(
      f'num_steps={num_steps}: must be an integer from 0 to '
      f'max_steps={max_steps}; call outer_steps again for more'
    )


def _is_count(value: Any) -> bool:
  """An integer: of Python, NumPy or JAX, a scalar."""
  integer = jnp.issubdtype(jnp.result_type(value), jnp.integer)
  return integer and not jnp.ndim(value)


def finite_parts(
  new: MetaTrainState,
  old: MetaTrainState,
  metrics: Metrics,
) -> dict[str, jax.Array]:
  """Which parts of a step's outcome are finite, bool scalars.

  A user's own metrics may be what they like, and a state may hold what was not
  finite before the step, a mask of -inf for one.
  """
  watched = {
    name: value
    for name, value in metrics.items()
    if name in _WATCHED or name.startswith('hyperparams/')
  }
  parts = {_MEASURED: inner_lib.all_finite(watched)}
  for field in dataclasses.fields(new):
    kept = jax.tree.map(_still_finite, *(getattr(s, field.name)
                                         for s in (new, old)))  # fmt: skip
    parts[field.name] = functools.reduce(
      jnp.logical_and, jax.tree.leaves(kept), jnp.array(True)
    )
  return parts


def _still_finite(new: jax.Array, old: jax.Array) -> jax.Array:
  if not jaxprs.is_float(new):
    return jnp.array(True)
  return jnp.all(jnp.isfinite(new) | ~jnp.isfinite(old))
