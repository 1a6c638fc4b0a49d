"""Compares a config's meta-gradient with finite differences, in float64."""

from collections.abc import Callable
import dataclasses
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metalr_flax.config import population
from metalr_flax.engine import bijections
from metalr_flax.engine import meta_gradient
from metalr_flax.engine import outer
from metalr_flax.engine import records
from metalr_flax.trainer import build
from metalr_flax.trainer import feed as feed_lib
from metalr_flax.trainer import refusals

TOLERANCE = 1e-6
STEPS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)  # of eta
PyTree = Any


class Row(NamedTuple):
  """One audited derivative.

  Attributes:
    name: the hyperparameter, with its group's label where there are groups.
    gradient: dF/deta of the config's estimator.
    difference: the finite difference.
    error: their difference over the larger of the two.
    agrees: whether the error is within the tolerance.
  """

  name: str
  gradient: float
  difference: float
  error: float
  agrees: bool


def audit(config: build.Config, warm_up: int) -> list[Row]:
  """Audits a config; a row for each learned eta.

  Args:
    config: resolved, as `config.resolve` returns it; of a population its first
      member is audited.
    warm_up: windows of training before the one that is audited.
  """
  config = population.members_of(config)[0]
  with jax.enable_x64(True), build.randomness(config):
    experiment = build.build(config)
    problem = experiment.problem
    if experiment.streams:
      problem = feed_lib.fed(problem, experiment.streams.first(warm_up + 1))
    problem = dataclasses.replace(
      problem,
      next_batch=_doubled(problem.next_batch),
      next_meta_batch=_doubled(problem.next_meta_batch),
    )
    step = jax.jit(
      lambda s: outer.outer_step(
        s, problem, meta_tx=experiment.meta_tx, estimator=experiment.estimator
      )[0]
    )
    with refusals.tracing(config):
      state = _double(experiment.init_state())
      for _ in range(warm_up):
        state = step(state)
    return compare(state, problem, experiment.estimator)


def compare(
  state: records.MetaTrainState,
  problem: records.Problem,
  estimator: meta_gradient.Estimator,
) -> list[Row]:
  """Compares dF/deta of the window at `state` with a central difference.

  The difference is of fourth order, of the outer loss itself: nothing of the
  estimator is in it.

  Args:
    state: where to differentiate, float64.
    problem: the bilevel problem, its batches float64.
    estimator: what is audited. Z starts from 0.

  Returns:
    A row for each array of eta.
  """
  carry = state.carry.replace(
    tangents=estimator.init_tangents(
      state.eta, state.inner, state.data_state, problem
    )
  )
  gradient, _, _ = jax.jit(lambda eta: estimator(eta, carry, problem))(
    state.eta
  )
  exact = meta_gradient.Estimator(objective=estimator.objective)
  loss = jax.jit(
    lambda eta: meta_gradient.meta_loss(exact, eta, carry, problem)[0]
  )
  floor = 1e-12 * max(1.0, abs(float(loss(state.eta))))
  names = bijections.flatten(state.eta, '')
  gradients = bijections.flatten(gradient, '')
  differences = _differences(loss, state.eta)
  return [
    _row(name, float(gradients[name]), differences[name], floor)
    for name in names
  ]


def _differences(
  loss: Callable[[PyTree], jax.Array], eta: bijections.Eta
) -> dict[str, float]:
  leaves, treedef = jax.tree.flatten(eta)

  def along(index: int) -> Callable[[float], float]:
    def at(by: float) -> float:
      moved = [v + by * (i == index) for i, v in enumerate(leaves)]
      return float(loss(jax.tree.unflatten(treedef, moved)))

    return at

  found = [differentiate(along(index)) for index in range(len(leaves))]
  return bijections.flatten(jax.tree.unflatten(treedef, found), '')


def differentiate(function: Callable[[float], float]) -> float:
  """The derivative at 0 by central differences of fourth order.

  A long step crosses the kinks of ReLUs, a short one drowns in rounding: of all
  `STEPS` the one is taken that agrees best with the next.
  """

  def difference(step: float) -> float:
    near = function(step) - function(-step)
    far = function(2 * step) - function(-2 * step)
    return (8 * near - far) / (12 * step)

  found = [difference(step) for step in STEPS]
  gaps = [abs(one - other) for one, other in itertools.pairwise(found)]
  return found[gaps.index(min(gaps))]


def _row(name: str, gradient: float, difference: float, floor: float) -> Row:
  distance = abs(gradient - difference)
  return Row(
    name=name.removeprefix('/'),
    gradient=gradient,
    difference=difference,
    error=distance / max(abs(gradient), abs(difference), 1e-300),
    agrees=distance <= TOLERANCE * abs(gradient) + floor,
  )


def _doubled(next_batch: Callable) -> Callable:
  def next_double(data_state: PyTree) -> tuple[PyTree, PyTree]:
    data_state, batch = next_batch(data_state)
    return data_state, _double(batch)

  return next_double


def _double(tree: PyTree) -> PyTree:
  def double(leaf: jax.Array) -> jax.Array:
    real = jnp.issubdtype(leaf.dtype, jnp.floating)
    return leaf.astype(jnp.float64) if real else leaf

  return jax.tree.map(double, tree)
