r"""The rule by which eta moves.

Two things are read at each update:

    long     g . Z, with Z_t = sum_s (s / t) u_s: what the whole run has done
    cosine   of g and the displacement, the sum of the last one to three updates

The long slope decides. Its mean over its root mean square, both over a share of
the run, is a number q in [-1, 1]: 1 where the slope has one sign, near 0 where
it is noise. eta moves by -pace q, and the pace falls as 1 / t: every window is
a share of the time gone by, so the rule has no horizon to be told, and noise
cannot walk eta away late in a run (the sum of 1 / t^2 is finite).

The cosine overrules it for the learning rate. Its size is a distance from what
is stable: of SGD on a quadratic it is -1 far below, half of rate times
curvature where only noise is left, and 1 where updates overshoot and grow. Near
1 for some updates, and the rate falls at once, whatever the run as a whole has
gained; uphill at nearly all of the last twenty, however little, and it falls
slowly. Downhill at nearly all of the last updates, and the rate grows: where
the cosine is near -1 by that alone, which follows a target that starts to move,
and else where the long slope agrees. Updates that each see other parameters,
those of a large embedding, go downhill at any rate, with a cosine of -0.1.

The updates are compared with the parameters, in norm. The first ten are made as
large as a thousandth of those: where they are smaller the rate grows by up to a
factor of e each time. And no rate grows whose updates are above a tenth.
Parameters that begin at 0 have no scale, and this rests.

A rate at which training exploded is a ceiling from then on, and rises as the
logarithm of time.

Other hyperparameters move by the long slope alone, at a third of the pace:
without the Hessian their slope says too much, above all that of a momentum.
Where the rate is past what is stable they return towards what the user set.

A weight decay that follows held-out data moves at the whole pace, and while it
grows the rate does not fall: both would end the overfitting, but at a rate near
0 nothing is learned any more.

Where eta follows held-out data the brake works only where the last updates went
uphill in the held-out loss as well. In a network that has memorised its data a
strong decay goes uphill in the training loss alone, and the brake would take
the rate to 0.

Held-out slopes are averaged over a larger share of the run: with the smaller
one, `configs/digits_regularized.py` ended a tenth worse. They may come at some
updates only. One that comes after n updates
without counts as n, in the average and, up to a factor of e, in the move.

docs/self_tuning.md says what else was tried.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from metalr_flax.tuning import select

# Of the long slope: its window has a share of 1 of the updates so far.
MIN_WINDOW = 10.0
AVERAGED_SHARE = 0.2
HELD_OUT_AVERAGED_SHARE = 0.3
MIN_AVERAGED = 5.0
MAX_MOVE = 0.1
MAX_JUMP = 1.0
PACE = 6.0
# Of the quick one.
QUICK_AVERAGED = 20.0
SURE = 0.7
BOOST = 0.1
GAINS = 0.4
ALONG = 0.6
# Of the last few cosines: the brake, and what the guard takes for uphill.
LATELY_AVERAGED = 4.0
BRAKE = 0.5
SLOW_BRAKE = 0.2
STEEP = 0.6
RISING = 0.2
OTHERS_SHARE = 0.3
UPHILL = 0.5
OWED = 1.6
OWED_SHARE = 0.1
# Of the ceiling: e-folds below the rate that exploded; the fastest way there.
BELOW = 2.0
FALL = 0.2
# Of an update's share in the parameters.
FIRST_UPDATES = 10
FIRST_SHARE = 1e-3
FIRST_MOVE = 1.0
LARGEST_SHARE = 0.1
LARGEST = 1e37


class Average(NamedTuple):
  """Exponential averages of n slopes.

  Attributes:
    mean: of the slope, float32 [n].
    rms: its root mean square, float32 [n]; not the mean square, which a loss
      scaled by 1e-10 would make too small for float32.
    weight: what the weights so far add up to, scalar; 0 at the start.
  """

  mean: jax.Array
  rms: jax.Array
  weight: jax.Array


class Steering(NamedTuple):
  """The rule's state.

  Attributes:
    long: averages of the long slopes.
    quick: averages of the cosines over `QUICK_AVERAGED` updates.
    lately: averages of the cosines over `LATELY_AVERAGED` updates.
    outer_quick: averages of the cosines of the outer gradient, the one that the
      long slopes are of.
    time: updates since the rule began, int32 scalar.
    waited: updates since the last long slope was known, int32 scalar.
    owed: what each rate still gets back after an explosion, float32 scalar.
    ceiling: of each eta of a rate, float32 [n]; infinite before an explosion.
    grown: what the start has added to each eta, float32 [n].
  """

  long: Average
  quick: Average
  lately: Average
  outer_quick: Average
  time: jax.Array
  waited: jax.Array
  owed: jax.Array
  ceiling: jax.Array
  grown: jax.Array


def init(count: int) -> Steering:
  """The state before the first update, for `count` etas."""
  # Each with arrays of its own: a state is donated.
  zero = lambda: jnp.zeros((), jnp.int32)
  return Steering(
    long=_start(count),
    quick=_start(count),
    lately=_start(count),
    outer_quick=_start(count),
    time=zero(),
    waited=zero(),
    owed=jnp.zeros(()),
    ceiling=jnp.full(count, jnp.inf, jnp.float32),
    grown=jnp.zeros(count, jnp.float32),
  )


def begin_anew(steering: Steering, eta: jax.Array) -> Steering:
  """The state after an explosion: all averages at 0, the time kept.

  Most of what the rates have lost comes back within a share of the run, up to
  a ceiling. By the slopes alone it would not: late in a run the rule moves
  slowly.

  Args:
    steering: what was remembered.
    eta: those at which training exploded, float32 [n].
  """
  fresh = jax.tree.map(jnp.zeros_like, steering)
  return fresh._replace(
    time=steering.time,
    owed=jnp.full((), OWED),
    ceiling=jnp.asarray(eta - BELOW, jnp.float32),
  )


def begin_long(steering: Steering) -> Steering:
  """The state where eta follows another loss from now on."""
  long, outer_quick = jax.tree.map(
    jnp.zeros_like, (steering.long, steering.outer_quick)
  )
  return steering._replace(long=long, outer_quick=outer_quick)


def long_discount(steering: Steering, count: int = 1) -> jax.Array:
  """The long window's gamma over the next `count` updates."""
  time = steering.time.astype(jnp.float32)
  return (1 - 1 / jnp.maximum(time, MIN_WINDOW)) ** count


