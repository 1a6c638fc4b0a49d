"""Skips bad batches, and undoes the last updates when training explodes.

A gradient or a loss that is not finite is skipped, as `optax.apply_if_finite`
does: nothing is updated and nothing is learned from it. After ten in a row the
parameters are suspected, and the last one to three updates are undone. If the
next gradient is finite, the parameters were at fault, and training begins anew
at a lower rate. If it is not, the data is, and nothing more is done.

A gradient norm (or a loss, where it is given) that lifts its running mean ten
times above anything seen before is skipped once: it may be one bad batch. If
the next batch says the same of the same parameters, they have exploded: the
last updates are undone, and training begins anew at a lower rate. A rise of
this size is how training goes on only where it started at a saddle; so each one
raises the mark, and what comes again is soon believed.

A second mark of the norm falls with time, though not below the running mean.
What has fitted its data has gradients of a thousandth of the first ones, and
explodes long before it comes back to those. It counts where the last updates
went uphill as well, which they do in an explosion and not on the way out of a
saddle; and wherever held-out data is given.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metalr_flax.tuning import select

PyTree = Any
EXCESS = 10.0  # times the mark: too high
RAISE = 3.0  # times the mark, after an explosion
RAISE_BATCH = 1.05  # times the mark, after one batch: it hides no explosion
BACK_OFF = 2.3  # e-folds that the learning rate loses
FORGET = 3.0  # the second mark falls as time to the power of -3
AVERAGED = 5.0  # updates in the running means
MIN_AGE = 10.0  # updates between two looks at the mark, at least
AGE_SHARE = 0.1  # of the run so far
PATIENCE = 10  # updates skipped in a row before the parameters are suspected
DISPLACED = 3  # updates in the displacement, at most


class Levels(NamedTuple):
  """Running means of gradient norm, loss and norm again; their highest values.

  Attributes:
    level: their running means, float32 [3].
    mark: the highest means while training was stable, float32 [3]; that of the
      second norm falls with time.
    due: update at which the mark is looked at again, float32 scalar.
  """

  level: jax.Array
  mark: jax.Array
  due: jax.Array


class Guard(NamedTuple):
  """The guard's state: levels, flags and counts.

  Attributes:
    levels: of gradient norm and loss.
    suspect: whether the last update was skipped because they were too high,
      boolean scalar.
    restart: whether training begins anew at the next update that is made,
      boolean scalar.
    held: updates in the displacement, int32 scalar.
    streak: gradients in a row that were not finite, int32 scalar.
    skipped: updates skipped in all, int32 scalar.
    undone: updates undone in all, int32 scalar.
  """

  levels: Levels
  suspect: jax.Array
  restart: jax.Array
  held: jax.Array
  streak: jax.Array
  skipped: jax.Array
  undone: jax.Array


class Verdict(NamedTuple):
  """What to do with an update, boolean scalars.

  Attributes:
    skip: make none, and leave everything as it is.
    back: make none, and undo those of the displacement.
    landmark: the displacement begins anew with this update.
  """

  skip: jax.Array
  back: jax.Array
  landmark: jax.Array


def init() -> Guard:
  """The state before the first gradient."""
  # Each leaf has an array of its own, for a state is donated.
  three = lambda: jnp.zeros(3, jnp.float32)
  flag = lambda: jnp.zeros((), jnp.bool_)
  count = lambda: jnp.zeros((), jnp.int32)
  return Guard(
    levels=Levels(three(), three(), jnp.zeros((), jnp.float32)),
    suspect=flag(),
    restart=flag(),
    held=count(),
    streak=count(),
    skipped=count(),
    undone=count(),
  )


def watch(
  guard: Guard,
  grads: PyTree,
  step: jax.Array,
  value: jax.typing.ArrayLike | None,
  rising: jax.typing.ArrayLike = False,
) -> tuple[Verdict, Guard]:
  """Decides whether to make, skip or undo an update.

  Args:
    guard: what was known before.
    grads: of params' structure.
    step: updates done before, int32 scalar.
    value: the loss, where the caller gave it.
    rising: whether the mark that falls counts, boolean scalar: where the last
      updates went uphill.
  """
  seen, finite = _seen(grads, value)
  levels = _forgotten(guard.levels, step)
  calm, over = _compare(levels, seen, step)
  over = over & finite & jnp.stack([True, True, jnp.asarray(rising)])
  high = jnp.any(over)
  streak = jnp.where(finite, 0, guard.streak + 1)
  unfit = (streak == PATIENCE) & (guard.held > 0)
  verdict = Verdict(
    skip=~finite | (high & ~guard.suspect),
    back=(high & guard.suspect) | unfit,
    landmark=guard.held >= DISPLACED,
  )
  # Not finite either, with the last updates undone: the data's fault.
  waiting = guard.restart & verdict.skip & (streak != PATIENCE + 1)
  held = jnp.where(verdict.landmark, 1, guard.held + 1)
  held = jnp.where(verdict.skip, guard.held, held)
  return verdict, Guard(
    levels=_updated(guard.levels, calm, over, verdict, step),
    suspect=jnp.where(finite, high & ~guard.suspect, guard.suspect),
    restart=verdict.back | waiting,
    held=jnp.where(verdict.back, 0, held),
    streak=streak,
    skipped=guard.skipped + verdict.skip,
    undone=guard.undone + jnp.where(verdict.back, guard.held, 0),
  )


def _forgotten(levels: Levels, step: jax.Array) -> Levels:
  """The levels with the last mark fallen, down to the running mean.

  The loss's stays: a loss near 0, or below, is none to compare with.
  """
  age = jnp.maximum(step.astype(jnp.float32), MIN_AGE)
  lowest = jnp.minimum(levels.level, levels.mark)
  mark = jnp.maximum(jnp.exp(-FORGET / age) * levels.mark, lowest)
  falls = jnp.array([False, False, True])  # norm, loss, norm
  return levels._replace(mark=jnp.where(falls, mark, levels.mark))


def _compare(
  levels: Levels, seen: jax.Array, step: jax.Array
) -> tuple[Levels, jax.Array]:
  """Updates the running means, and says which are too high, bool [3]."""
  level = jnp.where(
    step == 0, seen, levels.level + (seen - levels.level) / AVERAGED
  )
  mark = jnp.where(levels.mark > 0, levels.mark, seen)
  look = step >= levels.due
  time = step.astype(jnp.float32)
  age = jnp.maximum(MIN_AGE, AGE_SHARE * time)
  return Levels(
    level=level,
    mark=jnp.where(look, jnp.maximum(mark, level), mark),
    due=jnp.where(look, time + age, levels.due),
  ), level > EXCESS * mark


def _updated(
  old: Levels,
  calm: Levels,
  over: jax.Array,
  verdict: Verdict,
  step: jax.Array,
) -> Levels:
  """The levels after an update: `calm` where nothing was skipped or undone."""
  factor = jnp.where(verdict.back, RAISE, RAISE_BATCH)
  kept = old._replace(mark=jnp.where(over, factor * old.mark, old.mark))
  again = kept._replace(level=old.mark, due=step.astype(jnp.float32) + MIN_AGE)
  after = select.where(verdict.back, again, calm)
  return select.where(verdict.skip, kept, after)


def _seen(
  grads: PyTree, value: jax.typing.ArrayLike | None
) -> tuple[jax.Array, jax.Array]:
  """Gradient norm, loss and norm, float32 [3], and whether all are finite."""
  squares = [
    jnp.sum(jnp.square(_real(g).astype(jnp.float32)))
    for g in jax.tree.leaves(grads)
  ]
  loss = jnp.asarray(0.0 if value is None else value, jnp.float32)
  norm = jnp.sqrt(sum(squares, start=jnp.zeros((), jnp.float32)))
  # A loss below 0 is never too high; NaN stays NaN.
  seen = jnp.stack([norm, jnp.maximum(loss, 0), norm])
  # A norm above 1e19, whose square float32 does not hold, is not finite either.
  finite = jnp.all(jnp.isfinite(seen)) & jnp.isfinite(loss)
  return jnp.nan_to_num(seen), finite


def _real(gradient: jax.Array) -> jax.Array:
  return jnp.abs(gradient) if jnp.iscomplexobj(gradient) else gradient
