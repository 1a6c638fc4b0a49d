"""The optimizer of eta: `meta_tx` where the user gave one, otherwise our rule.

It reads the slopes of the outer loss, moves eta along them, and keeps each
hyperparameter where it can still move. The rule itself is in `steering`, which
sees rows of numbers; here are the etas that they belong to.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metalr_flax.engine.records import Eta, PyTree
from metalr_flax.tuning import factors
from metalr_flax.tuning import guard as guard_lib
from metalr_flax.tuning import held_out as held_out_lib
from metalr_flax.tuning import online
from metalr_flax.tuning import select
from metalr_flax.tuning import steering as steering_lib
from metalr_flax.tuning.state import SelfTuningState


@dataclasses.dataclass(frozen=True, kw_only=True)
class OuterOptimizer:
  """Where eta starts, and how an update of the weights moves it.

  Attributes:
    learned: the kind of each hyperparameter, see `factors`.
    labels: the group of each parameter, as `self_tuning` was given them.
    meta_tx: an optax optimizer of eta; None for our rule.
  """

  learned: dict[str, str]
  labels: Any
  meta_tx: optax.GradientTransformation | None

  @property
  def steers(self) -> bool:
    """Whether eta moves by the rule in `steering`, not by `meta_tx`."""
    return self.meta_tx is None and bool(self.learned)

  def init_eta(self, base: factors.Values) -> Eta:
    """The user's values; a learning rate that our rule moves starts low."""
    eta = jax.tree.map(lambda _: jnp.zeros((), jnp.float32), base)
    return factors.begin_low(eta, base) if self.steers else eta

  def init_memory(self, eta: Eta) -> Any:
    """The state of `meta_tx`, or of our rule, before the first update."""
    if self.meta_tx is not None:
      return self.meta_tx.init(eta)
    return steering_lib.init(len(jax.tree.leaves(eta)))

  def find_scales(self, eta: Eta, params: PyTree) -> Eta:
    """Norms of the parameters that each learning rate moves, by name."""
    labels = factors.expand_labels(self.labels, params)
    return online.find_norms(_rates(eta), params, labels)

  def follow(
    self, outer: held_out_lib.Outer, state: SelfTuningState, params: PyTree
  ) -> tuple[Eta, Any]:
    """Moves eta by `meta_tx`, or not at all.

    Args:
      outer: the gradient of the outer loss at this update.
      state: before the update.
      params: before the update.

    Returns:
      The new eta, and what `meta_tx` remembers.
    """
    if self.meta_tx is None or not self.learned:
      return state.eta, state.meta_opt_state
    slopes = self._find_slopes(outer, state, params)
    slopes = jax.tree.map(lambda s, e: s.astype(e.dtype), slopes, state.eta)
    moves, memory = self.meta_tx.update(slopes, state.meta_opt_state, state.eta)
    finite = jnp.all(jnp.isfinite(factors.stack(slopes)))
    return select.where(
      finite & outer.known,
      (self._moved(state, moves, jnp.inf), memory),
      (state.eta, state.meta_opt_state),
    )

  def steer(
    self,
    grads: PyTree,
    outer: held_out_lib.Outer,
    state: SelfTuningState,
    params: PyTree,
    *,
    back: jax.Array,
    restart: jax.Array,
  ) -> tuple[Eta, steering_lib.Steering]:
    """Moves eta by our rule.

    It rests where updates are undone. At a restart the rates are lowered, all
    else goes half the way back to what the user set, and the rule begins anew.

    Args:
      grads: the training gradient.
      outer: the gradient of the outer loss at this update.
      state: before the update.
      params: before the update.
      back: whether the last updates are undone, boolean scalar.
      restart: whether training begins anew, boolean scalar.

    Returns:
      The new eta, and what the rule remembers.
    """
    slopes = self._find_rows(grads, outer, state, params)
    state = self._begun(state, outer)
    is_rate, regularizes = self._marks(state)
    eta = factors.stack(state.eta)
    steering = _restarted(state.meta_opt_state, eta, restart)
    long, cosines, outer_cosines, shares = select.zero_where(restart, slopes)
    rows, steering = steering_lib.steer(
      eta,
      long,
      cosines,
      is_rate,
      steering,
      known=outer.known,
      regularizes=regularizes,
      held_out=outer.held_out,
      outer_cosines=outer_cosines,
      shares=shares,
    )
    fall = _fall(eta, is_rate, regularizes)
    rows = jnp.where(restart, fall, jnp.where(back, 0, rows))
    moves = jax.tree.unflatten(jax.tree.structure(state.eta), list(rows))
    return self._moved(state, moves, state.step), steering

  def _find_rows(
    self,
    grads: PyTree,
    outer: held_out_lib.Outer,
    state: SelfTuningState,
    params: PyTree,
  ) -> tuple[jax.Array, ...]:
    """The long slopes, either gradient's cosines, the last updates' shares.

    Returns:
      Of each eta, [n] each; 0 but for the first of one that is no rate.
    """
    long = self._find_slopes(outer, state, params)
    cosines, shares = self._find_cosines(grads, state, params)
    outer_cosines = cosines
    if outer.grads is not grads:
      outer_cosines, _ = self._find_cosines(outer.grads, state, params)
    zeros = _zeros(long)
    rows = long, *({**zeros, **c} for c in (cosines, outer_cosines, shares))
    return tuple(factors.stack(row) for row in rows)

  def _find_slopes(
    self, outer: held_out_lib.Outer, state: SelfTuningState, params: PyTree
  ) -> Eta:
    """The outer loss's slopes along what the whole run has done."""
    labels = factors.expand_labels(self.labels, params)
    return online.find_slopes(
      state.eta, outer.grads, params, state.tangents, labels
    )

  def _find_cosines(
    self, grads: PyTree, state: SelfTuningState, params: PyTree
  ) -> tuple[Eta, Eta]:
    """A gradient's cosines with the last updates, of a learning rate alone.

    Returns:
      Those, and the norms of the updates over those of the parameters; 0 where
      the first parameters were.
    """
    rate = _rates(state.eta)
    if not rate:
      return {}, {}
    labels = factors.expand_labels(self.labels, params)
    kind = {factors.RATE: self.learned[factors.RATE]}
    rates = factors.constrain(state.base, rate, kind)
    largest = jnp.max(jnp.stack(jax.tree.leaves(rates)))
    cosines, displaced = online.find_cosines(
      rate, grads, params, state.displacement, labels, largest
    )
    tiny = jnp.finfo(jnp.float32).tiny
    shares = jax.tree.map(
      lambda d, norm, first: jnp.where(first > 0, d / (norm + tiny), 0),
      displaced,
      self.find_scales(rate, params),
      state.scales,
    )
    return cosines, shares

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

  def _marks(self, state: SelfTuningState) -> tuple[jax.Array, jax.Array]:
    """Which etas are learning rates, and which held-out decays, bool [n]."""
    decay = factors.DECAY if factors.learns_decay(self.learned) else ''
    is_rate, is_decay = (
      factors.stack(factors.of_name(name, state.eta))
      for name in (factors.RATE, decay)
    )
    return is_rate, is_decay & state.held_out

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


def _rates(eta: Eta) -> Eta:
  return {n: e for n, e in eta.items() if n == factors.RATE}


def _zeros(eta: Eta) -> Eta:
  return jax.tree.map(lambda e: jnp.zeros(jnp.shape(e), jnp.float32), eta)


def _restarted(
  steering: steering_lib.Steering, eta: jax.Array, restart: jax.Array
) -> steering_lib.Steering:
  """What the rule remembers: of an explosion alone where training restarts."""
  anew = steering_lib.begin_anew(steering, eta)
  return select.where(restart, anew, steering)


def _fall(
  eta: jax.Array, is_rate: jax.Array, regularizes: jax.Array
) -> jax.Array:
  """The moves at a restart: rates are lowered, a held-out decay stays, [n]."""
  fall = jnp.where(is_rate, -guard_lib.BACK_OFF, -eta / 2)
  return jnp.where(regularizes, 0, fall)