def is_rising(steering: Steering) -> jax.Array:
  """Whether the last updates of a rate went uphill, boolean scalar."""
  return jnp.any(_level(steering.lately) > RISING)


def steer(
  eta: jax.Array,
  slopes: jax.Array,
  cosines: jax.Array,
  is_rate: jax.Array,
  steering: Steering,
  *,
  known: jax.typing.ArrayLike = True,
  regularizes: jax.typing.ArrayLike = False,
  held_out: jax.typing.ArrayLike = False,
  outer_cosines: jax.Array | None = None,
  shares: jax.Array | None = None,
  updates: int = 1,
) -> tuple[jax.Array, Steering]:
  """Computes what to add to each eta.

  Args:
    eta: logarithms of the factors on what the user set, float32 [n].
    slopes: dF/deta along the long window, float32 [n].
    cosines: of the training gradient and the quick displacement, float32 [n];
      0 for an eta that is no learning rate.
    is_rate: whether an eta is a learning rate, bool [n].
    steering: what was remembered.
    known: whether there are long slopes at this update, boolean scalar; where
      there are none, eta moves by the cosines alone.
    regularizes: whether an eta is a weight decay that follows held-out data,
      bool [n].
    held_out: whether eta follows held-out data, boolean scalar.
    outer_cosines: those of the outer gradient; like the long slopes of use
      where they are `known`. None where the brake goes by the others alone.
    shares: norms of the displacement over those of the parameters, float32 [n];
      0 says nothing, as None does.
    updates: of the model since the last call, those that the clock has been
      moved by beforehand among them.

  Returns:
    The moves [n], and what to remember.
  """
  cosines = jnp.clip(_finite(cosines), -1, 1)
  quick, alert = _averaged(steering.quick, cosines, 1 / QUICK_AVERAGED)
  lately, _ = _averaged(steering.lately, cosines, 1 / LATELY_AVERAGED)
  share = jnp.where(held_out, HELD_OUT_AVERAGED_SHARE, AVERAGED_SHARE)
  long, moves = _follow(slopes, is_rate, steering, known, regularizes, share)
  brake = _brake(alert, _level(lately))
  outer_quick = steering.outer_quick
  if outer_cosines is not None:
    outer_quick = _follow_quick(outer_cosines, steering, known)
    brake = jnp.where(_trend(outer_quick) > UPHILL, brake, 0)
  boost = _boost(alert, _level(lately), _trend(long))
  others = jnp.where(
    regularizes, moves, OTHERS_SHARE * moves - jnp.max(brake) * eta
  )
  time = steering.time.astype(jnp.float32)
  paid = updates * steering.owed / jnp.maximum(OWED_SHARE * time, MIN_WINDOW)
  paid = jnp.minimum(paid, steering.owed)
  paid = jnp.where(jnp.any(brake > 0), 0, paid)
  moves = jnp.where(brake > 0, jnp.minimum(moves, 0) - brake, moves + paid)
  moves = jnp.where(boost > 0, jnp.maximum(moves, boost), moves)
  # In float32 whatever eta is, as all that is remembered.
  shares = _finite(jnp.zeros(eta.shape) if shares is None else shares)
  moves, grown = _start_up(moves, steering, shares)
  ceiling = steering.ceiling + updates / (time + 1)
  moves = _limit(moves, shares, ceiling - eta)
  return jnp.where(is_rate, moves, others), Steering(
    long,
    quick,
    lately,
    outer_quick,
    optax.safe_increment(steering.time),
    jnp.where(known, 0, optax.safe_increment(steering.waited)),
    steering.owed - paid,
    ceiling,
    grown,
  )


