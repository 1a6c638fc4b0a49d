"""The hyperparameters that a config gives to its task's loss."""

from collections.abc import Mapping
from typing import Any

from metalr_flax import tasks
from metalr_flax.trainer import lookup


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
  if given:
    lookup.check_arguments(
      'task.loss_kwargs', task.loss, {'model': None, 'batch': None, **given}
    )
  fixed = {n: v for n, v in given.items() if n not in learned}
  initial = {n: _floats(v) for n, v in given.items() if n in learned}
  return lookup.as_tuples(fixed), initial


def _floats(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {name: float(number) for name, number in value.items()}
  return float(value)
