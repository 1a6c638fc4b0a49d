r"""Estimators of the meta-gradient dF/deta of one window.

An estimator is a function `(eta, carry, problem) -> (meta_grads, carry,
metrics)`: it runs a window (see `window`) with lambda = phi(eta) and
differentiates its outer loss F. `Estimator` is the one place that lists the
ways to do so: its fields combine, and every combination has that signature.
"""

import dataclasses

import jax
import jax.numpy as jnp

from metalr_flax.engine import agreement
from metalr_flax.engine import bijections
from metalr_flax.engine import curvature as curvature_lib
from metalr_flax.engine import forward
from metalr_flax.engine import forward_window
from metalr_flax.engine import inner as inner_lib
from metalr_flax.engine import options
from metalr_flax.engine import paths
from metalr_flax.engine import products
from metalr_flax.engine import tangents
from metalr_flax.engine import window
from metalr_flax.engine.records import (
  Carry,
  Eta,
  GradFn,
  InnerState,
  LossFn,
  Metrics,
  Problem,
  PyTree,
)  # fmt: skip

KINDS = ('reverse', 'forward', 'none')
OBJECTIVES = ('held_out', 'online')
_OPTIONS = {
  'kind': KINDS,
  'remat': inner_lib.REMATS,
  'curvature': curvature_lib.CURVATURES,
  'objective': OBJECTIVES,
}


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
    """Refuses values that are not allowed."""
    for name, known in _OPTIONS.items():
      options.check_option(name, getattr(self, name), known)
    options.check_share('subsample', self.subsample, above_zero=True)
    options.check_share('discount', self.discount, above_zero=False)
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

  def per_group(self, problem: Problem) -> bool:
    """Whether each group needs a direction of its own.

    Without the Hessian each parameter's tangent stays with its own group's
    eta, so one tangent tree serves all groups. A hyperparameter of the loss
    moves them all.
    """
    return self.curvature != 'none' or bool(problem.loss_hyperparams)

  def grad_fn(self, loss_fn: LossFn) -> GradFn:
    """The loss's gradient, with the curvature that its derivative sees."""
    grad_fn = curvature_lib.make(self.curvature, self.subsample)(loss_fn)
    return products.arranged(grad_fn) if self.kind == 'forward' else grad_fn

  def find_inert(self, eta: Eta, carry: Carry, problem: Problem) -> list[str]:
    """The hyperparameters whose meta-gradient is identically zero.

    Lion's b1, for one: it is seen through a sign alone.
    """
    reach = self._find_reach(eta, carry, problem)
    # The updates before the last loss that is a part of the outer loss.
    within = problem.unroll_length - self.online
    last = len(reach) - 1
    moved = reach[last if self.keeps_tangents else min(within, last)]
    names = {
      name
      for path in paths.leaves_of('params', carry.inner.params)
      for name in moved[path]
    }
    return [name for name in eta if name not in names]

  def init_tangents(
    self, eta: Eta, inner: InnerState, data_state: PyTree, problem: Problem
  ) -> dict[str, jax.Array]:
    """Z = 0 before the first window, by leaf path; `{}` where it is not kept.

    Args:
      eta: unconstrained meta-parameters.
      inner: the inner state, for its shapes.
      data_state: the sampler's position, for its shapes.
      problem: the bilevel problem.
    """
    if not self.keeps_tangents:
      return {}
    carry = Carry(inner=inner, data_state=data_state, tangents={})
    return _zeros(self.tangent_shapes(eta, carry, problem))

  @forward.naming_the_rule()
  def tangent_shapes(
    self, eta: Eta, carry: Carry, problem: Problem
  ) -> dict[str, jax.ShapeDtypeStruct]:
    """Forward mode's Z: a tangent for each leaf that eta moves, by path."""
    moving = self._find_reach(eta, carry, problem)[-1]
    per_group = self.per_group(problem)
    count = forward.count_directions(eta, per_group=per_group)
    return {
      path: jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype)
      for path, leaf in paths.name_leaves(carry.inner).items()
      if moving[path]
    }

  def _find_reach(
    self, eta: Eta, carry: Carry, problem: Problem
  ) -> list[dict[str, tangents.Marks]]:
    """What moves each leaf of the inner state, see `tangents.find_reach`."""
    grad_fn = self.grad_fn(problem.loss_fn)
    leaves = paths.name_leaves(carry.inner)

    def step(leaves: PyTree, eta: Eta, batch: PyTree) -> PyTree:
      new, _, _ = inner_lib.inner_step(
        paths.with_leaves(carry.inner, leaves),
        bijections.constrain(eta, problem.bijections),
        batch,
        grad_fn=grad_fn,
        tx=problem.tx,
        loss_hyperparams=problem.loss_hyperparams,
      )
      return paths.name_leaves(new)

    _, batch = jax.eval_shape(problem.next_batch, carry.data_state)
    reach = tangents.find_reach(step, leaves, eta, batch)
    return [dict(zip(sorted(leaves), now, strict=True)) for now in reach]

  def _check(self, eta: Eta, carry: Carry, problem: Problem) -> None:
    """Refuses what has no meta-gradient, or one that is identically zero."""
    plain = self.kind == 'none'
    agreement.check_names(eta, carry.inner, problem)
    agreement.check_losses(
      eta, carry, problem, held_out=not (plain or self.online)
    )
    if plain:
      return
    agreement.check_objective(problem, online=self.online)
    one = self.online and problem.unroll_length == 1
    agreement.check_learnable(eta, alone=one and not self.discount)
    mixed = self.per_group(problem)
    agreement.check_groups(eta, carry.inner, problem, mixed=mixed)
    agreement.check_effect(self.find_inert(eta, carry, problem))

  def __call__(
    self, eta: Eta, carry: Carry, problem: Problem
  ) -> tuple[Eta | None, Carry, Metrics]:
    """Runs a window and differentiates its outer loss.

    Args:
      eta: unconstrained meta-parameters.
      carry: before the window; its tangents are those of `init_tangents` or of
        the last window.
      problem: the bilevel problem.

    Returns:
      dF/deta with eta's structure, None for 'none'; the carry after the window;
      and scalars by public metric key (`train/loss`, `meta/loss`, ...).

    Raises:
      ValueError: for parts that do not agree, see `agreement`; for tangents of
        another estimator; for a hyperparameter that moves nothing.
      TypeError: for a loss that is no float scalar or depends on no parameter.
    """
    self._check(eta, carry, problem)
    if not self.keeps_tangents:
      agreement.check_tangents(carry.tangents, {})
    if self.kind == 'none':
      return _train(self, eta, carry, problem)
    if self.kind == 'reverse':
      return _reverse(self, eta, carry, problem)
    return _forward(self, eta, carry, problem)


