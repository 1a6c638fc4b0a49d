r"""The optax transformation behind `self_tuning`: its `init` and `update`.

Forward mode with K = 1, online, without the Hessian: at each update the
incoming gradient g meets the tangents of the parameters, and eta moves before
the inner optimizer does.

    dF/deta = g . Z,    eta <- eta + steer(dF/deta),
    Z <- gamma Z + (d updates / d lambda) phi'(eta),    Z = dtheta/deta

eta is the logarithm of a factor on the hyperparameter that the user set.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metalr_flax.engine import inner as inner_lib
from metalr_flax.engine import optimizers
from metalr_flax.engine.records import Eta, PyTree
from metalr_flax.engine.tangents import Tangents
from metalr_flax.tuning import displacement as displacement_lib
from metalr_flax.tuning import factors
from metalr_flax.tuning import fit
from metalr_flax.tuning import guard as guard_lib
from metalr_flax.tuning import held_out as held_out_lib
from metalr_flax.tuning import online
from metalr_flax.tuning import select
from metalr_flax.tuning import steering as steering_lib
from metalr_flax.tuning.outer_optimizer import OuterOptimizer
from metalr_flax.tuning.state import SelfTuningState


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuner:
  """The arguments of `self_tuning`, and the two functions that optax wants."""

  inner_tx: optax.GradientTransformation
  learned: dict[str, str]
  labels: Any
  meta_tx: optax.GradientTransformation | None
  discount: float
  schedule: optax.Schedule | None

  @property
  def outer_optimizer(self) -> OuterOptimizer:
    """What moves eta."""
    return OuterOptimizer(
      learned=self.learned, labels=self.labels, meta_tx=self.meta_tx
    )

  def init(self, params: PyTree) -> SelfTuningState:
    """The state before the first update."""
    outer = self.outer_optimizer
    params = optimizers.as_arrays(params)
    labels = factors.expand_labels(self.labels, params)
    fit.check(self.inner_tx, params, self.learned, labels)
    opt_state = optimizers.init_state(self.inner_tx, params)
    base = factors.find_base(opt_state, self.learned, labels)
    eta, step = outer.init_eta(base), jnp.zeros((), jnp.int32)
    if outer.steers:
      fit.check_updates_at_every_step(opt_state)
      opt_state = optimizers.with_hyperparams(
        opt_state, factors.constrain(base, eta, self.learned)
      )
    fixed = optimizers.gradients_like(params), base, step
    return SelfTuningState(
      opt_state=opt_state,
      base=base,
      eta=eta,
      meta_opt_state=outer.init_memory(eta),
      tangents=online.init_tangents(
        self._inner_update, params, opt_state, eta, *fixed
      ),
      displacement=displacement_lib.init(params) if outer.steers else (),
      guard=guard_lib.init() if outer.steers else None,
      scales=outer.find_scales(eta, params) if outer.steers else {},
      step=step,
      held_out=jnp.zeros((), jnp.bool_),
    )

  def update(
    self,
    updates: PyTree,
    state: SelfTuningState,
    params: PyTree | None = None,
    *,
    value: jax.typing.ArrayLike | None = None,
    meta_grads: PyTree | None = None,
    **extra_args: Any,
  ) -> tuple[PyTree, SelfTuningState]:
    """Turns gradients into updates, as optax's `update` does."""
    del extra_args
    if params is None:
      raise ValueError('self_tuning: update(grads, state, params) needs params')
    grads, params = optimizers.as_arrays((updates, params))
    outer = held_out_lib.choose(grads, meta_grads, state.held_out)
    if self.outer_optimizer.steers:
      return self._update_guarded(grads, outer, state, params, value)
    return self._update_plainly(grads, outer, state, params)

  def _update_plainly(
    self,
    grads: PyTree,
    outer: held_out_lib.Outer,
    state: SelfTuningState,
    params: PyTree,
  ) -> tuple[PyTree, SelfTuningState]:
    """An update with eta moved by `meta_tx`, or not at all."""
    eta, meta_opt_state = self.outer_optimizer.follow(outer, state, params)
    tangents = jax.tree.map(lambda z: self.discount * z, state.tangents)
    updates, opt_state, dots = self._push(grads, state, params, eta, tangents)
    return updates, state._replace(
      opt_state=opt_state,
      eta=eta,
      meta_opt_state=meta_opt_state,
      tangents=online.advance(tangents, dots, params),
      step=optax.safe_increment(state.step),
      held_out=outer.held_out,
    )

  def _update_guarded(
    self,
    grads: PyTree,
    outer: held_out_lib.Outer,
    state: SelfTuningState,
    params: PyTree,
    value: jax.typing.ArrayLike | None,
  ) -> tuple[PyTree, SelfTuningState]:
    """An update with eta moved by our rule, undone where training explodes.

    Every large array is written once, after all that reads it, and no slope is
    of an array made up for it: XLA then needs no copy of any. That is why the
    restart is done by the update after the alarm.
    """
    assert state.guard is not None
    rising = steering_lib.is_rising(state.meta_opt_state) | outer.held_out
    verdict, guard = guard_lib.watch(
      state.guard, grads, state.step, value, rising
    )
    restart = state.guard.restart & ~verdict.skip
    eta, steering = self.outer_optimizer.steer(
      grads, outer, state, params, back=verdict.back, restart=restart
    )
    gamma = steering_lib.long_discount(state.meta_opt_state)
    gamma = jnp.where(verdict.skip, 1, gamma)
    before, state = state, self._restarted(state, restart, params)
    tangents = jax.tree.map(lambda z: gamma * z, state.tangents)
    (opt_state, state_dots), (updates, dots) = self._push_unless(
      verdict.skip, before, grads, state, params, eta, tangents
    )
    none = verdict.skip | verdict.back
    updates, dots = select.zero_where(none, (updates, dots))
    displacement = displacement_lib.add(
      select.zero_where(verdict.landmark & ~none, state.displacement), updates
    )
    eta, steering, step, held_out = select.where(
      verdict.skip,
      (before.eta, before.meta_opt_state, before.step, before.held_out),
      (eta, steering, optax.safe_increment(state.step), outer.held_out),
    )
    after = state._replace(
      opt_state=opt_state,
      eta=eta,
      meta_opt_state=steering,
      tangents=online.advance(tangents, (*dots, *state_dots), params),
      step=step,
      held_out=held_out,
    )
    undone = select.zero_where(~verdict.back, displacement)
    return displacement_lib.subtract(updates, undone), after._replace(
      displacement=select.zero_where(verdict.back, displacement), guard=guard
    )

  def _push(
    self,
    grads: PyTree,
    state: SelfTuningState,
    params: PyTree,
    eta: Eta,
    tangents: Tangents,
  ) -> tuple[PyTree, optax.OptState, Tangents]:
    """The inner optimizer's update with its tangents."""

    def update(inner: PyTree, eta: Eta) -> tuple[PyTree, optax.OptState]:
      return self._inner_update(inner, eta, grads, state.base, state.step)

    return online.push_update(update, params, state.opt_state, eta, tangents)

  def _push_unless(
    self,
    skip: jax.Array,
    before: SelfTuningState,
    grads: PyTree,
    state: SelfTuningState,
    params: PyTree,
    eta: Eta,
    tangents: Tangents,
  ) -> tuple[tuple[optax.OptState, Tangents], tuple[PyTree, Tangents]]:
    """As `_push`, but the optimizer's state is that of `before` where `skip`.

    Returns:
      The state and its tangents; the updates and theirs, of no use where
      nothing is updated.
    """
    count = len(jax.tree.leaves(params))

    def push() -> tuple[tuple, tuple]:
      updates, opt_state, dots = self._push(grads, state, params, eta, tangents)
      return (opt_state, dots[count:]), (updates, dots[:count])

    old = before.opt_state, before.tangents[count:]
    return select.held_where(skip, old, push)

  def _inner_update(
    self,
    inner: tuple[PyTree, optax.OptState],
    eta: Eta,
    grads: PyTree,
    base: factors.Values,
    step: jax.Array,
  ) -> tuple[PyTree, optax.OptState]:
    """The inner optimizer's update with the hyperparameters of eta."""
    hyperparams = factors.constrain(base, eta, self.learned)
    if self.schedule is not None and factors.RATE in hyperparams:
      scale = self.schedule(step)
      hyperparams[factors.RATE] = jax.tree.map(
        lambda rate: (rate * scale).astype(rate.dtype),
        hyperparams[factors.RATE],
      )
    return inner_lib.propose(*inner, grads, hyperparams, tx=self.inner_tx)

  def _restarted(
    self, state: SelfTuningState, restart: jax.Array, params: PyTree
  ) -> SelfTuningState:
    """The state, started anew where training restarts."""
    start = optimizers.init_state(self.inner_tx, params)
    if self.labels is None:  # what the user wrote into the state stays
      start = optimizers.with_hyperparams(
        start, optimizers.find_hyperparams(state.opt_state)
      )
    return state._replace(
      opt_state=select.where(restart, start, state.opt_state),
      tangents=select.zero_where(restart, state.tangents),
      displacement=select.zero_where(restart, state.displacement),
    )
