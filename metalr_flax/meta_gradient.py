r"""Estimators of the meta-gradient dF/deta of one window.

    F(eta) = meta_loss(theta_K(phi(eta)); meta_batch)

A window runs K inner updates with lambda = phi(eta) and judges the result on a
batch that took no part in them. `ESTIMATORS` is the one place that lists the
ways to differentiate it; all have one signature.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from metalr_flax import hyperparams as hyperparams_lib
from metalr_flax import inner as inner_lib
from metalr_flax import problem as problem_lib
from metalr_flax import state as state_lib

PyTree = Any


class Window(flax.struct.PyTreeNode, kw_only=True):
  """What a window leaves behind.

  Attributes:
    inner: params, model_state and opt_state after the K updates.
    data_state: the sampler's position after the K + 1 batches.
    metrics: scalars by public metric key (`train/loss`, `meta/loss`, ...).
  """

  inner: state_lib.InnerState
  data_state: PyTree
  metrics: inner_lib.Metrics


def _run_inner(
  eta: hyperparams_lib.Eta,
  inner: state_lib.InnerState,
  data_state: PyTree,
  problem: problem_lib.Problem,
) -> Window:
  inner, data_state, metrics = inner_lib.unroll(
    inner,
    data_state,
    hyperparams_lib.constrain(eta, problem.bijections),
    loss_fn=problem.loss_fn,
    tx=problem.tx,
    next_batch=problem.next_batch,
    unroll_length=problem.unroll_length,
  )
  means = {f'train/{name}': jnp.mean(v) for name, v in metrics.items()}
  return Window(inner=inner, data_state=data_state, metrics=means)


def run_window(
  eta: hyperparams_lib.Eta,
  inner: state_lib.InnerState,
  data_state: PyTree,
  problem: problem_lib.Problem,
) -> tuple[jax.Array, Window]:
  """The outer loss F(eta) of one window: K updates, then the held-out batch.

  Args:
    eta: unconstrained meta-parameters, scalars by name.
    inner: the inner state before the window.
    data_state: the sampler's position before the window.
    problem: the bilevel problem.

  Returns:
    The outer loss (scalar), taken on the params *after* the K updates, and what
    the window leaves behind. (On the params from before the last update the
    gradient of a one-update window would be exactly 0.)
  """
  window = _run_inner(eta, inner, data_state, problem)
  data_state, batch = problem.next_meta_batch(window.data_state)
  meta_loss, _ = problem.meta_loss_fn(
    window.inner.params, window.inner.model_state, batch
  )
  metrics = {**window.metrics, 'meta/loss': meta_loss}
  return meta_loss, window.replace(data_state=data_state, metrics=metrics)


def reverse(
  eta: hyperparams_lib.Eta,
  inner: state_lib.InnerState,
  data_state: PyTree,
  problem: problem_lib.Problem,
) -> tuple[hyperparams_lib.Eta | None, Window]:
  """Exact dF/deta by reverse mode through the scanned window.

  Time is about three plain windows; memory grows with K, for the scan keeps
  each update's intermediate values (Maclaurin et al. 2015, Gradient-based
  hyperparameter optimization through reversible learning,
  https://arxiv.org/abs/1502.03492).

  Args:
    eta: unconstrained meta-parameters, scalars by name.
    inner: the inner state before the window.
    data_state: the sampler's position before the window.
    problem: the bilevel problem.

  Returns:
    dF/deta with eta's structure, and what the window leaves behind.
  """
  gradient = jax.grad(run_window, has_aux=True)
  return gradient(eta, inner, data_state, problem)


def none(
  eta: hyperparams_lib.Eta,
  inner: state_lib.InnerState,
  data_state: PyTree,
  problem: problem_lib.Problem,
) -> tuple[hyperparams_lib.Eta | None, Window]:
  """Plain training on the window's K batches; there is no meta-gradient."""
  return None, _run_inner(eta, inner, data_state, problem)


Estimator = Callable[
  [hyperparams_lib.Eta, state_lib.InnerState, PyTree, problem_lib.Problem],
  tuple[hyperparams_lib.Eta | None, Window],
]
ESTIMATORS: dict[str, Estimator] = {'reverse': reverse, 'none': none}
