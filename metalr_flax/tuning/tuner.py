r"""The optax transformation behind `self_tuning`: its state and update.

Forward mode with K = 1, online, without the Hessian: at each update the
incoming gradient g meets the tangents of the parameters, and eta moves before
the inner optimizer does.

    dF/deta = g . Z,    eta <- eta + steer(dF/deta),
    Z <- gamma Z + (d updates / d lambda) phi'(eta),    Z = dtheta/deta

eta is the logarithm of a factor on the hyperparameter that the user set.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metalr_flax.engine import inner as inner_lib
from metalr_flax.engine import optimizers
from metalr_flax.engine.tangents import Tangents
from metalr_flax.engine.types import Eta, PyTree
from metalr_flax.tuning import displacement as displacement_lib
from metalr_flax.tuning import factors
from metalr_flax.tuning import fit
from metalr_flax.tuning import guard as guard_lib
from metalr_flax.tuning import held_out as held_out_lib
from metalr_flax.tuning import online
from metalr_flax.tuning import select
from metalr_flax.tuning import steering as steering_lib


class SelfTuningState(NamedTuple):
  """The state of a self-tuned optimizer, a plain pytree of arrays.

  Attributes:
    opt_state: the inner optimizer's own; its `hyperparams` are the last used.
    base: each learned hyperparameter as the user set it.
    eta: logarithms of the factors on them, float32 scalars.
    meta_opt_state: what moves eta remembers: `steering.Steering`, or the state
      of `meta_tx`.
    tangents: Z by the place of its leaf in (params, opt_state): arrays
      [k, ...], k hyperparameters, or None where the leaf does not move.
    displacement: the sum of the last one to three updates, [1, ...] by place.
    guard: against explosions; None where nothing is guarded.
    step: updates done, int32 scalar.
    held_out: whether finite `meta_grads` were ever given, boolean scalar.
  """

  opt_state: optax.OptState
  base: factors.Values
  eta: Eta
  meta_opt_state: Any
  tangents: Tangents
  displacement: Tangents
  guard: guard_lib.Guard | None
  step: jax.Array
  held_out: jax.Array


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
  def steers(self) -> bool:
    """Whether eta moves by the rule in `steering`, not by `meta_tx`."""
    return self.meta_tx is None and bool(self.learned)

  def init(self, params: PyTree) -> SelfTuningState:
    """The state before the first update."""
    params = optimizers.as_arrays(params)
    labels = factors.expand_labels(self.labels, params)
    fit.check(self.inner_tx, params, self.learned, labels)
    opt_state = optimizers.init_state(self.inner_tx, params)
    base = factors.find_base(opt_state, self.learned, labels)
    eta, step = self._init_eta(base), jnp.zeros((), jnp.int32)
    if self.steers:
      opt_state = optimizers.with_hyperparams(
        opt_state, factors.constrain(base, eta, self.learned)
      )
    fixed = optimizers.gradients_like(params), base, step
    return SelfTuningState(
      opt_state=opt_state,
      base=base,
      eta=eta,
      meta_opt_state=self._init_meta(eta),
      tangents=online.init_tangents(
        self._inner_update, params, opt_state, eta, *fixed
      ),
      displacement=displacement_lib.init(params) if self.steers else (),
      guard=guard_lib.init() if self.steers else None,
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
    if self.steers:
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
    eta, meta_opt_state = self._follow(outer, state, params)
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
    verdict, guard = guard_lib.watch(state.guard, grads, state.step, value)
    restart = state.guard.restart & ~verdict.skip
    slopes, quick = self._find_slopes(grads, outer, state, params)
    eta, steering = self._steer(
      slopes, quick, outer, state, verdict.back, restart
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

  def _init_eta(self, base: factors.Values) -> Eta:
    """The user's values; a learning rate that our rule moves starts low."""
    eta = jax.tree.map(lambda _: jnp.zeros((), jnp.float32), base)
    return factors.begin_low(eta, base) if self.steers else eta

  def _init_meta(self, eta: Eta) -> Any:
    if self.meta_tx is not None:
      return self.meta_tx.init(eta)
    return steering_lib.init(len(jax.tree.leaves(eta)))

  def _find_slopes(
    self,
    grads: PyTree,
    outer: held_out_lib.Outer,
    state: SelfTuningState,
    params: PyTree,
  ) -> tuple[Eta, Eta]:
    """The long slopes, and the quick ones: those of a learning rate alone."""
    labels = factors.expand_labels(self.labels, params)
    long = online.find_slopes(
      state.eta, outer.grads, params, state.tangents, labels
    )
    rate = {n: eta for n, eta in state.eta.items() if n == factors.RATE}
    quick = online.find_slopes(rate, grads, params, state.displacement, labels)
    return long, {**jax.tree.map(jnp.zeros_like, long), **quick}

  def _follow(
    self, outer: held_out_lib.Outer, state: SelfTuningState, params: PyTree
  ) -> tuple[Eta, Any]:
    """The new eta by `meta_tx`, and its state."""
    if self.meta_tx is None or not self.learned:
      return state.eta, state.meta_opt_state
    labels = factors.expand_labels(self.labels, params)
    slopes = online.find_slopes(
      state.eta, outer.grads, params, state.tangents, labels
    )
    slopes = jax.tree.map(lambda s, e: s.astype(e.dtype), slopes, state.eta)
    moves, memory = self.meta_tx.update(slopes, state.meta_opt_state, state.eta)
    finite = jnp.all(jnp.isfinite(_stack(slopes)))
    return select.where(
      finite & outer.known,
      (self._moved(state, moves, jnp.inf), memory),
      (state.eta, state.meta_opt_state),
    )

  def _steer(
    self,
    slopes: Eta,
    quick: Eta,
    outer: held_out_lib.Outer,
    state: SelfTuningState,
    back: jax.Array,
    restart: jax.Array,
  ) -> tuple[Eta, steering_lib.Steering]:
    """The new eta by our rule, and what the rule remembers.

    It rests where updates are undone. At a restart the rates are lowered, all
    else goes half the way back to what the user set, and the rule begins anew.
    """
    state = self._begun(state, outer)
    is_rate = _stack(_of_name(factors.RATE, state.eta))
    decay = factors.DECAY if factors.learns_decay(self.learned) else ''
    regularizes = _stack(_of_name(decay, state.eta)) & outer.held_out
    eta = _stack(state.eta)
    steering = select.where(
      restart,
      steering_lib.begin_anew(state.meta_opt_state),
      state.meta_opt_state,
    )
    long, short = select.zero_where(restart, (_stack(slopes), _stack(quick)))
    rows, steering = steering_lib.steer(
      eta,
      long,
      short,
      is_rate,
      steering,
      known=outer.known,
      regularizes=regularizes,
    )
    lower = jnp.where(is_rate, -guard_lib.BACK_OFF, -eta / 2)
    lower = jnp.where(regularizes, 0, lower)
    rows = jnp.where(restart, lower, jnp.where(back, 0, rows))
    moves = jax.tree.unflatten(jax.tree.structure(state.eta), list(rows))
    return self._moved(state, moves, state.step), steering

  def _begun(
    self, state: SelfTuningState, outer: held_out_lib.Outer
  ) -> SelfTuningState:
    """The state where eta follows held-out data from this update on.

    What it remembers of the training gradient's slopes is forgotten, and a
    weight decay starts where all do.
    """
    eta = factors.begin_decay(state.eta, state.base, self.learned)
    eta, steering = select.where(
      outer.begins,
      (eta, steering_lib.begin_long(state.meta_opt_state)),
      (state.eta, state.meta_opt_state),
    )
    return state._replace(
      eta=eta, meta_opt_state=steering, held_out=outer.held_out
    )

  def _moved(
    self, state: SelfTuningState, moves: Eta, age: jax.typing.ArrayLike
  ) -> Eta:
    """The new eta, where its hyperparameters can still move."""
    eta = jax.tree.map(
      lambda e, move: (e + move).astype(e.dtype), state.eta, moves
    )
    eta = factors.clip(eta, state.base, self.learned, age)
    if not self.steers:
      return eta
    kept = factors.keep_decay(eta, state.base, self.learned)
    return select.where(state.held_out, kept, eta)

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


def _of_name(name: str, eta: Eta) -> Eta:
  """Whether each eta is of that hyperparameter."""
  return {
    other: jax.tree.map(lambda _, same=other == name: same, values)
    for other, values in eta.items()
  }


def _stack(tree: PyTree) -> jax.Array:
  return jnp.stack([jnp.asarray(leaf) for leaf in jax.tree.leaves(tree)])
