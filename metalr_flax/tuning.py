r"""The drop-in: an optax transformation that tunes itself while it trains.

Forward mode with K = 1, online, without the Hessian: at each update the
incoming gradient g meets the tangents of the parameters, and eta moves before
the inner optimizer does.

    dF/deta = g . Z,    eta <- eta - meta_tx(dF/deta),
    Z <- gamma Z + (d updates / d lambda) phi'(eta),    Z = dtheta/deta

eta is the logarithm of a factor on the hyperparameter that the user set, so at
eta = 0 the inner optimizer is itself, bit for bit.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metalr_flax import forward
from metalr_flax import inner as inner_lib
from metalr_flax import online
from metalr_flax import optimizers

PyTree = Any
KINDS = ('log', 'one_minus_log')


class SelfTuningState(NamedTuple):
  """A plain pytree of arrays: it checkpoints as any optimizer's state does.

  Attributes:
    opt_state: the inner optimizer's own; its `hyperparams` are the last used.
    base: each learned hyperparameter as the user set it.
    eta: logarithms of the factors on them, float32 scalars.
    meta_opt_state: state of `meta_tx` over eta.
    tangents: Z by the place of its leaf in (params, opt_state), [k, ...].
    step: updates done, int32 scalar.
  """

  opt_state: optax.OptState
  base: dict[str, jax.Array]
  eta: dict[str, jax.Array]
  meta_opt_state: optax.OptState
  tangents: forward.Tangents
  step: jax.Array


def self_tuning(
  inner_tx: optax.GradientTransformation,
  *,
  learned: Mapping[str, str] | None = None,
  meta_tx: optax.GradientTransformation | None = None,
  discount: float = 0.99,
  schedule: optax.Schedule | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Tunes an optimizer's hyperparameters while the user's own loop trains.

    tx = metalr_flax.self_tuning(
      optax.inject_hyperparams(optax.adamw)(learning_rate=1e-3)
    )
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    optimizer.update(model, grads)
    metalr_flax.hyperparams_of(optimizer.opt_state)

  Nothing but gradients and params is needed, each gradient of a fresh batch. It
  works in any loop that calls `tx.update(grads, state, params)`. The first
  update changes no hyperparameter: there is no tangent yet.

  This is the plain method (Franceschi et al. 2017,
  https://arxiv.org/abs/1703.01785; Sutton's IDBD of 1992). A start that is too
  high is not recovered from, and with small noisy batches a rate may drift.

  Args:
    inner_tx: made by `optax.inject_hyperparams`; also inside a chain or mask.
    learned: hyperparameters by name, each 'log' (positive; its logarithm is
      learned) or 'one_minus_log' (a decay rate: the logarithm of 1 minus it).
      Only the learning rate unless given; `{}` learns nothing.
    meta_tx: the outer optimizer over eta, `optax.adam(0.02, b2=0.95)` unless
      given.
    discount: gamma in [0, 1], how long an update's effect is remembered: about
      1 / (1 - gamma) updates.
    schedule: multiplies the learned learning rate, by the count of updates.

  Returns:
    An optax transformation; its `update` needs params.

  Raises:
    ValueError: for a name or kind that does not exist, a hyperparameter that is
      a schedule, or a discount out of range, when called or at `init`.
  """
  learned = {'learning_rate': 'log'} if learned is None else dict(learned)
  meta_tx = optax.adam(0.02, b2=0.95) if meta_tx is None else meta_tx
  _check(learned, discount)

  def init(params: PyTree) -> SelfTuningState:
    opt_state = optimizers.init_state(inner_tx, params)
    base = _find_base(opt_state, learned)
    eta = {name: jnp.zeros(()) for name in learned}
    return SelfTuningState(
      opt_state=opt_state,
      base=base,
      eta=eta,
      meta_opt_state=meta_tx.init(eta),
      tangents=online.init_tangents(params, opt_state, eta, inner_tx),
      step=jnp.zeros((), jnp.int32),
    )

  def update(
    updates: PyTree,
    state: SelfTuningState,
    params: PyTree | None = None,
    **extra_args: Any,
  ) -> tuple[PyTree, SelfTuningState]:
    del extra_args
    if params is None:
      raise ValueError('self_tuning: update(grads, state, params) needs params')
    eta, meta_opt_state = online.move_eta(
      state.eta,
      state.meta_opt_state,
      updates,
      params,
      state.tangents,
      meta_tx,
    )
    step = optax.safe_increment(state.step)
    scale = schedule(state.step) if schedule else None

    def propose(
      params: PyTree, opt_state: optax.OptState, eta: PyTree
    ) -> tuple[PyTree, optax.OptState]:
      hyperparams = _hyperparams(state.base, eta, learned, scale)
      return inner_lib.propose(
        params, opt_state, updates, hyperparams, tx=inner_tx
      )

    tangents = jax.tree.map(lambda z: discount * z, state.tangents)
    new, opt_state, tangents = online.push_update(
      propose, params, state.opt_state, eta, tangents
    )
    return new, SelfTuningState(
      opt_state, state.base, eta, meta_opt_state, tangents, step
    )

  return optax.GradientTransformationExtraArgs(init, update)


