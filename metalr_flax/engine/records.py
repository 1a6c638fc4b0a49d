"""The engine's records and type aliases: what a problem is, what is carried.

Randomness has no field of its own: the sampler's keys live in `data_state`, the
model's (Dropout) in `model_state`, so that everything random moves on exactly
when it is used and a resumed run draws what an uninterrupted one draws.
"""

from collections.abc import Callable, Collection, Mapping
import dataclasses
from typing import Any

import flax.struct
import jax
import numpy as np
import optax

from metalr_flax.engine import options
from metalr_flax.engine import ranges

PyTree = Any
# By hyperparameter name, and by group label where there are groups: scalars.
Eta = dict[str, Any]
# Scalars by name; by public metric key (`train/loss`, ...) after a window.
Metrics = dict[str, jax.Array]
# (params, model_state, batch, **hyperparams) -> (loss, (model_state, metrics))
LossFn = Callable[..., tuple[jax.Array, Any]]
# The same arguments -> ((loss, (model_state, metrics)), grads)
GradFn = Callable[..., tuple[tuple[jax.Array, Any], PyTree]]
# data_state -> (data_state, batch); pure.
NextBatch = Callable[[PyTree], tuple[PyTree, PyTree]]


class InnerState(flax.struct.PyTreeNode, kw_only=True):
  """What one inner update changes: z = (theta, the optimizer's own state).

  Attributes:
    params: model weights theta, a plain nested dict of arrays.
    model_state: the model's other variables (BatchNorm averages, RNG counts).
    opt_state: state of the injected inner optimizer `tx`.
  """

  params: PyTree
  model_state: PyTree
  opt_state: optax.OptState


class Carry(flax.struct.PyTreeNode, kw_only=True):
  """What travels through a window, and from one window to the next.

  Attributes:
    inner: params, model_state and opt_state.
    data_state: the sampler's position.
    tangents: forward mode's Z where it outlives its window, see
      `MetaTrainState`; otherwise `{}`.
  """

  inner: InnerState
  data_state: PyTree
  tangents: dict[str, jax.Array]


class MetaTrainState(flax.struct.PyTreeNode, kw_only=True):
  """The state of a run: all that is needed to resume it bit for bit.

  The fields are the checkpoint's format. In the state of a population each
  array has its members as one axis more in front, see `population`.

  Attributes:
    step: outer steps done, int32 scalar.
    params: model weights theta, a plain nested dict of arrays.
    model_state: the model's other variables (BatchNorm averages, RNG counts).
    opt_state: state of the injected inner optimizer; its `hyperparams` are
      those of the last window.
    eta: unconstrained meta-parameters by hyperparameter name, and by group
      label where there are groups; float32 scalars (float64 under x64).
    meta_opt_state: state of the outer optimizer `meta_tx` over eta.
    tangents: forward mode's Z where it outlives its window: by leaf path,
      arrays [k, ...]; otherwise `{}`.
    data_state: the sampler's position, whatever `Task.init` returned.
    average: running averages of `params` and `model_state` by these names, see
      `averaging`; `{}` where none is kept.
  """

  step: jax.Array
  params: PyTree
  model_state: PyTree
  opt_state: optax.OptState
  eta: Eta
  meta_opt_state: optax.OptState
  tangents: dict[str, jax.Array]
  data_state: PyTree
  average: PyTree = flax.struct.field(default_factory=dict)

  @property
  def steps_done(self) -> int:
    """Outer steps done, of a population those of its furthest member.

    It waits for the device.
    """
    return int(np.asarray(self.step).max())

  @property
  def inner(self) -> InnerState:
    """The part that an inner update changes."""
    return InnerState(
      params=self.params,
      model_state=self.model_state,
      opt_state=self.opt_state,
    )

  @property
  def carry(self) -> Carry:
    """The part that travels through a window."""
    return Carry(
      inner=self.inner, data_state=self.data_state, tangents=self.tangents
    )

  def with_carry(self, carry: Carry) -> 'MetaTrainState':
    """The state with what a window left behind."""
    return self.replace(
      params=carry.inner.params,
      model_state=carry.inner.model_state,
      opt_state=carry.inner.opt_state,
      data_state=carry.data_state,
      tangents=carry.tangents,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
  """A bilevel problem: an inner loop, and the outer loss of its result.

  Attributes:
    loss_fn: inner loss, `(params, model_state, batch) -> (loss, (model_state,
      metrics))`; metrics are scalars by name. Its own hyperparameters, where
      any are learned, are keyword arguments.
    meta_loss_fn: outer loss F of a window's last batch, of the same first three
      arguments alone; the model_state that it returns is dropped.
    next_batch: `data_state -> (data_state, batch)`, draws an inner batch.
    next_meta_batch: the same for the outer loss's batch.
    tx: inner optimizer made by `optax.inject_hyperparams`, or by
      `optimizers.make_grouped` where there are groups.
    bijections: the learned hyperparameters, each with its bijection's spec,
      e.g. `{'learning_rate': 'sigmoid'}`.
    unroll_length: K >= 1, inner updates in a window.
    labels: the group's name of each parameter, a tree of params' structure;
      None where all share one set of hyperparameters.
    loss_hyperparams: those of the learned names that `loss_fn` takes, e.g.
      `('label_smoothing',)`; all others are those of `tx`. A value is a scalar,
      or scalars by name (a weight for each class).
    first_loss: whether a window's metrics have the loss of its first batch,
      before any of its updates, by `window.FIRST_LOSS`.

  Raises:
    ValueError: for an unknown bijection, a loss hyperparameter without one, or
      an unroll_length that is no integer of 1 or more.
  """

  loss_fn: LossFn
  meta_loss_fn: LossFn
  next_batch: NextBatch
  next_meta_batch: NextBatch
  tx: optax.GradientTransformation
  bijections: Mapping[str, str]
  unroll_length: int
  labels: Any = None
  loss_hyperparams: Collection[str] = ()
  first_loss: bool = False

  def __post_init__(self) -> None:
    """Refuses values that no window can use."""
    options.check_unroll_length(self.unroll_length)
    if not isinstance(self.bijections, Mapping):
      raise ValueError(
        f'bijections: must be specs by name, not '
        f"{type(self.bijections).__name__}; e.g. {{'learning_rate': 'log'}}"
      )
    for name, spec in self.bijections.items():
      ranges.check(name, spec)
    check_loss_hyperparams(self.loss_hyperparams, self.bijections)


def check_loss_hyperparams(
  names: Collection[str], bijections: Mapping[str, str]
) -> None:
  """Refuses names of loss hyperparameters that are not learned.

  Raises:
    ValueError: naming the first.
  """
  if isinstance(names, str):
    raise ValueError(
      f'loss_hyperparams={names!r}: must be several names; write them as a list'
    )
  for name in names:
    if name not in bijections:
      raise ValueError(
        f'loss_hyperparams: {name!r} has no bijection; add it to bijections, '
        f'or give loss_fn its value'
      )
