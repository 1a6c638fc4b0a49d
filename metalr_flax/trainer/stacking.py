"""Stacks what the members of a population start from and differ in.

Shape legend: M members.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metalr_flax.config import population as members_lib
from metalr_flax.engine import bijections
from metalr_flax.engine import optimizers
from metalr_flax.engine import population
from metalr_flax.engine import records

Config = Mapping[str, Any]
MakeMetaTx = Callable[[Mapping[str, Any]], optax.GradientTransformation]
_META = 'meta.'
_INNER = ('inner.kwargs.', 'inner.')


def stack_initial(initials: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Initial values of what is learned, float64 [M] by name (and label)."""
  return jax.tree.map(lambda *values: np.array(values), *map(dict, initials))


def meta_settings(config: Config) -> dict[str, jax.Array]:
  """The fields of section `meta` that differ, numbers [M] by name."""
  return {
    name.removeprefix(_META): jnp.asarray(values, jnp.zeros(()).dtype)
    for name, values in members_lib.values(config).items()
    if name.startswith(_META)
  }


def begin(
  config: Config,
  problem: records.Problem,
  *,
  first_values: Sequence[Mapping[str, Any]],
  initials: Sequence[Mapping[str, Any]],
  init_state: Callable[[Mapping[str, Any]], records.MetaTrainState],
  make_meta_tx: MakeMetaTx,
) -> records.MetaTrainState:
  """The state of a population before the first outer step.

  Args:
    config: the population's.
    problem: of its first member.
    first_values: each member's `params`, `model_state` and `data_state`.
    initials: the initial values of what each learns.
    init_state: from first values to the state of the first member.
    make_meta_tx: from a member's `meta_settings` to its outer optimizer.
  """
  state = jax.vmap(init_state)(population.stack(first_values))
  eta = population.stack(
    [bijections.unconstrain(own, problem.bijections) for own in initials]
  )
  meta_opt_state = jax.vmap(
    lambda eta, settings: make_meta_tx(settings).init(eta)
  )(eta, meta_settings(config))
  opt_state = optimizers.with_hyperparams(state.opt_state, _injected(config))
  return state.replace(
    eta=eta, meta_opt_state=meta_opt_state, opt_state=opt_state
  )


def _injected(config: Config) -> dict[str, jax.Array]:
  """The inner optimizer's arguments that differ, [M] by name."""
  found = {}
  for name, values in members_lib.values(config).items():
    for prefix in _INNER:
      key = name.removeprefix(prefix)
      if name.startswith(prefix) and '.' not in key:
        found[key] = jnp.asarray(values, jnp.zeros(()).dtype)
        break
  return found
