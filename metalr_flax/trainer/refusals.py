"""Turns what tracing a run raises into an error line that names a field."""

from collections.abc import Collection, Iterator, Mapping
import contextlib
from typing import Any

from metalr_flax import errors
from metalr_flax import tasks
from metalr_flax.engine import agreement
from metalr_flax.engine import forward
from metalr_flax.engine import losses
from metalr_flax.engine import microbatches


@contextlib.contextmanager
def tracing(config: Mapping[str, Any]) -> Iterator[None]:
  """Turns what tracing an outer step raises into a ConfigError.

  Args:
    config: the run's.

  Raises:
    ConfigError: where it is not a bug.
  """
  names = config['model']['name'], config['task']['name']
  of_loss = config['task']['loss_kwargs']
  with fitting(*names, of_loss), _learnable(of_loss):
    yield


@contextlib.contextmanager
def _learnable(of_loss: Collection[str]) -> Iterator[None]:
  """Refuses a meta-gradient that cannot be computed, or that is always 0."""
  try:
    yield
  except forward.NoForwardRuleError as error:
    raise errors.ConfigError(
      f'meta.estimator=forward: {str(error).partition(":")[0]}; set '
      f'--config.meta.estimator=reverse'
    ) from error
  except microbatches.UnevenError as error:
    raise errors.ConfigError(f'inner.{error}') from error
  except agreement.InertError as error:
    what = 'loss' if error.name in of_loss else 'optimizer'
    raise errors.ConfigError(
      f'meta.learned.{error.name}: its meta-gradient is identically zero with '
      f'this {what}, so it cannot be learned; leave it out'
    ) from error


@contextlib.contextmanager
def fitting(
  model: str, task: str, of_loss: Collection[str] = ()
) -> Iterator[None]:
  """Refuses a model and a task that do not fit each other.

  Where a class is the user's own, an exception may be a bug of theirs and keeps
  its traceback, apart from what the engine says of a loss.

  Args:
    model: the model's name in the config.
    task: the task's.
    of_loss: names of the loss's arguments in the config.

  Raises:
    ConfigError: for what tracing a loss raises where both are this package's.
  """
  try:
    yield
  except losses.LossError as error:
    raise errors.ConfigError(
      f'task.name={task}: {str(error).partition(": ")[2]}'
    ) from error
  except tasks.RefusedError as error:  # says itself which field
    raise errors.ConfigError(str(error)) from error
  except (TypeError, ValueError, AssertionError, IndexError) as error:
    if ':' in model or ':' in task:
      raise
    reason = errors.text_of(error).partition('\n')[0][:200]
    # What `tasks` says of the inputs that a model was given.
    notes = [n for n in getattr(error, '__notes__', []) if '\n' not in n]
    reason = '; '.join([reason, *notes[:1]])
    if reason.partition(':')[0] in of_loss:
      raise errors.ConfigError(
        f'task.loss_kwargs.{reason}; change it'
      ) from error
    raise errors.ConfigError(
      f'model.name={model}: does not fit task.name={task} ({reason}); change '
      f'model.kwargs or task.kwargs'
    ) from error
