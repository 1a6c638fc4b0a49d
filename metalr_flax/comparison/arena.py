"""Builds a problem of a comparison: what all its contestants have in common."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any

import flax.struct
import jax

from metalr_flax import errors
from metalr_flax import tasks
from metalr_flax.comparison import config as config_lib
from metalr_flax.comparison import unseen as unseen_lib
from metalr_flax.config import schema
from metalr_flax.engine import losses
from metalr_flax.engine import population
from metalr_flax.engine import records
from metalr_flax.models import functional
from metalr_flax.trainer import build_loss
from metalr_flax.trainer import build_named
from metalr_flax.trainer import build_optimizers
from metalr_flax.trainer import lookup
from metalr_flax.trainer import refusals

PyTree = Any
_RARELY = 8  # evaluations to each one of unseen data, where passes are dear


class Snapshot(flax.struct.PyTreeNode, kw_only=True):
  """A run without its optimizer, at its start or after some steps.

  Attributes:
    params: model weights theta, a plain nested dict of arrays.
    model_state: the model's other variables.
    data_state: the sampler's position.
  """

  params: PyTree
  model_state: PyTree
  data_state: PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arena:
  """A problem, with the initial models and data of its seeds.

  Attributes:
    loss_fn: the training loss, `(params, model_state, batch) -> (loss,
      (model_state, metrics))`.
    next_batch: `data_state -> (data_state, batch)`.
    objective: what is compared of a snapshot, the model in evaluation mode: its
      training objective, a scalar, or the held-out and the test loss, [2],
      where there is `unseen`; None where the batches' losses are reported
      instead.
    unseen: what the loss on unseen data needs; None where the training
      objective is compared.
    test_loss: of a snapshot the loss on unseen data, a scalar, where it stands
      beside the training objective; None where the task has no such data, or
      where it is the objective itself.
    test_points: updates done where that loss is taken, some of `points`.
    loss_label: what the loss measures and its unit.
    initial: each seed's first snapshot, stacked: arrays [S, ...].
    num_steps: inner updates of a run.
    points: updates done at each evaluation, ascending; the last is num_steps.
  """

  loss_fn: records.LossFn
  next_batch: records.NextBatch
  objective: Callable[[Snapshot], jax.Array] | None
  unseen: unseen_lib.Unseen | None
  test_loss: Callable[[Snapshot], jax.Array] | None
  test_points: tuple[int, ...]
  loss_label: str
  initial: Snapshot
  num_steps: int
  points: tuple[int, ...]


def build_arena(config: Mapping[str, Any], problem: str) -> Arena:
  """Builds a problem of a comparison.

  Args:
    config: the comparison's, resolved.
    problem: its name.

  Raises:
    ConfigError: for a class that cannot be imported, arguments that it or
      optax refuses, a task without the methods of `Task` or without the data
      that its objective needs, or a model that does not fit it.
  """
  try:
    arena = _build(config, problem)
  except errors.ConfigError as error:
    raise errors.ConfigError(f'problems.{problem}.{error}') from error
  params = population.pick(arena.initial.params, 0)
  for name, kwargs in config['optimizers'].items():
    field = f'optimizers.{name}'
    factory = lookup.find_factory(field, name)
    arguments = {**lookup.as_tuples(kwargs), 'learning_rate': 0.1}
    lookup.check_arguments(field, factory, arguments)
    build_optimizers.check_update(field, name, factory(**arguments), params)
  return arena


def _build(config: Mapping[str, Any], problem: str) -> Arena:
  section = config['problems'][problem]
  task = build_named.build_task(section['task'])
  if not isinstance(task, tasks.Task):
    raise errors.ConfigError(
      f'task.name={section["task"]["name"]}: is no Task; derive it from '
      f'metalr_flax.tasks.Task'
    )
  if isinstance(task, tasks.Stream):
    raise errors.ConfigError(
      f'task.name={section["task"]["name"]}: is a stream; a comparison trains '
      f'all its runs at once on data in memory, so give it a part of the data '
      f'as a task of your own'
    )
  seeds = [config['seed'] + s for s in range(section['num_seeds'])]
  splits = [
    functional.split(build_named.build_model(section['model'], seed))
    for seed in seeds
  ]
  snapshots = [
    _begin(task, split, seed) for split, seed in zip(splits, seeds, strict=True)
  ]
  given = schema.completed('task', section['task'])
  fixed, _ = build_loss.divide(given, {}, task)
  loss_fn = losses.checked(
    'loss_fn',
    functional.make_loss_fn(
      splits[0].train, functools.partial(task.loss, **fixed)
    ),
  )
  _check_fit(section, task, loss_fn, snapshots[0])
  unseen = _build_unseen(config, section, task, splits[0])
  points = _spread(section['num_steps'], section['num_evaluations'])
  # Where a pass over data is too dear to be the objective there are fewer.
  every = _RARELY if section['objective'] == 'batches' else 1
  return Arena(
    loss_fn=loss_fn,
    next_batch=task.next,
    objective=_make_objective(section, task, splits[0], snapshots[0], unseen),
    unseen=unseen,
    test_loss=_make_test_loss(section, task, splits[0]),
    test_points=points[::-1][::every][::-1],
    loss_label=task.loss_label,
    initial=population.stack(snapshots),
    num_steps=section['num_steps'],
    points=points,
  )


def _begin(task: tasks.Task, split: functional.Split, seed: int) -> Snapshot:
  return Snapshot(
    params=split.params,
    model_state=split.model_state,
    data_state=task.init(jax.random.key(seed)),
  )


def _spread(num_steps: int, count: int) -> tuple[int, ...]:
  """Evenly spaced numbers of updates; the last is `num_steps`."""
  return tuple(round(num_steps * (i + 1) / count) for i in range(count))


def _build_unseen(
  config: Mapping[str, Any],
  section: Mapping[str, Any],
  task: tasks.Task,
  split: functional.Split,
) -> unseen_lib.Unseen | None:
  """What the loss on unseen data needs, where that is the objective."""
  if section['objective'] != config_lib.UNSEEN:
    return None
  unseen = unseen_lib.build_unseen(section, task, split, config['seed'])
  with refusals.fitting(section['model']['name'], section['task']['name']):
    jax.eval_shape(unseen.measure, split.params, split.model_state)
  return unseen


def _make_test_loss(
  section: Mapping[str, Any], task: tasks.Task, split: functional.Split
) -> Callable[[Snapshot], jax.Array] | None:
  """The loss on unseen data, where the objective is another and there are."""
  if section['objective'] == config_lib.UNSEEN:
    return None
  batches = list(task.eval_batches())
  if not batches:
    return None
  measure = unseen_lib.make_mean_loss(task, split, batches)
  with refusals.fitting(section['model']['name'], section['task']['name']):
    jax.eval_shape(measure, split.params, split.model_state)
  return lambda snapshot: measure(snapshot.params, snapshot.model_state)


def _make_objective(
  section: Mapping[str, Any],
  task: tasks.Task,
  split: functional.Split,
  snapshot: Snapshot,
  unseen: unseen_lib.Unseen | None,
) -> Callable[[Snapshot], jax.Array] | None:
  """What is compared of a snapshot, None where that is the batches' losses."""
  if unseen is not None:
    measure = unseen.measure
    return lambda snapshot: measure(snapshot.params, snapshot.model_state)
  objective = functools.partial(_objective, task, split.eval)
  # A task without an objective answers None.
  measured = section['objective'] == 'task' and (
    jax.eval_shape(objective, snapshot) is not None
  )
  return objective if measured else None


def _objective(
  task: tasks.Task, definition: functional.Definition, snapshot: Snapshot
) -> Any:
  model = definition.merge(snapshot.params, snapshot.model_state)
  return task.objective(model, snapshot.data_state)


def _check_fit(
  section: Mapping[str, Any],
  task: tasks.Task,
  loss_fn: records.LossFn,
  snapshot: Snapshot,
) -> None:
  """Traces one loss: refuses a model that the task's batches do not fit."""

  def loss(snapshot: Snapshot) -> Any:
    _, batch = task.next(snapshot.data_state)
    return loss_fn(snapshot.params, snapshot.model_state, batch)

  with refusals.fitting(section['model']['name'], section['task']['name']):
    jax.eval_shape(loss, snapshot)
