r"""What `self_tuning` does at each update of somebody else's loop.

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

from metalr_flax.engine import forward
from metalr_flax.engine import inner as inner_lib
from metalr_flax.engine import optimizers
from metalr_flax.tuning import factors
from metalr_flax.tuning import guard as guard_lib
from metalr_flax.tuning import injected
from metalr_flax.tuning import online
from metalr_flax.tuning import steering as steering_lib

PyTree = Any
# Where a learning rate starts at most. It grows e-fold in ten updates, so what
# the user set does not matter; from above nothing recovers as well.
START = 1e-5


class SelfTuningState(NamedTuple):
  """A plain pytree of arrays: it checkpoints as any optimizer's state does.

  Attributes:
    opt_state: the inner optimizer's own; its `hyperparams` are the last used.
    base: each learned hyperparameter as the user set it.
    eta: logarithms of the factors on them, float32 scalars.
    meta_opt_state: what moves eta remembers: `steering.Steering`, or the state
      of `meta_tx`.
    tangents: Z by the place of its leaf in (params, opt_state), [k, ...].
    displacement: the sum of the last one to three updates, [1, ...] by place.
    guard: against explosions; None where nothing is guarded.
    step: updates done, int32 scalar.
  """

  opt_state: optax.OptState
  base: factors.Values
  eta: online.Eta
  meta_opt_state: Any
  tangents: forward.Tangents
  displacement: forward.Tangents
  guard: guard_lib.Guard | None
  step: jax.Array


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
    """Whether eta moves by our rule."""
    return self.meta_tx is None and bool(self.learned)

  def init(self, params: PyTree) -> SelfTuningState:
    """The state before the first update."""
    params = optimizers.as_arrays(params)
    labels = self._labels(params)
    injected.check(self.inner_tx, params, self.learned, labels)
    opt_state = optimizers.init_state(self.inner_tx, params)
    base = factors.find_base(opt_state, self.learned, labels)
    eta = jax.tree.map(lambda _: jnp.zeros((), jnp.float32), base)
    if self.steers and 'learning_rate' in base:
      eta['learning_rate'] = jax.tree.map(
        lambda b: jnp.minimum(0.0, jnp.log(START / b.astype(jnp.float32))),
        base['learning_rate'],
      )
      opt_state = optimizers.with_hyperparams(
        opt_state, factors.constrain(base, eta, self.learned)
      )
    tangents = online.init_tangents(
      params, opt_state, eta, self.inner_tx, labels
    )
    return SelfTuningState(
      opt_state=opt_state,
      base=base,
      eta=eta,
      meta_opt_state=self._init_meta(eta),
      tangents=tangents,
      displacement=online.init_displacement(params) if self.steers else {},
      guard=guard_lib.init() if self.steers else None,
      step=jnp.zeros((), jnp.int32),
    )

  def update(
    self,
    updates: PyTree,
    state: SelfTuningState,
    params: PyTree | None = None,
    *,
    value: jax.typing.ArrayLike | None = None,
    **extra_args: Any,
  ) -> tuple[PyTree, SelfTuningState]:
    """From gradients to what is added to params, as optax wants it."""
    del extra_args
    if params is None:
      raise ValueError('self_tuning: update(grads, state, params) needs params')
    updates, params = optimizers.as_arrays((updates, params))
    if self.steers:
      return self._steer(state, updates, params, value)
    eta, meta_opt_state = self._follow(state, updates, params)
    tangents = jax.tree.map(lambda z: self.discount * z, state.tangents)
    new, opt_state, dots = self._push(state, eta, updates, params, tangents)
    return new, state._replace(
      opt_state=opt_state,
      eta=eta,
      meta_opt_state=meta_opt_state,
      tangents=online.advance(tangents, dots, params),
      step=optax.safe_increment(state.step),
    )

  def _steer(
    self,
    state: SelfTuningState,
    grads: PyTree,
    params: PyTree,
    value: jax.typing.ArrayLike | None,
  ) -> tuple[PyTree, SelfTuningState]:
    """An update by our rule.

    Every large array is written once, after all that reads it, and no slope is
    of an array made up for it: XLA then needs no copy of any. That is why the
    restart is done by the update after the alarm.
    """
    assert state.guard is not None
    verdict, guard = guard_lib.watch(state.guard, grads, state.step, value)
    restart = state.guard.restart & ~verdict.skip
    eta, steering = self._move(state, grads, params, verdict.back, restart)
    gamma = steering_lib.long_discount(state.meta_opt_state)
    before, state = state, self._restarted(state, restart, params)
    tangents = jax.tree.map(lambda z: gamma * z, state.tangents)
    updates, opt_state, dots = self._push(state, eta, grads, params, tangents)
    none = verdict.skip | verdict.back
    updates, dots = _zero_where(none, (updates, dots))
    displacement = online.add_updates(
      _zero_where(verdict.landmark & ~none, state.displacement), updates
    )
    after = state._replace(
      opt_state=opt_state,
      eta=eta,
      meta_opt_state=steering,
      tangents=online.advance(tangents, dots, params),
      step=optax.safe_increment(state.step),
    )
    after = _where(verdict.skip, before, after)
    return online.go_back(
      updates, _zero_where(~verdict.back, displacement)
    ), after._replace(
      displacement=_zero_where(verdict.back, displacement), guard=guard
    )

  def _restarted(
    self, state: SelfTuningState, restart: jax.Array, params: PyTree
  ) -> SelfTuningState:
    """The state, with all forgotten where the last update went back."""
    start = optimizers.init_state(self.inner_tx, params)
    if self.labels is None:  # what the user wrote into the state stays
      start = optimizers.with_hyperparams(
        start, optimizers.find_hyperparams(state.opt_state)
      )
    return state._replace(
      opt_state=_where(restart, start, state.opt_state),
      tangents=_zero_where(restart, state.tangents),
      displacement=_zero_where(restart, state.displacement),
    )

  def _labels(self, params: PyTree) -> PyTree | None:
    return factors.expand_labels(self.labels, params)

  def _init_meta(self, eta: online.Eta) -> Any:
    if self.meta_tx is not None:
      return self.meta_tx.init(eta)
    return steering_lib.init(len(jax.tree.leaves(eta)))

  def _follow(
    self, state: SelfTuningState, grads: PyTree, params: PyTree
  ) -> tuple[online.Eta, Any]:
    """The new eta by `meta_tx`, and its state."""
    if self.meta_tx is None or not self.learned:
      return state.eta, state.meta_opt_state
    slopes = online.slopes(
      state.eta, grads, params, state.tangents, self._labels(params)
    )
    slopes = jax.tree.map(lambda s, e: s.astype(e.dtype), slopes, state.eta)
    moves, memory = self.meta_tx.update(slopes, state.meta_opt_state, state.eta)
    finite = jnp.all(jnp.isfinite(jnp.stack(jax.tree.leaves(slopes))))
    return _where(
      finite,
      (self._moved(state, moves, jnp.inf), memory),
      (state.eta, state.meta_opt_state),
    )

  def _move(
    self,
    state: SelfTuningState,
    grads: PyTree,
    params: PyTree,
    back: jax.Array,
    restart: jax.Array,
  ) -> tuple[online.Eta, steering_lib.Steering]:
    """The new eta by our rule.

    It rests where updates are undone. At a restart the rates are lowered, all
    else goes half the way back to what the user set, and the rule begins anew.
    """
    labels = self._labels(params)
    slopes = online.slopes(state.eta, grads, params, state.tangents, labels)
    rate = {n: eta for n, eta in state.eta.items() if n == 'learning_rate'}
    quick = online.slopes(rate, grads, params, state.displacement, labels)
    quick = {**jax.tree.map(jnp.zeros_like, slopes), **quick}
    is_rate = {
      name: jax.tree.map(lambda _, n=name: n in rate, eta)
      for name, eta in state.eta.items()
    }
    of_eta, of_rate = _stack(state.eta), _stack(is_rate)
    steering = _where(
      restart,
      steering_lib.begin_anew(state.meta_opt_state),
      state.meta_opt_state,
    )
    long, quick = _zero_where(restart, (_stack(slopes), _stack(quick)))
    rows, steering = steering_lib.steer(of_eta, long, quick, of_rate, steering)
    lower = jnp.where(of_rate, -guard_lib.BACK_OFF, -of_eta / 2)
    rows = jnp.where(restart, lower, jnp.where(back, 0, rows))
    moves = jax.tree.unflatten(jax.tree.structure(state.eta), list(rows))
    return self._moved(state, moves, state.step), steering

  def _moved(
    self,
    state: SelfTuningState,
    moves: online.Eta,
    age: jax.typing.ArrayLike,
  ) -> online.Eta:
    """The new eta, where its hyperparameters can still move."""
    eta = jax.tree.map(
      lambda e, move: (e + move).astype(e.dtype), state.eta, moves
    )
    return factors.clip(eta, state.base, self.learned, age)

  def _push(
    self,
    state: SelfTuningState,
    eta: online.Eta,
    grads: PyTree,
    params: PyTree,
    tangents: forward.Tangents,
  ) -> tuple[PyTree, optax.OptState, forward.Tangents]:
    """The inner optimizer's update with its tangents."""

    def propose(
      params: PyTree, opt_state: optax.OptState, eta: PyTree
    ) -> tuple[PyTree, optax.OptState]:
      hyperparams = self._hyperparams(state.base, eta, state.step)
      return inner_lib.propose(
        params, opt_state, grads, hyperparams, tx=self.inner_tx
      )

    if not eta:
      return *propose(params, state.opt_state, eta), {}
    return online.push_update(propose, params, state.opt_state, eta, tangents)

  def _hyperparams(
    self, base: factors.Values, eta: online.Eta, step: jax.Array
  ) -> factors.Values:
    values = factors.constrain(base, eta, self.learned)
    if self.schedule is not None and 'learning_rate' in values:
      scale = self.schedule(step)
      values['learning_rate'] = jax.tree.map(
        lambda rate: (rate * scale).astype(rate.dtype), values['learning_rate']
      )
    return values


def _stack(tree: PyTree) -> jax.Array:
  return jnp.stack([jnp.asarray(leaf) for leaf in jax.tree.leaves(tree)])


def _zero_where(condition: jax.Array, tree: PyTree) -> PyTree:
  return jax.tree.map(lambda a: jnp.where(condition, 0, a), tree)


def _where(condition: jax.Array, one: PyTree, other: PyTree) -> PyTree:
  return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, other)
