"""A population: independent runs, its members, trained as one program.

Each array of its state has the members as one axis more in front, so that a
vmapped step trains all of them. They share nothing but the program and what it
closes over, such as a data set. A member whose step was not finite is frozen:
that step is rejected, and its `step` stays behind that of the others.

Shape legend: M members.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metalr_flax.engine import outer
from metalr_flax.engine.records import MetaTrainState, Metrics, PyTree

_Carry = tuple[MetaTrainState, outer.Chunk, jax.Array]


def stack(trees: Sequence[PyTree]) -> PyTree:
  """One tree of several with the same structure: arrays [M, ...]."""
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def pick(tree: PyTree, number: int | np.ndarray) -> PyTree:
  """A member's own part of a tree of arrays [M, ...], or that of several."""
  return jax.tree.map(lambda leaf: leaf[number], tree)


def vmapped(
  step_fn: Callable[..., tuple[MetaTrainState, Metrics]], settings: PyTree
) -> outer.StepFn:
  """The step of a population, of the step of one member.

  Args:
    step_fn: `(state, settings) -> (state, metrics)` of one member.
    settings: what each member has of its own besides its state: arrays [M].

  Returns:
    `state -> (state, metrics)`, each array [M, ...].
  """
  return lambda state: jax.vmap(step_fn)(state, settings)


def outer_steps(
  state: MetaTrainState,
  num_steps: jax.Array,
  *,
  step_fn: outer.StepFn,
  max_steps: int,
) -> tuple[MetaTrainState, outer.Chunk]:
  """Up to `num_steps` outer steps of all members in one device call.

  What `outer.outer_steps` does, with each member rejected on its own. It ends
  early where no member is left.

  Args:
    state: the state before, arrays [M, ...]. Members with fewer steps than the
      furthest are frozen and stay as they are.
    num_steps: how many steps to take, int32 scalar, at most `max_steps`.
    step_fn: see `vmapped`.
    max_steps: rows to preallocate, >= 1.

  Returns:
    The state after the last steps that were finite, and the steps' record:
    rows [max_steps, M], everything else [M]. `count` is 0 and `finite` True
    where a member was frozen before.

  Raises:
    ValueError: for counts that are out of order, where they are known.
  """
  outer.check_counts(num_steps, max_steps)
  step_fn, rows = outer.traced(step_fn, state, max_steps)

  def body(carry: _Carry) -> _Carry:
    state, chunk, going = carry
    new_state, metrics = step_fn(state)
    done = jnp.max(chunk.count)  # by all that are going
    rows = jax.tree.map(
      lambda row, value: row.at[done].set(value), chunk.rows, metrics
    )
    parts = jax.vmap(outer.finite_parts)(new_state, state, metrics)
    finite = functools.reduce(jnp.logical_and, parts.values())
    kept = going & finite
    chunk = outer.Chunk(
      rows=rows,
      count=chunk.count + going,
      finite=_select(going, finite, chunk.finite),
      parts=_select(going, parts, chunk.parts),
    )
    return _select(kept, new_state, state), chunk, kept

  def go_on(carry: _Carry) -> jax.Array:
    _, chunk, going = carry
    return (jnp.max(chunk.count) < num_steps) & jnp.any(going)

  true = jnp.ones(state.step.shape, bool)
  chunk = outer.Chunk(
    rows=rows,
    count=jnp.zeros(state.step.shape, jnp.int32),
    finite=true,
    parts=dict.fromkeys(outer.part_names(state), true),
  )
  going = state.step == jnp.max(state.step)
  state, chunk, _ = jax.lax.while_loop(go_on, body, (state, chunk, going))
  return state, chunk


def _select(which: jax.Array, new: PyTree, old: PyTree) -> PyTree:
  """For each member `new` where `which` [M] is true, else `old`."""
  one: Any = lambda flag, *leaves: jnp.where(flag, *leaves)
  return jax.tree.map(functools.partial(jax.vmap(one), which), new, old)
