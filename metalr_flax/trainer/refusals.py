"""What tracing a run raises, as an error line with the field to blame."""

from collections.abc import Iterator, Mapping
import contextlib
from typing import Any

from metalr_flax import errors
from metalr_flax.engine import agreement
from metalr_flax.engine import forward_gradient
from metalr_flax.engine import losses


@contextlib.contextmanager
def tracing(config: Mapping[str, Any]) -> Iterator[None]:
  """Answers what tracing an outer step raises with the field to blame.

  Args:
    config: the run's.

  Raises:
    ConfigError: where it is not a bug.
  """
  names = config['model']['name'], config['task']['name']
  with fitting(*names), _learnable():
    yield


@contextlib.contextmanager
def _learnable() -> Iterator[None]:
  """Answers a meta-gradient that there is not, or that is 0."""
  try:
    yield
  except forward_gradient.NoForwardRuleError as error:
    raise errors.ConfigError(
      f'meta.estimator=forward: {str(error).partition(":")[0]}; set '
      f'--config.meta.estimator=reverse'
    ) from error
  except agreement.InertError as error:
    raise errors.ConfigError(
      f'meta.learned.{error.name}: its meta-gradient is identically zero with '
      f'this optimizer, so it cannot be learned; leave it out'
    ) from error


@contextlib.contextmanager
def fitting(model: str, task: str) -> Iterator[None]:
  """Answers a model and a task that do not fit each other with an error line.

  With a class of the user's own it may as well be a bug of theirs, which needs
  its traceback; not so what the engine says of a loss.

  Args:
    model: the model's name in the config.
    task: the task's.

  Raises:
    ConfigError: for what tracing a loss raises where both are this package's.
  """
  try:
    yield
  except losses.LossError as error:
    raise errors.ConfigError(
      f'task.name={task}: {str(error).partition(": ")[2]}'
    ) from error
  except (TypeError, ValueError, AssertionError, IndexError) as error:
    if ':' in model or ':' in task:
      raise
    reason = errors.text_of(error).partition('\n')[0][:200]
    raise errors.ConfigError(
      f'model.name={model}: does not fit task.name={task} ({reason}); change '
      f'model.kwargs or task.kwargs'
    ) from error
