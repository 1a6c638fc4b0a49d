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

docs/self_tuning.md says what else was tried.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

# Of the long slope: its window has a share of 1 of the updates so far.
MIN_WINDOW = 10.0
AVERAGED_SHARE = 0.3
MIN_AVERAGED = 5.0
MAX_MOVE = 0.1
PACE = 6.0
# Of the quick one.
QUICK_AVERAGED = 20.0
SURE = 0.7
BRAKE = 0.2
BOOST = 0.1
OTHERS_SHARE = 0.3
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
    time: updates since the rule began, int32 scalar.
    owed: what each rate still gets back after an explosion, float32 scalar.
  """

  long: Average
  quick: Average
  time: jax.Array
  owed: jax.Array


def init(count: int) -> Steering:
  """The state before the first update, for `count` etas."""
  # Two of them, each with arrays of its own: a state is donated.
  return Steering(
    _start(count), _start(count), jnp.zeros((), jnp.int32), jnp.zeros(())
  )


def begin_anew(steering: Steering) -> Steering:
  """The state after an explosion: all averages at 0, the time kept.

  Most of what the rates have lost comes back within a share of the run. By the
  slopes alone it would not: late in a run the rule moves slowly.
  """
  fresh = jax.tree.map(jnp.zeros_like, steering)
  return fresh._replace(time=steering.time, owed=jnp.full((), OWED))


def long_discount(steering: Steering) -> jax.Array:
  """The long window's gamma at the next update."""
  return 1 - 1 / jnp.maximum(steering.time.astype(jnp.float32), MIN_WINDOW)


def steer(
  eta: jax.Array,
  slopes: jax.Array,
  quick_slopes: jax.Array,
  is_rate: jax.Array,
  steering: Steering,
) -> tuple[jax.Array, Steering]:
  """Computes what to add to each eta.

  Args:
    eta: logarithms of the factors on what the user set, float32 [n].
    slopes: dF/deta along the long window, float32 [n].
    quick_slopes: the same along the quick displacement; 0 for an eta that is
      no learning rate.
    is_rate: whether an eta is a learning rate, bool [n].
    steering: what was remembered.

  Returns:
    The moves [n], and what to remember.
  """
  slopes, quick_slopes = _finite(slopes), _finite(quick_slopes)
  time = steering.time.astype(jnp.float32)
  averaged = jnp.maximum(AVERAGED_SHARE * time, MIN_AVERAGED)
  long, trend = _averaged(steering.long, slopes, averaged)
  quick, alert = _averaged(steering.quick, quick_slopes, QUICK_AVERAGED)
  moves = -jnp.minimum(MAX_MOVE, PACE / (time + 1)) * trend
  brake = BRAKE * _excess(alert)
  boost = BOOST * _excess(-alert)
  others = OTHERS_SHARE * moves - jnp.max(brake) * eta
  paid = steering.owed / jnp.maximum(OWED_SHARE * time, MIN_WINDOW)
  paid = jnp.where(jnp.any(brake > 0), 0, paid)
  moves = jnp.where(brake > 0, jnp.minimum(moves, 0) - brake, moves + paid)
  moves = jnp.where(boost > 0, jnp.maximum(moves, boost), moves)
  moves = jnp.where(is_rate, moves, others)
  return moves, Steering(
    long, quick, optax.safe_increment(steering.time), steering.owed - paid
  )


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
  average: Average, slopes: jax.Array, window: jax.typing.ArrayLike
) -> tuple[Average, jax.Array]:
  """The averages with new slopes, and mean over root mean square."""
  old = 1 - 1 / jnp.asarray(window, jnp.float32)
  new = Average(
    old * average.mean + (1 - old) * slopes,
    jnp.hypot(jnp.sqrt(old) * average.rms, jnp.sqrt(1 - old) * slopes),
    old * average.weight + (1 - old),
  )
  # The weights cancel but for a square root.
  scale = new.rms * jnp.sqrt(new.weight)
  return new, new.mean / jnp.maximum(scale, jnp.finfo(jnp.float32).tiny)
