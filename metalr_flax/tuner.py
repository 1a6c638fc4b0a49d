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

from metalr_flax import factors
from metalr_flax import forward
from metalr_flax import guard as guard_lib
from metalr_flax import inner as inner_lib
from metalr_flax import online
from metalr_flax import optimizers
from metalr_flax import steering as steering_lib

PyTree = Any
# Where a learning rate starts at most. It grows e-fold in ten updates, so what
# the user set does not matter; from above nothing recovers as well.
START = 1e-5
# A factor exp(eta) from 1e-13 to 1e13.
ETA_RANGE = 30.0


class SelfTuningState(NamedTuple):
  """A plain pytree of arrays: it checkpoints as any optimizer's state does.

  Attributes:
    opt_state: the inner optimizer's own; its `hyperparams` are the last used.
    base: each learned hyperparameter as the user set it.
    eta: logarithms of the factors on them, float32 scalars.
    meta_opt_state: what moves eta remembers: `steering.Steering`, or the state
      of `meta_tx`.
    tangents: Z by the place of its leaf in (params, opt_state), [k, ...].
    quick_tangents: Z of the last few updates, of the parameters alone.
    guard: a snapshot of good parameters; None where nothing is guarded.
    step: updates done, int32 scalar.
  """

  opt_state: optax.OptState
  base: factors.Values
  eta: online.Eta
  meta_opt_state: Any
  tangents: forward.Tangents
  quick_tangents: forward.Tangents
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
    labels = self._labels(params)
    opt_state = optimizers.init_state(self.inner_tx, params)
    base = factors.find_base(opt_state, self.learned, labels)
    eta = jax.tree.map(lambda _: jnp.zeros(()), base)
    if self.steers and 'learning_rate' in base:
      eta['learning_rate'] = jax.tree.map(
        lambda b: jnp.minimum(0.0, jnp.log(START / b.astype(jnp.float32))),
        base['learning_rate'],
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
      quick_tangents=online.of_params(tangents, params) if self.steers else {},
      guard=guard_lib.init(params) if self.steers else None,
      step=jnp.zeros((), jnp.int32),
    )

  def update(
    self,
    updates: PyTree,
    state: SelfTuningState,
    params: PyTree | None = None,
    *,
    value: jax.Array | None = None,
    **extra_args: Any,
  ) -> tuple[PyTree, SelfTuningState]:
    """From gradients to what is added to params, as optax wants it."""
    del extra_args
    if params is None:
      raise ValueError('self_tuning: update(grads, state, params) needs params')
    eta, meta_opt_state = self._move_eta(state, updates, params)
    gamma = (
      steering_lib.long_discount(state.step) if self.steers else self.discount
    )
    tangents = jax.tree.map(lambda z: gamma * z, state.tangents)
    new, opt_state, dots = self._push(state, eta, updates, params, tangents)
    after = state._replace(
      opt_state=opt_state,
      eta=eta,
      meta_opt_state=meta_opt_state,
      tangents=online.advance(tangents, dots, params),
      quick_tangents=online.advance(
        jax.tree.map(
          lambda z: steering_lib.QUICK_DISCOUNT * z, state.quick_tangents
        ),
        dots,
        params,
      ),
      step=optax.safe_increment(state.step),
    )
    if state.guard is None:
      return new, after
    return self._guarded(state, after, new, updates, params, value)

  def _labels(self, params: PyTree) -> PyTree | None:
    return self.labels(params) if callable(self.labels) else self.labels

  def _init_meta(self, eta: online.Eta) -> Any:
    if self.meta_tx is not None:
      return self.meta_tx.init(eta)
    return steering_lib.init(len(jax.tree.leaves(eta)))

  def _move_eta(
    self, state: SelfTuningState, grads: PyTree, params: PyTree
  ) -> tuple[online.Eta, Any]:
    """The new eta and what its mover remembers."""
    if not self.learned:
      return state.eta, state.meta_opt_state
    labels = self._labels(params)
    slopes = online.slopes(state.eta, grads, params, state.tangents, labels)
    if self.meta_tx is not None:
      moves, memory = self.meta_tx.update(
        slopes, state.meta_opt_state, state.eta
      )
      finite = jnp.all(jnp.isfinite(jnp.stack(jax.tree.leaves(slopes))))
      moves, memory = _where(
        finite,
        (moves, memory),
        (optax.tree.zeros_like(moves), state.meta_opt_state),
      )
    else:
      quick = online.slopes(
        state.eta, grads, params, state.quick_tangents, labels
      )
      leaves, treedef = jax.tree.flatten(slopes)
      rows, memory = steering_lib.steer(
        jnp.stack(leaves),
        jnp.stack(jax.tree.leaves(quick)),
        state.meta_opt_state,
        state.step,
      )
      moves = jax.tree.unflatten(treedef, list(rows))
    eta = jax.tree.map(
      lambda e, m: jnp.clip(e + m, -ETA_RANGE, ETA_RANGE), state.eta, moves
    )
    return eta, memory

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
        lambda rate: rate * scale, values['learning_rate']
      )
    return values

  def _guarded(
    self,
    before: SelfTuningState,
    after: SelfTuningState,
    updates: PyTree,
    grads: PyTree,
    params: PyTree,
    value: jax.Array | None,
  ) -> tuple[PyTree, SelfTuningState]:
    """The update, or the way back where the guard says so."""
    assert before.guard is not None
    alarm, guard = guard_lib.watch(
      before.guard, grads, params, before.step, value
    )
    eta = dict(before.eta)
    if 'learning_rate' in eta:
      eta['learning_rate'] = jax.tree.map(
        lambda e: jnp.maximum(e - guard_lib.BACK_OFF, -ETA_RANGE),
        eta['learning_rate'],
      )
    back = after._replace(
      opt_state=optimizers.with_hyperparams(
        optimizers.init_state(self.inner_tx, params),
        self._hyperparams(before.base, eta, before.step),
      ),
      eta=eta,
      meta_opt_state=optax.tree.zeros_like(after.meta_opt_state),
      tangents=optax.tree.zeros_like(after.tangents),
      quick_tangents=optax.tree.zeros_like(after.quick_tangents),
    )
    home = jax.tree.map(
      lambda good, now, u: (good - now).astype(u.dtype),
      before.guard.good,
      params,
      updates,
    )
    chosen, new = _where(alarm, (home, back), (updates, after))
    return chosen, new._replace(guard=guard)


def _where(condition: jax.Array, one: PyTree, other: PyTree) -> PyTree:
  return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, other)
