"""The drop-in: an optax transformation that tunes itself while it trains."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metalr_flax.tuning import factors
from metalr_flax.tuning import neighbours
from metalr_flax.tuning import tuner as tuner_lib
from metalr_flax.tuning.state import SelfTuningState

PyTree = Any
PLAIN_DISCOUNT = 0.99


def self_tuning(
  inner_tx: optax.GradientTransformation,
  *,
  learned: Mapping[str, str] | Iterable[str] | None = None,
  labels: PyTree | Callable[[PyTree], PyTree] | None = None,
  meta_tx: optax.GradientTransformation | None = None,
  discount: float | None = None,
  schedule: optax.Schedule | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Tunes an optimizer's hyperparameters while the user's own loop trains.

  ```python
  tx = metalr_flax.self_tuning(
    optax.inject_hyperparams(optax.adamw)(learning_rate=1e-3)
  )
  optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
  optimizer.update(model, grads)
  metalr_flax.hyperparams_of(optimizer.opt_state)
  ```

  Nothing but gradients and params is needed, each gradient of a fresh batch. It
  works in any loop that calls `tx.update(grads, state, params)`. The learning
  rate starts at 1e-5, or at the user's where that is lower, and grows from
  there: at once to where updates have a thousandth of the parameters' norm, and
  then by up to a factor of e in ten updates. A batch whose gradient is not
  finite is skipped. When training explodes the last one to three updates are
  undone, the inner optimizer starts anew and the learning rate, if learned, is
  lowered and stays below what exploded. optax's extra argument `value=`, the
  loss, is watched as well where it is given. The inner optimizer sees no extra
  arguments.

  Give `meta_grads=`, the gradient of a batch of held-out data at the same
  params, and the hyperparameters follow that instead of the training gradient:
  so a weight decay can be learned,

  ```python
  optimizer.update(model, grads, meta_grads=held_out_grads)
  ```

  At every m-th update is enough; in between they rest. It has the structure,
  shapes and dtypes of the gradients. One that is not finite counts as none
  given: under `jit` give NaN where there is none, see docs/self_tuning.md.

  Gradients of complex parameters are given as optax wants them, the conjugate
  of what `jax.grad` returns.

  The method is a forward-mode meta-gradient (Franceschi et al. 2017,
  https://arxiv.org/abs/1703.01785; Sutton's IDBD of 1992); the rule that moves
  eta is our own, see `steering.py`.

  Args:
    inner_tx: made by `optax.inject_hyperparams`; also inside a chain or mask.
      `self_tuning` must be the last in a chain of its own, and
      `optax.MultiSteps` around it.
    learned: hyperparameters by name, each 'log' (positive; its logarithm is
      learned) or 'one_minus_log' (a decay rate: the logarithm of 1 minus it).
      A list of names will do: those that optax gives to decay rates (b1, b2,
      decay, momentum, ...) are 'one_minus_log', all others 'log'. Only the
      learning rate unless given; `{}` learns nothing.
    labels: where each group of parameters has hyperparameters of its own: the
      group's name of each parameter, a tree of params' structure, a prefix of
      it, or a function from params to one. `inner_tx` is then made by
      `metalr_flax.make_grouped` (from a tree) or `optax.partition` with the
      same labels; a group without injected hyperparameters is left alone.
    meta_tx: an outer optimizer over eta instead of our rule. The learning rate
      then starts at the user's, and nothing is guarded.
    discount: gamma in [0, 1] of `meta_tx`'s slope: an update's effect is
      remembered for about 1 / (1 - gamma) updates. 0.99 unless given.
    schedule: multiplies the learned learning rate, by the count of updates.

  Returns:
    An optax transformation; its `update` needs params, and takes `value=` and
    `meta_grads=`.

  Raises:
    ValueError: for a name or kind that does not exist; a hyperparameter that is
      a schedule, cannot be learned, moves nothing, or is injected at several
      places of one group; labels of another structure, or of other groups than
      `inner_tx` has; `optax.MultiSteps` in `inner_tx`; a discount out of range
      or without `meta_tx`; when called or at `init`. By `update` for
      `meta_grads` of other shapes.
  """
  kinds = factors.with_kinds(learned)
  _check(inner_tx, kinds, meta_tx, discount, schedule)
  tuner = tuner_lib.Tuner(
    inner_tx=inner_tx,
    learned=kinds,
    labels=labels,
    meta_tx=meta_tx,
    discount=PLAIN_DISCOUNT if discount is None else discount,
    schedule=schedule,
  )
  return optax.GradientTransformationExtraArgs(tuner.init, tuner.update)


