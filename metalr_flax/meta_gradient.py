r"""Estimators of the meta-gradient dF/deta of one window.

A window runs K inner updates with lambda = phi(eta). Its outer loss is

    held_out:  F = meta_loss(theta_K; a batch that took no part)
    online:    F = mean over k of loss(theta_k; batch_k), before each update

`Estimator` is the one place that lists the ways to differentiate it: its fields
combine, and every combination has one signature.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
from typing import Any

import jax

from metalr_flax import curvature as curvature_lib
from metalr_flax import forward
from metalr_flax import forward_gradient
from metalr_flax import hyperparams as hyperparams_lib
from metalr_flax import inner as inner_lib
from metalr_flax import problem as problem_lib
from metalr_flax import products
from metalr_flax import state as state_lib
from metalr_flax import window as window_lib

PyTree = Any
Eta = hyperparams_lib.Eta
Window = window_lib.Window


class NoForwardRuleError(TypeError):
  """Forward mode met a function that has a reverse rule alone."""


@contextlib.contextmanager
def _naming_the_rule() -> Iterator[None]:
  """Says what to use instead where a forward rule is missing."""
  try:
    yield
  except TypeError as error:
    if 'custom_vjp' not in str(error):
      raise
    raise NoForwardRuleError(
      'the loss has a custom_vjp, which has no forward-mode rule: use '
      "meta.estimator 'reverse', or give the function a jax.custom_jvp"
    ) from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimator:
  """How to differentiate a window.

  Attributes:
    kind: 'reverse' (memory grows with K), 'forward' (memory does not, time
      grows with the number of hyperparameters), or 'none' (plain training).
    remat: what reverse mode keeps of each update, see `inner.unroll`.
    curvature: 'exact', 'none' (no Hessian term) or 'subsample'.
    subsample: share of the batch that 'subsample' takes, in (0, 1].
    discount: gamma in [0, 1]. Forward mode's Z is multiplied by it at the start
      of each window; 0 forgets what came before the window, as reverse mode
      must.
    objective: 'held_out' or 'online'.
  """

  kind: str = 'reverse'
  remat: str = 'none'
  curvature: str = 'exact'
  subsample: float = 0.25
  discount: float = 0.0
  objective: str = 'held_out'

  @property
  def per_group(self) -> bool:
    """Whether each group needs a direction of its own.

    Without the Hessian each parameter's tangent stays with its own group's
    eta, so one tangent tree serves all groups.
    """
    return self.curvature != 'none'

  def grad_fn(self, loss_fn: inner_lib.LossFn) -> curvature_lib.GradFn:
    """The loss's gradient, with the curvature that its derivative sees."""
    make = {
      'exact': curvature_lib.exact,
      'none': curvature_lib.none,
      'subsample': curvature_lib.subsample(self.subsample),
    }[self.curvature]
    grad_fn = make(loss_fn)
    return products.arranged(grad_fn) if self.kind == 'forward' else grad_fn

  def find_inert(
    self,
    eta: Eta,
    inner: state_lib.InnerState,
    data_state: PyTree,
    problem: problem_lib.Problem,
  ) -> list[str]:
    """The hyperparameters whose meta-gradient is identically zero.

    Lion's b1, for one: it is seen through a sign alone.
    """
    grad_fn = self.grad_fn(problem.loss_fn)
    inert = []
    for name in eta:
      moving = forward.find_moving(
        {name: eta[name]}, inner, data_state, problem, grad_fn
      )
      if not any(path.split('/')[0] == 'params' for path in moving):
        inert.append(name)
    return inert

  def init_tangents(
    self,
    eta: Eta,
    inner: state_lib.InnerState,
    data_state: PyTree,
    problem: problem_lib.Problem,
  ) -> forward.Tangents:
    """Z = 0 before the first window; `{}` where it is not kept."""
    if self.kind != 'forward' or not self.discount:
      return {}
    return self.zero_tangents(eta, inner, data_state, problem)

  def zero_tangents(
    self,
    eta: Eta,
    inner: state_lib.InnerState,
    data_state: PyTree,
    problem: problem_lib.Problem,
  ) -> forward.Tangents:
    """Z = 0 of the leaves that eta can move."""
    with _naming_the_rule():
      return forward_gradient.init_tangents(
        eta,
        inner,
        data_state,
        problem,
        grad_fn=self.grad_fn(problem.loss_fn),
        per_group=self.per_group,
      )

  def __call__(
    self,
    eta: Eta,
    inner: state_lib.InnerState,
    data_state: PyTree,
    tangents: forward.Tangents,
    problem: problem_lib.Problem,
  ) -> tuple[Eta | None, Window]:
    """Runs a window and differentiates its outer loss.

    Args:
      eta: unconstrained meta-parameters.
      inner: the inner state before the window.
      data_state: the sampler's position before the window.
      tangents: Z before the window, from `init_tangents` or the last window.
      problem: the bilevel problem.

    Returns:
      dF/deta with eta's structure, None for 'none'; and what the window leaves
      behind.
    """
    return _KINDS[self.kind](self, eta, inner, data_state, tangents, problem)


