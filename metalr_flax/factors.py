"""Hyperparameters as what the user set times a learned factor, exp(eta)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metalr_flax import optimizers

PyTree = Any
KINDS = ('log', 'one_minus_log')
# By name; by group label below it where there are groups.
Values = dict[str, Any]


def find_base(
  opt_state: optax.OptState, learned: Mapping[str, str], labels: PyTree | None
) -> Values:
  """Each learned hyperparameter as the user set it, read from the state.

  Raises:
    ValueError: for one that is not injected, is a schedule, or is held in less
      than float32.
  """
  groups = sorted(set(jax.tree.leaves(labels)))
  known = {
    group: optimizers.find_hyperparams(opt_state, group or None)
    for group in groups or ['']
  }
  for name in learned:
    for values in known.values():
      _check(name, values)
  if not groups:
    return {name: jnp.asarray(known[''][name]) for name in learned}
  return {
    name: {group: jnp.asarray(known[group][name]) for group in groups}
    for name in learned
  }


def named(opt_state: optax.OptState, base: Values) -> Values:
  """A state's hyperparameters, `<name>/<label>` where `base` has groups."""
  groups = next((list(v) for v in base.values() if isinstance(v, dict)), [])
  if not groups:
    return optimizers.find_hyperparams(opt_state)
  return {
    f'{name}/{group}': value
    for group in groups
    for name, value in optimizers.find_hyperparams(opt_state, group).items()
  }


def constrain(base: Values, eta: Values, learned: Mapping[str, str]) -> Values:
  """The user's values, each with its factor exp(eta)."""
  return {
    name: jax.tree.map(_CONSTRAIN[kind], base[name], eta[name])
    for name, kind in learned.items()
  }


def _times(base: jax.Array, eta: jax.Array) -> jax.Array:
  return base * jnp.exp(eta)


def _decay(base: jax.Array, eta: jax.Array) -> jax.Array:
  # Never below 0: the factor of 1 - lambda is at most 1 / (1 - lambda_0).
  return jnp.maximum(1 - (1 - base) * jnp.exp(eta), 0)


_CONSTRAIN = dict(zip(KINDS, (_times, _decay), strict=True))


def _check(name: str, known: Mapping[str, Any]) -> None:
  if name not in known:
    raise ValueError(
      f'self_tuning: {name!r} is not among the injected hyperparameters '
      f'({", ".join(sorted(known)) or "none"}) or is a schedule; wrap the '
      f'optimizer in optax.inject_hyperparams with numbers, and give a '
      f'schedule as self_tuning(schedule=)'
    )
  dtype = jnp.asarray(known[name]).dtype
  if jnp.finfo(dtype).bits < 32:
    raise ValueError(
      f'self_tuning: {name!r} is held in {dtype} as the parameters are, where '
      f'a decay rate of 0.999 is 1; give '
      f'optax.inject_hyperparams(..., hyperparam_dtype=jnp.float32)'
    )
