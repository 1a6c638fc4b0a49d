r"""Estimators of the meta-gradient dF/deta of one window.

A window runs K inner updates with lambda = phi(eta). Its outer loss is

    held_out:  F = meta_loss(theta_K; a batch that took no part)
    online:    F = mean over k of loss(theta_k; batch_k), before each update

`Estimator` is the one place that lists the ways to differentiate it: its fields
combine, and every combination has one signature.
"""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

import jax

from metalr_flax.engine import agreement
from metalr_flax.engine import bijections
from metalr_flax.engine import curvature as curvature_lib
from metalr_flax.engine import forward
from metalr_flax.engine import forward_gradient
from metalr_flax.engine import inner as inner_lib
from metalr_flax.engine import problem as problem_lib
from metalr_flax.engine import products
from metalr_flax.engine import state as state_lib
from metalr_flax.engine import tangents as tangents_lib
from metalr_flax.engine import window as window_lib

PyTree = Any
Eta = bijections.Eta
Window = window_lib.Window


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

  Raises:
    ValueError: for a value that is none of these, and a discount with reverse
      mode.
  """

  kind: str = 'reverse'
  remat: str = 'none'
  curvature: str = 'exact'
  subsample: float = 0.25
  discount: float = 0.0
  objective: str = 'held_out'

  def __post_init__(self) -> None:
    """Refuses what is no estimator."""
    for name, known in _OPTIONS.items():
      inner_lib.check_option(name, getattr(self, name), known)
    inner_lib.check_share('subsample', self.subsample, above_zero=True)
    inner_lib.check_share('discount', self.discount, above_zero=False)
    if self.kind == 'reverse' and self.discount:
      raise ValueError(
        f'discount={self.discount!r}: must be 0 with reverse mode, which '
        f"cannot see before its window; use kind='forward'"
      )

  @property
  def online(self) -> bool:
    """Whether the outer loss is the mean of the window's inner losses."""
    return self.objective == 'online'

  @property
  def keeps_tangents(self) -> bool:
    """Whether Z outlives its window, as `MetaTrainState.tangents`."""
    return self.kind == 'forward' and self.discount > 0

  @property
  def per_group(self) -> bool:
    """Whether each group needs a direction of its own.

    Without the Hessian each parameter's tangent stays with its own group's
    eta, so one tangent tree serves all groups.
    """
    return self.curvature != 'none'

  def grad_fn(self, loss_fn: inner_lib.LossFn) -> curvature_lib.GradFn:
    """The loss's gradient, with the curvature that its derivative sees."""
    grad_fn = curvature_lib.make(self.curvature, self.subsample)(loss_fn)
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
    where = inner, data_state, problem, self.grad_fn(problem.loss_fn)
    # The updates before the last loss that is a part of the outer loss.
    reach = problem.unroll_length - self.online
    within = math.inf if self.keeps_tangents else reach
    return [
      name
      for name, value in eta.items()
      if not tangents_lib.moves_params({name: value}, *where, within=within)
    ]

  def init_tangents(
    self,
    eta: Eta,
    inner: state_lib.InnerState,
    data_state: PyTree,
    problem: problem_lib.Problem,
  ) -> forward.Tangents:
    """Z = 0 before the first window; `{}` where it is not kept."""
    if not self.keeps_tangents:
      return {}
    return forward_gradient.init_tangents(
      eta,
      inner,
      data_state,
      problem,
      grad_fn=self.grad_fn(problem.loss_fn),
      per_group=self.per_group,
    )

  def _check(
    self,
    eta: Eta,
    inner: state_lib.InnerState,
    data_state: PyTree,
    problem: problem_lib.Problem,
  ) -> None:
    """Refuses what has no meta-gradient, or one that is identically zero."""
    plain = self.kind == 'none'
    agreement.check_names(eta, inner, problem)
    agreement.check_losses(
      problem, inner, data_state, held_out=not (plain or self.online)
    )
    if plain:
      return
    one = self.online and problem.unroll_length == 1
    agreement.check_learnable(eta, alone=one and not self.discount)
    agreement.check_groups(eta, inner, problem, mixed=self.per_group)
    agreement.check_effect(self.find_inert(eta, inner, data_state, problem))

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

    Raises:
      ValueError: for parts that do not agree, see `agreement`; for tangents of
        another estimator; for a hyperparameter that moves nothing.
      TypeError: for a loss that is no float scalar or depends on no parameter.
    """
    self._check(eta, inner, data_state, problem)
    if not self.keeps_tangents:
      agreement.check_tangents(tangents, {})
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
    The outer loss (scalar) and what the window leaves behind.
  """
  return window_lib.run_judged(
    eta,
    inner,
    data_state,
    problem,
    grad_fn=estimator.grad_fn(problem.loss_fn),
    remat=estimator.remat,
    online=estimator.online,
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
  return None, window_lib.run_plain(
    eta,
    inner,
    data_state,
    problem,
    grad_fn=estimator.grad_fn(problem.loss_fn),
    remat=estimator.remat,
  )


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
  gamma, where = estimator.discount, (eta, inner, data_state)
  grad_fn = estimator.grad_fn(problem.loss_fn)
  shared: dict[str, Any] = {
    'grad_fn': grad_fn,
    'per_group': estimator.per_group,
  }
  shapes = forward_gradient.tangent_shapes(*where, problem, **shared)
  if gamma:
    agreement.check_tangents(tangents, shapes)
    tangents = jax.tree.map(lambda z: gamma * z, tangents)
  else:
    tangents = forward_gradient.zeros(shapes)
  meta_grads, window = forward_gradient.run(
    *where, tangents, problem, online=estimator.online, **shared
  )
  return meta_grads, window if gamma else window.replace(tangents={})


_KINDS: dict[str, Callable[..., tuple[Eta | None, Window]]] = {
  'reverse': _reverse,
  'forward': _forward,
  'none': _none,
}
KINDS = tuple(_KINDS)
OBJECTIVES = ('held_out', 'online')
_OPTIONS = {
  'kind': KINDS,
  'remat': inner_lib.REMATS,
  'curvature': curvature_lib.CURVATURES,
  'objective': OBJECTIVES,
}