def _start_up(
  moves: jax.Array, steering: Steering, shares: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The moves of the first updates, and what the start has added so far, [n].

  It takes back no more than it has added: a rate that the user set low stays.
  """
  time, tiny = steering.time, jnp.finfo(jnp.float32).tiny
  room = jnp.log(FIRST_SHARE / jnp.maximum(shares, tiny))
  added = jnp.clip(jnp.maximum(room, -steering.grown), -FIRST_MOVE, FIRST_MOVE)
  first = (shares > 0) & (time > 0) & (time <= FIRST_UPDATES)
  added = jnp.where(first, added, 0)
  moves = jnp.where(added > 0, jnp.maximum(moves, added), moves)
  moves = jnp.where(added < 0, jnp.minimum(moves, added), moves)
  return moves, steering.grown + added


def _limit(moves: jax.Array, shares: jax.Array, below: jax.Array) -> jax.Array:
  """The moves without growth of large updates or above a ceiling, [n].

  Args:
    moves: of the rates, [n].
    shares: of the updates in the parameters, [n].
    below: how far each eta is below its ceiling, [n].
  """
  moves = jnp.where(shares > LARGEST_SHARE, jnp.minimum(moves, 0), moves)
  return jnp.minimum(moves, jnp.maximum(below, -FALL))


def _brake(alert: jax.Array, level: jax.Array) -> jax.Array:
  """How far each rate falls, [n].

  Args:
    alert: q of the cosines of the last updates, [n]. Near 1 it brakes alone:
      in many directions the cosine of an overshoot is small.
    level: the mean of the last few, [n]. In a few directions it is large by
      chance, so that it counts only where q agrees.
  """
  over = jnp.maximum(level - STEEP, 0) / (1 - STEEP)
  quickly = jnp.where(alert > UPHILL, over, 0)
  return jnp.maximum(BRAKE * quickly, SLOW_BRAKE * _excess(alert))


def _boost(alert: jax.Array, level: jax.Array, trend: jax.Array) -> jax.Array:
  """How much each rate grows at least, [n]; 0 where nothing is said.

  Args:
    alert: q of the cosines of the last updates, [n].
    level: the mean of the last few, [n].
    trend: q of the long slopes, [n].
  """
  agreed = (trend < -GAINS) | (level < -ALONG)
  return jnp.where(agreed, BOOST * _excess(-alert), 0)


def _follow(
  slopes: jax.Array,
  is_rate: jax.Array,
  steering: Steering,
  known: jax.typing.ArrayLike,
  regularizes: jax.typing.ArrayLike,
  averaged_share: jax.Array,
) -> tuple[Average, jax.Array]:
  """The long slopes' averages, and the moves by them, [n]."""
  time = steering.time.astype(jnp.float32)
  elapsed = (steering.waited + 1).astype(jnp.float32)
  averaged = jnp.maximum(averaged_share * time, MIN_AVERAGED)
  share = jnp.minimum(elapsed / averaged, 1 / MIN_AVERAGED)
  long, trend = _averaged(steering.long, _finite(slopes), share)
  pace = jnp.minimum(MAX_MOVE, PACE / (time + 1))
  moves = -jnp.minimum(pace * elapsed, MAX_JUMP) * trend
  grows = jnp.max(jnp.where(regularizes, jnp.maximum(-trend, 0), 0))
  waits = is_rate & (moves < 0)
  moves = jnp.where(waits, (1 - grows) * moves, moves)
  known = jnp.asarray(known)
  return select.where(known, long, steering.long), jnp.where(known, moves, 0)


def _follow_quick(
  cosines: jax.Array, steering: Steering, known: jax.typing.ArrayLike
) -> Average:
  """The averages of the outer gradient's cosines."""
  elapsed = (steering.waited + 1).astype(jnp.float32)
  share = jnp.minimum(elapsed / QUICK_AVERAGED, 1 / MIN_AVERAGED)
  new, _ = _averaged(steering.outer_quick, _finite(cosines), share)
  return select.where(jnp.asarray(known), new, steering.outer_quick)


def _finite(slopes: jax.Array) -> jax.Array:
  """Replaces NaN by 0 and clips, so that averages stay finite."""
  slopes = jnp.nan_to_num(slopes.astype(jnp.float32), nan=0.0)
  return jnp.clip(slopes, -LARGEST, LARGEST)


def _excess(alert: jax.Array) -> jax.Array:
  """0 up to `SURE`, 1 at 1."""
  return jnp.maximum(alert - SURE, 0) / (1 - SURE)


def _level(average: Average) -> jax.Array:
  """The mean, [n]; 0 of nothing."""
  return average.mean / jnp.maximum(average.weight, jnp.finfo(jnp.float32).tiny)


def _start(count: int) -> Average:
  zeros = functools.partial(jnp.zeros, dtype=jnp.float32)
  return Average(zeros(count), zeros(count), zeros(()))


def _averaged(
  average: Average, slopes: jax.Array, share: jax.typing.ArrayLike
) -> tuple[Average, jax.Array]:
  """The averages with new slopes, and mean over root mean square.

  Args:
    average: what it was.
    slopes: float32 [n].
    share: of the new slopes in it, in (0, 1].
  """
  old = 1 - jnp.asarray(share, jnp.float32)
  new = Average(
    old * average.mean + (1 - old) * slopes,
    jnp.hypot(jnp.sqrt(old) * average.rms, jnp.sqrt(1 - old) * slopes),
    old * average.weight + (1 - old),
  )
  return new, _trend(new)


def _trend(average: Average) -> jax.Array:
  """Mean over root mean square, [n]; 0 of no slopes."""
  # The weights cancel but for a square root.
  scale = average.rms * jnp.sqrt(average.weight)
  return average.mean / jnp.maximum(scale, jnp.finfo(jnp.float32).tiny)