def run_window(
  estimator: Estimator,
  eta: Eta,
  inner: state_lib.InnerState,
  data_state: PyTree,
  problem: problem_lib.Problem,
) -> tuple[jax.Array, Window]:
  """The outer loss F(eta) of one window.

  Args:
    estimator: its objective, and for a derivative its curvature and remat.
    eta: unconstrained meta-parameters.
    inner: the inner state before the window.
    data_state: the sampler's position before the window.
    problem: the bilevel problem.

  Returns:
    The outer loss (scalar) and what the window leaves behind. A held-out loss
    is taken on the params *after* the K updates: on those from before the last
    one, the gradient of a window of one update would be exactly 0.
  """
  window = _run_plain(estimator, eta, inner, data_state, problem)
  if estimator.objective == 'online':
    meta_loss = window.metrics['train/loss']
  else:
    data_state, batch = problem.next_meta_batch(window.data_state)
    meta_loss, _ = problem.meta_loss_fn(
      window.inner.params, window.inner.model_state, batch
    )
    window = window.replace(data_state=data_state)
  metrics = {**window.metrics, 'meta/loss': meta_loss}
  return meta_loss, window.replace(metrics=metrics)


def _run_plain(
  estimator: Estimator,
  eta: Eta,
  inner: state_lib.InnerState,
  data_state: PyTree,
  problem: problem_lib.Problem,
) -> Window:
  return window_lib.run_plain(
    eta,
    inner,
    data_state,
    problem,
    grad_fn=estimator.grad_fn(problem.loss_fn),
    remat=estimator.remat,
  )


def _none(
  estimator: Estimator,
  eta: Eta,
  inner: state_lib.InnerState,
  data_state: PyTree,
  tangents: forward.Tangents,
  problem: problem_lib.Problem,
) -> tuple[Eta | None, Window]:
  """Plain training on the window's K batches."""
  del tangents
  return None, _run_plain(estimator, eta, inner, data_state, problem)


def _reverse(
  estimator: Estimator,
  eta: Eta,
  inner: state_lib.InnerState,
  data_state: PyTree,
  tangents: forward.Tangents,
  problem: problem_lib.Problem,
) -> tuple[Eta | None, Window]:
  """Reverse mode through the scanned window (Maclaurin et al. 2015).

  https://arxiv.org/abs/1502.03492
  """
  del tangents

  def meta_loss(eta: Eta) -> tuple[jax.Array, Window]:
    return run_window(estimator, eta, inner, data_state, problem)

  return jax.grad(meta_loss, has_aux=True)(eta)


def _forward(
  estimator: Estimator,
  eta: Eta,
  inner: state_lib.InnerState,
  data_state: PyTree,
  tangents: forward.Tangents,
  problem: problem_lib.Problem,
) -> tuple[Eta | None, Window]:
  """Forward mode: Z goes along with the updates, see `forward`."""
  gamma = estimator.discount
  if gamma:
    tangents = jax.tree.map(lambda z: gamma * z, tangents)
  else:
    tangents = estimator.zero_tangents(eta, inner, data_state, problem)
  with _naming_the_rule():
    meta_grads, window = forward_gradient.run(
      eta,
      inner,
      data_state,
      tangents,
      problem,
      grad_fn=estimator.grad_fn(problem.loss_fn),
      per_group=estimator.per_group,
      online=estimator.objective == 'online',
    )
  return meta_grads, window if gamma else window.replace(tangents={})


_KINDS: dict[str, Callable[..., tuple[Eta | None, Window]]] = {
  'reverse': _reverse,
  'forward': _forward,
  'none': _none,
}
KINDS = tuple(_KINDS)
