"""Rejects the windows in which training explodes, where the rule has a trainer.

A window is rejected where a loss or the state after it is not finite, or where
its training loss is above all that the running mean of the windows before it
has ever been, and further above that mean than 20 times their usual distance
from it. The model is then what it was before the window, and the next one has
other batches. A single one may have had a bad batch, and a loss no higher is
not rejected again, unless it was far higher: it may be of an example that is
hard. After two in a row the rate falls, and the rule begins anew.

Where the first loss of a window, before any of its updates, is as high, the
parameters exploded before it, or the data are others than they were. After two
such windows, and one fall, what they say is what is usual from then on. So it
is with windows of one update, and with the last update of any window: that it
exploded shows in the next loss alone, and it is not undone.

After ten in a row the next one is kept as it is: where it is not finite it ends
the run, as it ends others. So does a first window that is not finite.

The drop-in's guard undoes updates that it has kept. Here the state before the
window is at hand, so that nothing has to be kept but a few numbers. It compares
losses by their distance and not by their ratio, for they may be near 0 or
below. By their distance alone it would reject what a model has still to learn:
of one that fits nearly all data the losses of most windows are near 0.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from metalr_flax.engine import bijections as bijections_lib
from metalr_flax.engine import outer
from metalr_flax.engine import window
from metalr_flax.engine.records import MetaTrainState, Metrics
from metalr_flax.tuning import factors
from metalr_flax.tuning import guard
from metalr_flax.tuning import select
from metalr_flax.tuning import steering

EXCESS = 20.0  # distances above the mean: too high
AVERAGED_SHARE = 0.1  # of the windows so far
MIN_AVERAGED = 5.0  # windows
MIN_SEEN = 10  # windows to know what is usual
IN_A_ROW = 2  # windows rejected before the rate falls
RAISE = 1.05  # times the excess of a single rejected window: usual
MOST_RAISED = 5.0  # times the highest excess before, or 2 EXCESS distances
ROUNDING = 1e-5  # of the mean: no distance
REJECTED = 'meta/rejected'


class Watch(NamedTuple):
  """What is known of the windows' training losses, scalars.

  Attributes:
    mean: of those of the windows that were kept, float32.
    highest: the highest mean so far, or a little above the loss of a window
      that was rejected alone, float32.
    refused: what `highest` becomes when the next window is kept, as the last
      rejected one then was alone, float32.
    distance: the mean distance of the kept windows' losses from `mean`,
      float32.
    seen: windows in `mean` and `distance`, int32; 0 again after bad parameters.
    streak: windows rejected in a row, int32.
    rejected: windows rejected in all, int32.
  """

  mean: jax.Array
  highest: jax.Array
  refused: jax.Array
  distance: jax.Array
  seen: jax.Array
  streak: jax.Array
  rejected: jax.Array


class Steered(NamedTuple):
  """The outer optimizer's state where windows may be rejected.

  Attributes:
    rule: of the rule.
    watch: of the windows' losses.
  """

  rule: steering.Steering
  watch: Watch


def init() -> Watch:
  """What is known before the first window."""
  # Each leaf has an array of its own, for a state is donated.
  zero = lambda dtype: jnp.zeros((), dtype)
  return Watch(
    mean=zero(jnp.float32),
    highest=zero(jnp.float32),
    refused=zero(jnp.float32),
    distance=zero(jnp.float32),
    seen=zero(jnp.int32),
    streak=zero(jnp.int32),
    rejected=zero(jnp.int32),
  )


def judge(
  before: MetaTrainState,
  after: MetaTrainState,
  metrics: Metrics,
  bijections: dict[str, str],
) -> tuple[MetaTrainState, Metrics]:
  """Keeps a window or rejects it.

  Args:
    before: the state before the window, its `meta_opt_state` a `Steered`.
    after: the state after it.
    metrics: the window's, by public key, with the first loss.
    bijections: the spec of each hyperparameter.

  Returns:
    The state to go on from, and the metrics with `meta/rejected`, the number of
    windows rejected so far, in place of the first loss. Of a rejected window
    losses that are not finite are replaced by the mean of the windows before.
  """
  metrics = dict(metrics)
  first = metrics.pop(window.FIRST_LOSS).astype(jnp.float32)
  parts = outer.finite_parts(after, before, metrics).values()
  finite = functools.reduce(jnp.logical_and, parts)
  loss = jnp.where(finite, metrics['train/loss'], jnp.nan).astype(jnp.float32)
  watch, rejected, falls = watched(before.meta_opt_state.watch, loss, first)
  back = _back(before, after, falls, bijections)
  state = select.where(rejected, back, after)
  memory = state.meta_opt_state._replace(watch=watch)
  values = bijections_lib.constrain(state.eta, bijections)
  return state.replace(meta_opt_state=memory), {
    **_replaced(metrics, rejected, watch.mean),
    **bijections_lib.flatten(values, 'hyperparams'),
    REJECTED: watch.rejected.astype(jnp.float32),
  }


def watched(
  watch: Watch, loss: jax.Array, first: jax.Array
) -> tuple[Watch, jax.Array, jax.Array]:
  """What is known after a window, whether to reject it, and the rate's fall.

  Args:
    watch: what was known before.
    loss: the window's, NaN where anything in it is not finite.
    first: that of its first batch, before any update.

  Returns:
    The watch after the window, and two booleans.
  """
  earlier = _is_high(watch, first)
  # Before a window was kept there is nothing to go back to.
  begun = (watch.seen > 0) | (watch.rejected > 0)
  rejected = _is_high(watch, loss) & begun & (watch.streak < guard.PATIENCE)
  falls = rejected & ((watch.streak + 1) % IN_A_ROW == 0)
  # Of the data's fault, or the parameters', a lower rate is no cure.
  falls &= ~earlier | (watch.streak + 1 == IN_A_ROW)
  most = jnp.maximum(
    MOST_RAISED * (watch.highest - watch.mean), 2 * EXCESS * watch.distance
  )
  above = watch.mean + jnp.minimum(RAISE * (loss - watch.mean), most)
  again = watch._replace(
    refused=jnp.where(jnp.isfinite(above), above, watch.highest),
    seen=jnp.where(falls & earlier, 0, watch.seen),
    streak=watch.streak + 1,
    rejected=optax.safe_increment(watch.rejected),
  )
  return select.where(rejected, again, _averaged(watch, loss)), rejected, falls


def _is_high(watch: Watch, loss: jax.Array) -> jax.Array:
  """Whether a loss is far above what is usual, or not finite."""
  usual = jnp.maximum(watch.distance, ROUNDING * jnp.abs(watch.mean))
  high = (loss - watch.mean > EXCESS * usual) & (loss > watch.highest)
  return ~jnp.isfinite(loss) | (high & (watch.seen >= MIN_SEEN))


def _averaged(watch: Watch, loss: jax.Array) -> Watch:
  """What is known after a window that is kept."""
  longest = jnp.maximum(AVERAGED_SHARE * watch.seen, MIN_AVERAGED)
  share = 1 / jnp.minimum(longest, watch.seen + 1.0)
  excess = loss - watch.mean
  # The first loss is the first mean: its distance from it says nothing.
  known = 1 / jnp.minimum(longest, jnp.maximum(watch.seen, 1))
  distance = watch.distance + known * (jnp.abs(excess) - watch.distance)
  mean = watch.mean + share * excess
  single = jnp.where(watch.streak == 1, watch.refused, watch.highest)
  highest = jnp.maximum(watch.highest, single)
  return Watch(
    mean=mean,
    highest=jnp.where(watch.seen > 0, jnp.maximum(highest, mean), mean),
    refused=watch.refused,
    distance=jnp.where(watch.seen > 0, distance, 0),
    seen=optax.safe_increment(watch.seen),
    streak=jnp.zeros_like(watch.streak),
    rejected=watch.rejected,
  )


def _back(
  before: MetaTrainState,
  after: MetaTrainState,
  falls: jax.Array,
  bijections: dict[str, str],
) -> MetaTrainState:
  """The state before a window, with its batches gone, and a lower rate."""
  rule, eta = before.meta_opt_state.rule, before.eta
  is_rate = factors.of_name(factors.RATE, eta)
  lower = jax.tree.map(
    lambda e, rate: jnp.where(rate, e - guard.BACK_OFF, e).astype(e.dtype),
    eta,
    is_rate,
  )
  lower = bijections_lib.project(lower, bijections)
  anew = steering.begin_anew(rule, factors.stack(eta))
  eta, rule, tangents = select.where(
    falls,
    (lower, anew, jax.tree.map(jnp.zeros_like, before.tangents)),
    (eta, rule, before.tangents),
  )
  return before.replace(
    step=after.step,
    data_state=after.data_state,
    eta=eta,
    tangents=tangents,
    meta_opt_state=before.meta_opt_state._replace(rule=rule),
  )


def _replaced(
  metrics: Metrics, rejected: jax.Array, mean: jax.Array
) -> Metrics:
  """The metrics, finite where a window is rejected."""
  instead = {
    'train/loss': mean,
    'meta/loss': mean,
    'meta/grad_norm': jnp.zeros_like(mean),
  }

  def finite(name: str) -> jax.Array:
    value = metrics[name]
    known = jnp.isfinite(value) | ~rejected
    return jnp.where(known, value, instead[name]).astype(value.dtype)

  return {**metrics, **{name: finite(name) for name in instead}}
