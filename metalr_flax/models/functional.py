"""Turns NNX modules into pure functions over plain dicts.

The algorithm differentiates, scans and donates; NNX modules are mutable
objects. So a module is split once into a static definition and plain nested
dicts, and put together again inside the loss alone, always as a copy: a merge
without `copy=True` would share its variables with the caller's dicts and change
them from inside a trace.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

from flax import nnx
import jax

PyTree = Any
ModelLoss = Callable[..., tuple[jax.Array, dict]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Definition:
  """A module without its arrays.

  Attributes:
    graphdef: the module's structure in one mode.
    params: `nnx.Param` variables, abstract: shapes and dtypes.
    rest: all its other variables, abstract.
  """

  graphdef: nnx.GraphDef
  params: nnx.State
  rest: nnx.State

  def merge(self, params: PyTree, model_state: PyTree) -> nnx.Module:
    """The module with these arrays, sharing nothing with them."""
    return nnx.merge(
      self.graphdef,
      _filled(self.params, params),
      _filled(self.rest, model_state),
      copy=True,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
  """A module's definition in three modes, and its arrays.

  Attributes:
    train: definition in training mode (dropout on, batch statistics).
    meta: definition for the outer loss: dropout off, but *batch* statistics.
      BatchNorm's running averages do not carry a gradient, so an outer loss
      that used them would miss part of dF/deta.
    eval: definition in evaluation mode (dropout off, running averages).
    params: plain nested dict of `nnx.Param` arrays, theta.
    model_state: plain nested dict of all other arrays.
  """

  train: Definition
  meta: Definition
  eval: Definition
  params: PyTree
  model_state: PyTree


def split(module: nnx.Module) -> Split:
  """Takes a module apart into definitions and plain dicts of arrays.

  Args:
    module: any NNX module; it is left as it was.

  Returns:
    Its structure in each mode, its parameters and its other variables.
  """
  train = _view(module, deterministic=False, use_running_average=False)
  _, params, rest = _split(train)
  return Split(
    train=_define(train),
    meta=_define(_view(train, deterministic=True)),
    eval=_define(_view(train, deterministic=True, use_running_average=True)),
    params=nnx.to_pure_dict(params),
    model_state=nnx.to_pure_dict(rest),
  )


def make_loss_fn(definition: Definition, loss: ModelLoss) -> Callable:
  """The pure form of a task's loss.

  Args:
    definition: the module in the wanted mode.
    loss: `(model, batch, **hyperparams) -> (loss, metrics)`, as `Task.loss`.

  Returns:
    `(params, model_state, batch, **hyperparams) -> (loss, (model_state,
    metrics))`. What the loss returns is passed on as it is; the engine refuses
    what it cannot use.
  """

  def loss_fn(
    params: PyTree, model_state: PyTree, batch: PyTree, **given: Any
  ) -> tuple[jax.Array, Any]:
    model = definition.merge(params, model_state)
    result: Any = loss(model, batch, **given)
    value, *metrics = result if isinstance(result, (tuple, list)) else (result,)
    nnx.pop(model, nnx.Intermediate)
    _, _, rest = _split(model)
    return value, (nnx.to_pure_dict(rest), *metrics)

  return loss_fn


def _view(module: nnx.Module, **modes: bool) -> nnx.Module:
  """The module in another mode; modes that it does not have are left out."""
  for name, value in modes.items():
    try:
      module = nnx.view(module, **{name: value})
    except ValueError:  # no submodule knows this mode
      continue
  return module


def _define(module: nnx.Module) -> Definition:
  graphdef, params, rest = _split(module)
  abstract = jax.tree.map(jax.typeof, (params, rest))
  return Definition(graphdef=graphdef, params=abstract[0], rest=abstract[1])


def _filled(template: nnx.State, arrays: PyTree) -> nnx.State:
  state = jax.tree.map(lambda leaf: leaf, template)
  nnx.replace_by_pure_dict(state, arrays)
  return state


def _split(module: nnx.Module) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
  graphdef, params, rest = nnx.split(module, nnx.Param, ...)  # type: ignore[misc]
  return graphdef, params, rest