def hyperparams_of(opt_state: optax.OptState) -> dict[str, Any]:
  """The hyperparameters that a self-tuned optimizer used last.

  Args:
    opt_state: a state with one `SelfTuningState` anywhere in it.

  Returns:
    Values by name: floats, or arrays where the state is a batch of states.

  Raises:
    ValueError: where there is none, or more than one.
  """
  is_ours = lambda node: isinstance(node, SelfTuningState)
  nodes = jax.tree.leaves(opt_state, is_leaf=is_ours)
  found = [node for node in nodes if is_ours(node)]
  if len(found) != 1:
    raise ValueError(
      f'hyperparams_of: {len(found)} self-tuned optimizers in the state; pass '
      f'the state of one'
    )
  values = optimizers.find_hyperparams(found[0].opt_state)
  return {
    name: value if jnp.ndim(value) else float(value)
    for name, value in values.items()
  }


def _check(learned: Mapping[str, str], discount: float) -> None:
  for name, kind in learned.items():
    if kind not in KINDS:
      raise ValueError(
        f'self_tuning: learned[{name!r}]={kind!r}: must be one of {KINDS}'
      )
  if not 0 <= discount <= 1:
    raise ValueError(f'self_tuning: discount={discount}: must be in [0, 1]')


def _find_base(
  opt_state: optax.OptState, learned: Mapping[str, str]
) -> dict[str, jax.Array]:
  known = optimizers.find_hyperparams(opt_state)
  for name in learned:
    if name not in known:
      raise ValueError(
        f'self_tuning: {name!r} is not among the injected hyperparameters '
        f'({", ".join(sorted(known)) or "none"}) or is a schedule; wrap the '
        f'optimizer in optax.inject_hyperparams with numbers, and give a '
        f'schedule as self_tuning(schedule=)'
      )
    dtype = jnp.asarray(known[name]).dtype
    if jnp.finfo(dtype).bits < 32:
      raise ValueError(
        f'self_tuning: {name!r} is held in {dtype} as the parameters are, '
        f'where a decay rate of 0.999 is 1; give '
        f'optax.inject_hyperparams(..., hyperparam_dtype=jnp.float32)'
      )
  return {name: jnp.asarray(known[name]) for name in learned}


def _hyperparams(
  base: Mapping[str, jax.Array],
  eta: Mapping[str, jax.Array],
  learned: Mapping[str, str],
  scale: jax.Array | None,
) -> dict[str, jax.Array]:
  """The user's values, each with its factor exp(eta)."""
  values = {}
  for name, kind in learned.items():
    factor = jnp.exp(eta[name])
    if kind == 'log':
      values[name] = base[name] * factor
    else:
      # Never below 0: the factor of 1 - lambda is at most 1 / (1 - lambda_0).
      values[name] = jnp.maximum(1 - (1 - base[name]) * factor, 0)
  if scale is not None and 'learning_rate' in values:
    values['learning_rate'] *= scale
  return values
