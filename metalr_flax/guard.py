"""The guard: it sees an explosion, goes back to where it was well, slows down.

Explosion means that the gradient's norm (or the loss, where it is told) is an
order of magnitude above anything seen in the run. That is never how training
goes on, unless it started at a saddle; so an alarm raises the mark, and what
comes again is soon believed.

Where it was well is known by the displacement since: the sum of the updates of
the last few steps, which the quick slope needs anyway (`steering.py`).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

PyTree = Any
EXCESS = 10.0  # times the mark: an alarm
RAISE = 3.0  # times the mark, after one
BACK_OFF = 2.3  # e-folds that the learning rate loses
AVERAGED = 5.0  # updates: one bad batch is no explosion
MIN_AGE = 10.0  # updates between two looks at the mark, at least
AGE_SHARE = 0.1  # of the run so far


class Guard(NamedTuple):
  """What it watches: gradient norm and loss.

  Attributes:
    level: running means of what is watched, float32 [2].
    mark: the highest levels of good moments, [2].
    due: update at which the mark is looked at again, scalar.
    restart: whether the last update went back, boolean scalar: the inner
      optimizer and the tangents start anew at the next one.
  """

  level: jax.Array
  mark: jax.Array
  due: jax.Array
  restart: jax.Array


def init() -> Guard:
  """The start: nothing seen yet."""
  return Guard(
    level=jnp.zeros(2, jnp.float32),
    mark=jnp.zeros(2, jnp.float32),
    due=jnp.zeros((), jnp.float32),
    restart=jnp.zeros((), jnp.bool_),
  )


def watch(
  guard: Guard,
  grads: PyTree,
  step: jax.Array,
  value: jax.typing.ArrayLike | None,
) -> tuple[jax.Array, Guard]:
  """Whether to go back, and the guard after this update.

  Args:
    guard: before.
    grads: of params' structure.
    step: updates done before, int32 scalar.
    value: the loss, where the caller gave it.

  Returns:
    A boolean scalar: go back. It is true for a gradient or a loss that is not
    finite, too.
  """
  seen = _seen(grads, value)
  level = jnp.where(
    step == 0, seen, guard.level + (seen - guard.level) / AVERAGED
  )
  mark = jnp.where(guard.mark > 0, guard.mark, seen)
  finite = jnp.all(jnp.isfinite(seen))
  high = finite & (level > EXCESS * mark)
  alarm = jnp.any(high) | ~finite
  # A number that is none says nothing of how high is high.
  raised = jnp.where(high, RAISE * guard.mark, guard.mark)
  look = ~alarm & (step >= guard.due)
  time = step.astype(jnp.float32)
  age = jnp.maximum(MIN_AGE, AGE_SHARE * time)
  lifted = jnp.where(look, jnp.maximum(mark, level), mark)
  later = jnp.where(look, time + age, guard.due)
  return alarm, Guard(
    level=jnp.where(alarm, guard.mark, level),
    mark=jnp.where(alarm, raised, lifted),
    due=jnp.where(alarm, time + MIN_AGE, later),
    restart=alarm,
  )


def _seen(grads: PyTree, value: jax.typing.ArrayLike | None) -> jax.Array:
  squares = [
    jnp.sum(jnp.square(g.astype(jnp.float32))) for g in jax.tree.leaves(grads)
  ]
  loss = jnp.asarray(0.0 if value is None else value, jnp.float32)
  norm = jnp.sqrt(sum(squares, start=jnp.zeros((), jnp.float32)))
  # A loss below 0 is good news however large; NaN stays NaN.
  return jnp.stack([norm, jnp.maximum(loss, 0)])
