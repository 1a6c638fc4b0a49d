"""Which parts of the inner state a hyperparameter can move.

Nothing is computed: an update is traced with a tangent on the hyperparameters,
and the leaves are noted where one comes out. JAX knows of a tangent that it is
identically zero (behind a sign, a rounding, a `stop_gradient`, an argument that
is not used), whatever the values are.
"""

from collections.abc import Iterator
import functools
import itertools
from typing import Any

import jax
from jax.custom_derivatives import SymbolicZero
import jax.numpy as jnp

from metalr_flax.engine import bijections
from metalr_flax.engine import curvature
from metalr_flax.engine import forward
from metalr_flax.engine import inner as inner_lib
from metalr_flax.engine import optimizers
from metalr_flax.engine import problem as problem_lib
from metalr_flax.engine import state as state_lib

PyTree = Any
Eta = bijections.Eta


def find_moving(
  eta: Eta,
  inner: state_lib.InnerState,
  data_state: PyTree,
  problem: problem_lib.Problem,
  grad_fn: curvature.GradFn,
) -> tuple[str, ...]:
  """The leaves of the inner state that eta can move, in however many updates.

  Args:
    eta: the meta-parameters, or only those whose effect is asked for.
    inner: the inner state, for its shapes.
    data_state: the sampler's position, for its shapes.
    problem: the bilevel problem.
    grad_fn: the inner loss's gradient with its curvature.

  Returns:
    Their paths, in the order of the leaves.
  """
  grown = [(), *_grow(eta, inner, data_state, problem, grad_fn)]
  return grown[-1]


def moves_params(
  eta: Eta,
  inner: state_lib.InnerState,
  data_state: PyTree,
  problem: problem_lib.Problem,
  grad_fn: curvature.GradFn,
  *,
  within: float,
) -> bool:
  """Whether eta can move a parameter within so many updates.

  Args:
    eta: see `find_moving`, as for the next four.
    inner: the inner state.
    data_state: the sampler's position.
    problem: the bilevel problem.
    grad_fn: the inner loss's gradient.
    within: a number of updates; `math.inf` for however many.
  """
  grown = _grow(eta, inner, data_state, problem, grad_fn)
  for update, moving in enumerate(grown, 1):
    if any(path.split('/')[0] == 'params' for path in moving):
      return update <= within
  return False


def _grow(
  eta: Eta,
  inner: state_lib.InnerState,
  data_state: PyTree,
  problem: problem_lib.Problem,
  grad_fn: curvature.GradFn,
) -> Iterator[tuple[str, ...]]:
  """What eta can move within 1, 2, ... updates, until no leaf is new."""
  moving: tuple[str, ...] = ()
  while True:
    found: list[str] = []
    trace = functools.partial(
      _moved_by_one_update,
      problem=problem,
      grad_fn=grad_fn,
      moving=moving,
      found=found,
    )
    jax.eval_shape(trace, eta, inner, data_state)
    grown = tuple(n for n in forward.names(inner) if n in {*moving, *found})
    if grown == moving:
      return
    moving = grown
    yield moving


def _moved_by_one_update(
  eta: Eta,
  inner: state_lib.InnerState,
  data_state: PyTree,
  *,
  problem: problem_lib.Problem,
  grad_fn: curvature.GradFn,
  moving: tuple[str, ...],
  found: list[str],
) -> jax.Array:
  """Traces one update; appends to `found` the leaves that get a tangent."""
  _, batch = problem.next_batch(data_state)

  def step(leaves: dict[str, jax.Array], eta: PyTree) -> jax.Array:
    hyperparams = bijections.constrain(eta, problem.bijections)
    started = inner_lib.started(inner, hyperparams)
    new, _, _ = inner_lib.inner_step(
      forward.replace_leaves(started, leaves),
      hyperparams,
      batch,
      grad_fn=grad_fn,
      tx=problem.tx,
    )
    floats = [
      n
      for n, leaf in zip(forward.names(new), jax.tree.leaves(new), strict=True)
      if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
    ]
    return _note_tangents(forward.pick_leaves(new, floats), found)

  primals = forward.pick_leaves(inner, moving), eta
  _, out = jax.jvp(step, primals, jax.tree.map(jnp.ones_like, primals))
  return out


def _note_tangents(leaves: dict[str, jax.Array], found: list[str]) -> jax.Array:
  """0; where it is differentiated, `found` gets the names that move."""

  @jax.custom_jvp
  def probe(leaves: dict[str, jax.Array]) -> jax.Array:
    return jnp.zeros(())

  def rule(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    found.extend(
      n for n, t in tangents[0].items() if not isinstance(t, SymbolicZero)
    )
    return jnp.zeros(()), jnp.zeros(())

  probe.defjvp(rule, symbolic_zeros=True)
  return probe(leaves)


def find_movers(
  eta: Eta, inner: state_lib.InnerState, problem: problem_lib.Problem
) -> dict[str, set[str]]:
  """The groups whose hyperparameters the update of each parameter uses.

  The groups are told apart by the binary digits of their places, in
  2 log2(groups) traces of the optimizer alone.

  Args:
    eta: values by hyperparameter name and group label.
    inner: the inner state, for its shapes.
    problem: the bilevel problem.

  Returns:
    Labels by the parameter's path: exact where there is one or none, otherwise
    those that can be.
  """
  labels = sorted({label for value in eta.values() for label in value})
  movers = {
    path: {*labels} for path in forward.leaves_of('params', inner.params)
  }
  digits = range(max(1, (len(labels) - 1).bit_length()))
  for digit, side in itertools.product(digits, (0, 1)):
    varied = {v for i, v in enumerate(labels) if i >> digit & 1 == side}
    moved = _moved_by_groups(varied, eta, inner, problem)
    for path in movers.keys() - moved:
      movers[path] -= varied
  return movers


def _moved_by_groups(
  varied: set[str],
  eta: Eta,
  inner: state_lib.InnerState,
  problem: problem_lib.Problem,
) -> set[str]:
  """The parameters whose update some groups' hyperparameters change."""
  found: list[str] = []
  some = {
    name: {label: v for label, v in value.items() if label in varied}
    for name, value in eta.items()
  }

  def trace(some: Eta, eta: Eta, inner: state_lib.InnerState) -> jax.Array:
    def update(some: Eta) -> jax.Array:
      whole = {name: {**eta[name], **some[name]} for name in eta}
      opt_state = optimizers.with_hyperparams(
        inner.opt_state, bijections.constrain(whole, problem.bijections)
      )
      # Of any gradient, the parameters for one.
      updates, _ = problem.tx.update(inner.params, opt_state, inner.params)
      return _note_tangents(forward.leaves_of('params', updates), found)

    return jax.jvp(update, (some,), (jax.tree.map(jnp.ones_like, some),))[1]

  jax.eval_shape(trace, some, eta, inner)
  return {*found}
