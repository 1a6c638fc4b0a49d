r"""The rule by which eta moves.

Two slopes are read at each update, the gradient along

    long     Z_t = sum_s (s / t) u_s: what the whole run so far has done
    quick    the displacement of the last one to three updates

The long one decides. Its mean over its root mean square, both over a share of
the run, is a number q in [-1, 1]: 1 where the slope has one sign, near 0 where
it is noise. eta moves by -pace q, and the pace falls as 1 / t: every window is
a share of the time gone by, so the rule has no horizon to be told, and noise
cannot walk eta away late in a run (the sum of 1 / t^2 is finite).

The quick one overrules it for the learning rate where it is sure. All of the
last updates uphill: the rate is past what is stable, and falls at once,
whatever the run as a whole has gained. All of them downhill: the rate grows,
whatever was learned before.

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

Held-out slopes may come at some updates only. One that comes after n updates
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
AVERAGED_SHARE = 0.3
MIN_AVERAGED = 5.0
MAX_MOVE = 0.1
MAX_JUMP = 1.0
PACE = 6.0
# Of the quick one.
QUICK_AVERAGED = 20.0
SURE = 0.7
BRAKE = 0.2
BOOST = 0.1
OTHERS_SHARE = 0.3
UPHILL = 0.5
OWED = 1.6
OWED_SHARE = 0.1
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
    quick: averages of the quick slopes.
    outer_quick: averages of the quick slopes of the outer gradient, the one
      that the long slopes are of.
    time: updates since the rule began, int32 scalar.
    waited: updates since the last long slope was known, int32 scalar.
    owed: what each rate still gets back after an explosion, float32 scalar.
  """

  long: Average
  quick: Average
  outer_quick: Average
  time: jax.Array
  waited: jax.Array
  owed: jax.Array


def init(count: int) -> Steering:
  """The state before the first update, for `count` etas."""
  # Each with arrays of its own: a state is donated.
  zero = lambda: jnp.zeros((), jnp.int32)
  return Steering(
    long=_start(count),
    quick=_start(count),
    outer_quick=_start(count),
    time=zero(),
    waited=zero(),
    owed=jnp.zeros(()),
  )


def begin_anew(steering: Steering) -> Steering:
  """The state after an explosion: all averages at 0, the time kept.

  Most of what the rates have lost comes back within a share of the run. By the
  slopes alone it would not: late in a run the rule moves slowly.
  """
  fresh = jax.tree.map(jnp.zeros_like, steering)
  return fresh._replace(time=steering.time, owed=jnp.full((), OWED))


def begin_long(steering: Steering) -> Steering:
  """The state where eta follows another loss from now on."""
  long, outer_quick = jax.tree.map(
    jnp.zeros_like, (steering.long, steering.outer_quick)
  )
  return steering._replace(long=long, outer_quick=outer_quick)


def long_discount(steering: Steering) -> jax.Array:
  """The long window's gamma at the next update."""
  return 1 - 1 / jnp.maximum(steering.time.astype(jnp.float32), MIN_WINDOW)


def steer(
  eta: jax.Array,
  slopes: jax.Array,
  quick_slopes: jax.Array,
  is_rate: jax.Array,
  steering: Steering,
  *,
  known: jax.typing.ArrayLike = True,
  regularizes: jax.typing.ArrayLike = False,
  outer_quick_slopes: jax.Array | None = None,
) -> tuple[jax.Array, Steering]:
  """Computes what to add to each eta.

  Args:
    eta: logarithms of the factors on what the user set, float32 [n].
    slopes: dF/deta along the long window, float32 [n].
    quick_slopes: the same along the quick displacement; 0 for an eta that is
      no learning rate.
    is_rate: whether an eta is a learning rate, bool [n].
    steering: what was remembered.
    known: whether there are long slopes at this update, boolean scalar; where
      there are none, eta moves by the quick ones alone.
    regularizes: whether an eta is a weight decay that follows held-out data,
      bool [n].
    outer_quick_slopes: the quick slopes of the outer gradient; like the long
      ones of use where they are `known`. None where the brake goes by the
      others alone.

  Returns:
    The moves [n], and what to remember.
  """
  quick, alert = _averaged(
    steering.quick, _finite(quick_slopes), 1 / QUICK_AVERAGED
  )
  long, moves = _follow(slopes, is_rate, steering, known, regularizes)
  brake = BRAKE * _excess(alert)
  outer_quick = steering.outer_quick
  if outer_quick_slopes is not None:
    outer_quick = _follow_quick(outer_quick_slopes, steering, known)
    brake = jnp.where(_trend(outer_quick) > UPHILL, brake, 0)
  boost = BOOST * _excess(-alert)
  others = jnp.where(
    regularizes, moves, OTHERS_SHARE * moves - jnp.max(brake) * eta
  )
  time = steering.time.astype(jnp.float32)
  paid = steering.owed / jnp.maximum(OWED_SHARE * time, MIN_WINDOW)
  paid = jnp.where(jnp.any(brake > 0), 0, paid)
  moves = jnp.where(brake > 0, jnp.minimum(moves, 0) - brake, moves + paid)
  moves = jnp.where(boost > 0, jnp.maximum(moves, boost), moves)
  moves = jnp.where(is_rate, moves, others)
  return moves, Steering(
    long,
    quick,
    outer_quick,
    optax.safe_increment(steering.time),
    jnp.where(known, 0, optax.safe_increment(steering.waited)),
    steering.owed - paid,
  )


def _follow(
  slopes: jax.Array,
  is_rate: jax.Array,
  steering: Steering,
  known: jax.typing.ArrayLike,
  regularizes: jax.typing.ArrayLike,
) -> tuple[Average, jax.Array]:
  """The long slopes' averages, and the moves by them, [n]."""
  time = steering.time.astype(jnp.float32)
  elapsed = (steering.waited + 1).astype(jnp.float32)
  averaged = jnp.maximum(AVERAGED_SHARE * time, MIN_AVERAGED)
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
  slopes: jax.Array, steering: Steering, known: jax.typing.ArrayLike
) -> Average:
  """The averages of the outer gradient's quick slopes."""
  elapsed = (steering.waited + 1).astype(jnp.float32)
  share = jnp.minimum(elapsed / QUICK_AVERAGED, 1 / MIN_AVERAGED)
  new, _ = _averaged(steering.outer_quick, _finite(slopes), share)
  return select.where(jnp.asarray(known), new, steering.outer_quick)


def _finite(slopes: jax.Array) -> jax.Array:
  """Replaces NaN by 0 and clips, so that averages stay finite."""
  slopes = jnp.nan_to_num(slopes.astype(jnp.float32), nan=0.0)
  return jnp.clip(slopes, -LARGEST, LARGEST)


def _excess(alert: jax.Array) -> jax.Array:
  """0 up to `SURE`, 1 at 1."""
  return jnp.maximum(alert - SURE, 0) / (1 - SURE)


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
