"""Makes the task and the model that a config names."""

from collections.abc import Mapping
from typing import Any

from flax import nnx
import jax

from metalr_flax import errors
from metalr_flax import models
from metalr_flax import tasks
from metalr_flax.config import schema
from metalr_flax.trainer import lookup

Config = Mapping[str, Any]


def build_task(section: Config) -> tasks.Task:
  """Makes the task that a config's section `task` names.

  Args:
    section: the section; what has a default may be left out.

  Raises:
    ConfigError: naming the field, `task.name` or `task.kwargs`.
  """
  section = schema.completed('task', section)
  cls = lookup.find_class('task.name', section['name'], tasks.TASKS)
  accepted = lookup.signature_of(cls).parameters
  open_ended = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
  arguments = lookup.as_tuples(section['kwargs'])
  if 'batch_size' in accepted or open_ended:
    arguments['batch_size'] = _batch_size(cls, section['batch_size'])
  if section['path']:
    arguments['path'] = section['path']
  task = lookup.construct('task.kwargs', cls, arguments)
  missing = [m for m in ('init', 'next', 'loss') if not hasattr(task, m)]
  if missing:
    raise errors.ConfigError(
      f'task.name={section["name"]}: has no method {missing[0]}; derive it '
      f'from metalr_flax.tasks.Task'
    )
  return task


def _batch_size(cls: type, batch_size: int) -> int:
  """What a task is to make batches of: of a stream, this process's share."""
  if not issubclass(cls, tasks.Stream):
    return batch_size
  count = jax.process_count()
  if batch_size % count:
    raise errors.ConfigError.of(
      'task.batch_size',
      batch_size,
      f'must be a multiple of the number of processes, {count}',
      'each reads an equal share of the batch',
    )
  return batch_size // count


def build_model(section: Config, seed: int) -> nnx.Module:
  """Makes the model that a config's section `model` names.

  Args:
    section: the section; what has a default may be left out.
    seed: of its initial weights.

  Raises:
    ConfigError: naming the field, `model.name` or `model.kwargs`.
  """
  section = schema.completed('model', section)
  cls = lookup.find_class('model.name', section['name'], models.MODELS)
  arguments = {
    **lookup.as_tuples(section['kwargs']),
    'rngs': nnx.Rngs(seed),
  }
  # Annotations are for the mesh of a run, which is not there yet.
  with nnx.use_eager_sharding(False):
    model = lookup.construct('model.kwargs', cls, arguments)
  if not isinstance(model, nnx.Module):
    raise errors.ConfigError(
      f'model.name={section["name"]}: is not a flax.nnx.Module; derive it from '
      f'nnx.Module'
    )
  return model


def has_next_meta(task: tasks.Task) -> bool:
  """Whether a task, which may be no `Task`, draws outer batches of its own."""
  method = getattr(type(task), 'next_meta', None)
  return hasattr(task, 'next_meta') and method is not tasks.Task.next_meta
