"""The drop-in's rule as an outer optimizer, for meta-gradients of any kind.

It is an optax transformation over eta. Each meta-gradient is a slope that the
rule in `steering` averages; the brake and the boost, which look at single
updates of the model, have no part in it.

Where eta follows the training batches the rule's clock counts updates of the
model, as the drop-in's does: a window of K is K updates of which the last alone
comes with a slope. If it counted windows, the climb from a low start would take
K times as many updates. Where eta follows held-out batches it does count
windows: a quicker climb ran past what is stable there, with no brake to stop it
(see docs/own_loop.md).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metalr_flax.engine import ranges
from metalr_flax.engine.records import Eta
from metalr_flax.tuning import factors
from metalr_flax.tuning import rejection
from metalr_flax.tuning import steering

# Of the rule; with what is known of the windows where they may be rejected.
State = steering.Steering | rejection.Steered


def make(
  kinds: Mapping[str, str], *, held_out: bool, unroll_length: int = 1
) -> optax.GradientTransformation:
  """The rule as an optax transformation.

  Args:
    kinds: the bijection's spec of each hyperparameter of the inner optimizer.
    held_out: whether the outer loss is of held-out data. A weight decay then
      moves at the whole pace and, where its kind is 'log', stays where the
      drop-in keeps it.
    unroll_length: K, updates of the model for each meta-gradient.

  Returns:
    A transformation whose updates move eta, scalars by hyperparameter name (and
    group label), against meta-gradients of the same structure. Their scale does
    not matter.
  """

  def init(eta: Eta) -> State:
    rule = steering.init(len(jax.tree.leaves(eta)))
    return rule if held_out else rejection.Steered(rule, rejection.init())

  def update(
    updates: Eta, state: State, params: Eta | None = None
  ) -> tuple[Eta, State]:
    if params is None:
      raise ValueError('steering: update(meta_grads, state, eta) needs eta')
    slopes = factors.stack(updates)
    rule = _rule(state)
    moves, rule = steering.steer(
      factors.stack(params),
      slopes,
      jnp.zeros_like(slopes),
      factors.stack(factors.of_name(factors.RATE, updates)),
      rule if held_out else _after(rule, unroll_length - 1),
      held_out=held_out,
      updates=1 if held_out else unroll_length,
      regularizes=held_out
      & factors.stack(factors.of_name(factors.DECAY, updates)),
    )
    leaves, treedef = jax.tree.flatten(params)
    eta = jax.tree.unflatten(
      treedef, [e + m for e, m in zip(leaves, moves, strict=True)]
    )
    if held_out:  # eta is the logarithm of a value: of a factor on 1
      ones = jax.tree.map(jnp.ones_like, eta)
      eta = factors.keep_decay(eta, ones, kinds)
    updates = jax.tree.map(
      lambda new, e: (new - e).astype(e.dtype), eta, params
    )
    return updates, _with_rule(state, rule)

  return optax.GradientTransformation(init, update)


def limit_memory(
  tangents: dict[str, jax.Array],
  state: State,
  *,
  discount: float,
  unroll_length: int,
) -> dict[str, jax.Array]:
  """Scales kept tangents, so that they fade no slower than the drop-in's.

  There update s counts s / t at update t: what is forgotten is what is old
  against the run so far.

  Args:
    tangents: Z after the last window, arrays by leaf path; `{}` where none is
      kept.
    state: the rule's, before the window, its clock counting updates.
    discount: what the estimator will multiply them by, in [0, 1].
    unroll_length: K, updates in the window.

  Returns:
    Tangents that times `discount` are Z times the smaller of `discount` and
    (1 - 1 / t)^K, with t the updates so far and at least 10.
  """
  if not tangents:
    return {}
  most = steering.long_discount(_rule(state), unroll_length)
  scale = jnp.minimum(most / discount, 1)
  return jax.tree.map(lambda z: (scale * z).astype(z.dtype), tangents)


def begin(
  initial: Mapping[str, Any], kinds: Mapping[str, str], *, held_out: bool
) -> dict[str, Any]:
  """The values that the rule starts from: where the drop-in starts.

  Args:
    initial: floats by name (and group label), as the user set them.
    kinds: the bijection's spec of each.
    held_out: see `make`.

  Returns:
    The same with a learning rate of at most `factors.START`, and with a weight
    decay of `factors.DECAY_START` where it follows held-out data; both where
    their bijection's range has that value.
  """

  def start(name: str, value: float) -> float:
    wanted = value
    if name == factors.RATE:
      wanted = min(value, factors.START)
    elif name == factors.DECAY and held_out:
      wanted = factors.DECAY_START
    _, low, high = ranges.parse(kinds[name])
    return wanted if low < wanted < high else value

  return {
    name: jax.tree.map(lambda v, n=name: start(n, v), value)
    for name, value in initial.items()
  }


def _rule(state: State) -> steering.Steering:
  return state.rule if isinstance(state, rejection.Steered) else state


def _with_rule(state: State, rule: steering.Steering) -> State:
  if isinstance(state, rejection.Steered):
    return state._replace(rule=rule)
  return rule


def _after(state: steering.Steering, count: int) -> steering.Steering:
  """The state after a number of updates without a slope."""
  latest = jnp.iinfo(jnp.int32).max - count
  return state._replace(
    time=jnp.minimum(state.time, latest) + count, waited=state.waited + count
  )
