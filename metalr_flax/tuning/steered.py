"""The drop-in's rule as an outer optimizer, for meta-gradients of any kind.

It is an optax transformation over eta. Each meta-gradient is a slope that the
rule in `steering` averages; the brake and the boost, which look at single
updates of the model, have no part in it.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metalr_flax.engine import ranges
from metalr_flax.engine.records import Eta
from metalr_flax.tuning import factors
from metalr_flax.tuning import steering


def make(
  kinds: Mapping[str, str], *, held_out: bool
) -> optax.GradientTransformation:
  """The rule as an optax transformation.

  Args:
    kinds: the bijection's spec of each hyperparameter of the inner optimizer.
    held_out: whether the outer loss is of held-out data. A weight decay then
      moves at the whole pace and, where its kind is 'log', stays where the
      drop-in keeps it.

  Returns:
    A transformation whose updates move eta, scalars by hyperparameter name (and
    group label), against meta-gradients of the same structure. Their scale does
    not matter.
  """

  def init(eta: Eta) -> steering.Steering:
    return steering.init(len(jax.tree.leaves(eta)))

  def update(
    updates: Eta, state: steering.Steering, params: Eta | None = None
  ) -> tuple[Eta, steering.Steering]:
    if params is None:
      raise ValueError('steering: update(meta_grads, state, eta) needs eta')
    slopes = factors.stack(updates)
    moves, state = steering.steer(
      factors.stack(params),
      slopes,
      jnp.zeros_like(slopes),
      factors.stack(factors.of_name(factors.RATE, updates)),
      state,
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
    return updates, state

  return optax.GradientTransformation(init, update)


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