def meta_loss(
  estimator: Estimator, eta: Eta, carry: Carry, problem: Problem
) -> tuple[jax.Array, tuple[Carry, Metrics]]:
  """The outer loss F(eta) of one window, differentiable by reverse mode.

  Args:
    estimator: its objective, and for a derivative its curvature and remat.
    eta: unconstrained meta-parameters.
    carry: before the window.
    problem: the bilevel problem.

  Returns:
    The outer loss (scalar), and the carry and metrics after the window.
  """
  carry, metrics = _unroll(estimator, eta, carry, problem)
  outer_loss, carry = window.draw_outer_loss(
    carry, problem, online=estimator.online
  )
  loss = outer_loss(carry.inner, metrics['train/loss'])
  return loss, (carry, {**metrics, 'meta/loss': loss})


def _unroll(
  estimator: Estimator, eta: Eta, carry: Carry, problem: Problem
) -> tuple[Carry, Metrics]:
  grad_fn = estimator.grad_fn(problem.loss_fn)
  return window.unroll(
    eta, carry, problem, grad_fn=grad_fn, remat=estimator.remat
  )


def _train(
  estimator: Estimator, eta: Eta, carry: Carry, problem: Problem
) -> tuple[None, Carry, Metrics]:
  """Plain training on the window's K batches."""
  return None, *_unroll(estimator, eta, carry, problem)


def _reverse(
  estimator: Estimator, eta: Eta, carry: Carry, problem: Problem
) -> tuple[Eta, Carry, Metrics]:
  """Reverse mode through the scanned window (Maclaurin et al. 2015).

  https://arxiv.org/abs/1502.03492
  """
  grads, (carry, metrics) = jax.grad(
    lambda eta: meta_loss(estimator, eta, carry, problem), has_aux=True
  )(eta)
  return grads, carry, metrics


def _forward(
  estimator: Estimator, eta: Eta, carry: Carry, problem: Problem
) -> tuple[Eta, Carry, Metrics]:
  """Forward mode: Z is pushed through the window, see `forward`."""
  shapes = estimator.tangent_shapes(eta, carry, problem)
  z = _discounted(carry.tangents, estimator.discount, shapes)
  meta_grads, carry, metrics = forward_window.differentiate(
    eta,
    carry.replace(tangents=z),
    problem,
    grad_fn=estimator.grad_fn(problem.loss_fn),
    per_group=estimator.per_group(problem),
    online=estimator.online,
  )
  if not estimator.keeps_tangents:
    carry = carry.replace(tangents={})
  return meta_grads, carry, metrics


def _discounted(
  z: dict[str, jax.Array],
  discount: float,
  shapes: dict[str, jax.ShapeDtypeStruct],
) -> dict[str, jax.Array]:
  """Z at the start of a window, checked."""
  if not discount:
    return _zeros(shapes)
  agreement.check_tangents(z, shapes)
  return jax.tree.map(lambda leaf: discount * leaf, z)


def _zeros(shapes: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
  return {name: jnp.zeros(s.shape, s.dtype) for name, s in shapes.items()}