def hyperparams_of(opt_state: optax.OptState) -> dict[str, Any]:
  """The hyperparameters that a self-tuned optimizer used last.

  Args:
    opt_state: a state with one `SelfTuningState` anywhere in it.

  Returns:
    Values by name, by `<name>/<label>` with groups. They are floats, or arrays
    where the state is a batch of states or inside of jit. Before the first
    update, what it will start from.

  Raises:
    ValueError: where there is none, or more than one.

  Warns:
    UserWarning: where `self_tuning` is not the last in a chain, or comes after
      a transformation with a memory of its own, such as a momentum.
  """
  state = _find(opt_state, 'hyperparams_of')
  values = factors.named(state.opt_state, state.base)
  return {name: _as_number(float, value) for name, value in values.items()}


def counts_of(opt_state: optax.OptState) -> dict[str, Any]:
  """Counts the updates that a self-tuned optimizer skipped and undid.

  Args:
    opt_state: as for `hyperparams_of`.

  Returns:
    `skipped`, the updates not made because gradient or loss were not finite or
    far too large, and `undone`, those that were made and taken back when
    training exploded: ints, or arrays as for `hyperparams_of`. Both are 0 with
    `meta_tx`, where nothing is guarded.

  Raises:
    ValueError: where there is no self-tuned optimizer, or more than one.
  """
  state = _find(opt_state, 'counts_of')
  if state.guard is None:
    return {'skipped': 0, 'undone': 0}
  return {
    'skipped': _as_number(int, state.guard.skipped),
    'undone': _as_number(int, state.guard.undone),
  }


def _find(opt_state: optax.OptState, caller: str) -> SelfTuningState:
  is_ours = lambda node: isinstance(node, SelfTuningState)
  nodes = jax.tree.leaves(opt_state, is_leaf=is_ours)
  found = [node for node in nodes if is_ours(node)]
  if len(found) != 1:
    raise ValueError(
      f'{caller}: {len(found)} self-tuned optimizers in the state; pass the '
      f'state of one'
    )
  neighbours.warn(opt_state, stacklevel=3)
  return found[0]


def _as_number(kind: type, value: jax.Array) -> Any:
  known = not jnp.ndim(value) and not isinstance(value, jax.core.Tracer)
  return kind(value) if known else value


def _check(
  inner_tx: optax.GradientTransformation,
  learned: Mapping[str, str],
  meta_tx: optax.GradientTransformation | None,
  discount: float | None,
  schedule: optax.Schedule | None,
) -> None:
  if not hasattr(inner_tx, 'init'):
    raise ValueError(
      f'self_tuning: inner_tx={inner_tx!r}: must be an optax transformation, '
      f'e.g. optax.inject_hyperparams(optax.adam)(1e-3)'
    )
  if schedule is not None and factors.RATE not in learned:
    raise ValueError(
      'self_tuning: schedule: multiplies the learned learning rate; add '
      "'learning_rate' to learned"
    )
  if discount is None:
    return
  if not 0 <= discount <= 1:
    raise ValueError(f'self_tuning: discount={discount}: must be in [0, 1]')
  if meta_tx is None:
    raise ValueError(
      f"self_tuning: discount={discount}: is meta_tx's; give meta_tx= too"
    )
