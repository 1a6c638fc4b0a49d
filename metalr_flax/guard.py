"""The guard: it sees an explosion, goes back to good parameters, slows down.

Explosion means that the gradient's norm (or the loss, where it is told) is an
order of magnitude above anything seen in the run. That is never how training
goes on, unless it started at a saddle; so an alarm raises the mark, and what
comes again is soon believed.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

PyTree = Any
EXCESS = 10.0  # times the mark: an alarm
RAISE = 3.0  # times the mark, after one
BACK_OFF = 2.3  # e-folds that the learning rate loses
AVERAGED = 5.0  # updates: one bad batch is no explosion
MIN_AGE = 10.0  # updates between snapshots, at least
AGE_SHARE = 0.1  # of the run so far


class Guard(NamedTuple):
  """What it watches, gradient norm and loss, and where it would go back to.

  Attributes:
    good: parameters of a good moment, at most a tenth of the run old.
    level: running means of what is watched, float32 [2].
    mark: the highest levels of the good moments, [2].
    due: update at which the next snapshot is taken, scalar.
  """

  good: PyTree
  level: jax.Array
  mark: jax.Array
  due: jax.Array


def init(params: PyTree) -> Guard:
  """The start: the first parameters are good."""
  return Guard(params, jnp.zeros(2), jnp.zeros(2), jnp.zeros(()))


def watch(
  guard: Guard,
  grads: PyTree,
  params: PyTree,
  step: jax.Array,
  value: jax.Array | None,
) -> tuple[jax.Array, Guard]:
  """Whether to go back, and the guard after this update.

  Args:
    guard: before.
    grads: of params' structure.
    params: before the update.
    step: updates done before, int32 scalar.
    value: the loss, where the caller gave it.

  Returns:
    A boolean scalar: go back to `good`. It is true for a gradient or a loss
    that is not finite, too.
  """
  seen = _seen(grads, value)
  level = jnp.where(
    step == 0, seen, guard.level + (seen - guard.level) / AVERAGED
  )
  mark = jnp.where(guard.mark > 0, guard.mark, seen)
  alarm = jnp.any(level > EXCESS * mark) | ~jnp.all(jnp.isfinite(seen))
  snap = ~alarm & (step >= guard.due)
  age = jnp.maximum(MIN_AGE, AGE_SHARE * step)
  return alarm, Guard(
    good=jax.tree.map(
      lambda new, old: jnp.where(snap, new, old), params, guard.good
    ),
    level=jnp.where(alarm, guard.mark, level),
    mark=jnp.where(
      alarm,
      RAISE * guard.mark,
      jnp.where(snap, jnp.maximum(mark, level), mark),
    ),
    due=jnp.where(
      alarm, step + MIN_AGE, jnp.where(snap, step + age, guard.due)
    ),
  )


def _seen(grads: PyTree, value: jax.Array | None) -> jax.Array:
  squares = [
    jnp.sum(jnp.square(g), dtype=jnp.float32) for g in jax.tree.leaves(grads)
  ]
  loss = jnp.zeros(()) if value is None else value
  norm = jnp.sqrt(sum(squares, start=jnp.zeros(())))
  # A loss below 0 is good news however large; NaN stays NaN.
  return jnp.stack([norm, jnp.maximum(loss.astype(jnp.float32), 0)])
