"""The hyperparameters that a config gives to its task's loss."""

from collections.abc import Callable, Mapping
import functools
import inspect
from typing import Any

from metalr_flax import errors
from metalr_flax import tasks
from metalr_flax.trainer import lookup

# What the functions around a task's loss call their own arguments.
_TAKEN = {'params', 'model_state', 'batch'}


def divide(
  section: Mapping[str, Any], learned: Mapping[str, str], task: tasks.Task
) -> tuple[dict[str, Any], dict[str, Any]]:
  """The loss's arguments that stay as they are, and those that are learned.

  Args:
    section: the config's section `task`.
    learned: the bijection of each learned hyperparameter.
    task: whose loss gets them.

  Returns:
    The fixed ones, and the initial values of the learned ones: floats, or
    floats by name.

  Raises:
    ConfigError: for one that the loss does not have.
  """
  given = section['loss_kwargs']
  for name in sorted(_TAKEN & {*given}):
    raise errors.ConfigError(
      f'task.loss_kwargs.{name}: is taken; rename the argument of the loss'
    )
  if given:  # the model and the batch have places, whatever their names are
    loss: Callable = task.loss
    placed = functools.partial(loss, None, None)
    lookup.check_arguments('task.loss_kwargs', placed, given)
  fixed = {n: v for n, v in given.items() if n not in learned}
  initial = {n: _floats(v) for n, v in given.items() if n in learned}
  return lookup.as_tuples(fixed), initial


def check_names(of_loss: Mapping[str, Any], factory: Callable) -> None:
  """Refuses learned arguments of the loss that the optimizer has as well.

  Raises:
    ConfigError: naming the first.
  """
  both = sorted({*of_loss} & {*inspect.signature(factory).parameters})
  if both:
    raise errors.ConfigError(
      f'task.loss_kwargs.{both[0]}: is learned, and the optimizer has an '
      f"argument of that name; rename the loss's"
    )


def _floats(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {name: float(number) for name, number in value.items()}
  return float(value)
