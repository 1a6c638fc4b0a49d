"""Loads a run from its workdir: model, config and schedule, or its task."""

import dataclasses
import pathlib
from typing import Any

from flax import nnx
import jax
from ml_collections import config_dict
import optax

from metalr_flax import errors
from metalr_flax import tasks
from metalr_flax.config import check
from metalr_flax.config import population as members_lib
from metalr_flax.engine import averaging
from metalr_flax.engine import bijections
from metalr_flax.engine import population
from metalr_flax.engine import records
from metalr_flax.trainer import build
from metalr_flax.trainer import build_named
from metalr_flax.trainer import build_schedule
from metalr_flax.trainer import same_data
from metalr_flax.workdir import checkpoint
from metalr_flax.workdir import folder
from metalr_flax.workdir import metrics_csv
from metalr_flax.workdir import schedule


def load(
  workdir: str | pathlib.Path,
  *,
  best: bool = False,
  average: bool = False,
  member: int | None = None,
) -> tuple[nnx.Module, config_dict.ConfigDict, Any]:
  """Loads a trained model, its config and its schedule from a workdir.

  ```python
  model, config, schedule = metalr_flax.load('checkpoints/digits_mlp')
  logits = model(images)
  tx = optax.rmsprop(schedule)
  ```

  A config may name the user's own classes; they are imported.

  Args:
    workdir: the folder of a run that has a checkpoint.
    best: whether to load the checkpoint of the best evaluation, which a run
      with a `best_metric` keeps, instead of the newest one.
    average: whether to load the average of the model that the run kept (config
      `average`).
    member: of a population, which member's, 0 for the first; its config is that
      of a run of its own.

  Returns:
    The trained NNX module of the newest intact checkpoint, or of the best one,
    in evaluation mode, the run's config, and the learning rate's schedule by
    inner step: the learned one, or the constant that the run had, times the
    run's multiplier (`inner.schedule`) where it has one. Where each group
    learned its own, a dict of schedules by group label.

  Raises:
    WorkdirError: where the folder is no workdir or has no checkpoint yet, or
      its `metrics.csv` is not as the checkpoint recorded; for an average that
      its run did not keep; for a member that it does not have, or none of a
      population.
    NoCheckpointError: where no checkpoint is intact.
    ConfigError: where a class that its config names no longer exists.
    StorageError: where the storage cannot be read.
  """
  path = pathlib.Path(workdir)
  config = _config(path)
  _check_member(path, config, member)
  with build.randomness(config):
    experiment = build.build(config)
    found = _find(path / (folder.BEST if best else folder.STATE), experiment)
    if member is not None:
      config = members_lib.members_of(config)[member]
      experiment, found = _pick(experiment, found, member)
    state = _averaged(path, found.state) if average else found.state
    model = experiment.make_model(state.params, state.model_state)
  rate = _learning_rate(
    path, config, experiment, found, best=best, member=member
  )
  return model, config_dict.ConfigDict(config), rate


def _check_member(
  path: pathlib.Path, config: dict[str, Any], member: int | None
) -> None:
  """Refuses a member that a workdir does not have, and none of a population."""
  count = members_lib.count(config)
  if not count and member is not None:
    raise errors.WorkdirError(
      f'{path}: is of one run, not of a population; leave member={member} out'
    )
  if count and (member is None or not 0 <= member < count):
    raise errors.WorkdirError(
      f'{path}: is of a population; say which member, member=0 to '
      f'member={count - 1}'
    )


def _pick(
  experiment: build.Experiment, found: checkpoint.Found, member: int
) -> tuple[build.Experiment, checkpoint.Found]:
  """A member's own part of a population's objects and checkpoint."""
  initial = population.pick(experiment.initial, member)
  state = population.pick(found.state, member)
  return (
    dataclasses.replace(experiment, initial=initial),
    found._replace(state=state),
  )


def load_task(workdir: str | pathlib.Path) -> tasks.Task:
  """Loads the task that a workdir's run was trained on.

  ```python
  task = metalr_flax.load_task('checkpoints/table')
  predictions = task.decode(model(task.encode(new_rows)))
  ```

  The task reads its data again, so these must be where the run had them, and
  as they were: medians, means and classes are those of the train part.

  Args:
    workdir: the folder of a run.

  Returns:
    The task that the run's config names. `table`, `images` and `text` have
    `encode`, from new data to a model's inputs, and `decode`, from its outputs
    to classes, numbers or text.

  Raises:
    WorkdirError: where the folder is no workdir, or a file of the user's is no
      longer as it was.
    NoCheckpointError: where no checkpoint is intact.
    ConfigError: where the class or the data that its config names are gone.
    StorageError: where the storage cannot be read.
  """
  path = pathlib.Path(workdir)
  config = _config(path)
  with build.randomness(config):
    task = build_named.build_task(config['task'])
    now = task.init(jax.random.key(config['seed']))
    if same_data.is_known(now):
      found = _find(path / folder.STATE, build.build(config))
      same_data.check(path, config, found.state.data_state, now)
  return task


def _averaged(
  path: pathlib.Path, state: records.MetaTrainState
) -> records.MetaTrainState:
  """The state with the average of its model."""
  if not state.average:
    raise errors.WorkdirError(
      f'{path}: its run kept no average; train with --config.average=0.1, or '
      f'load it without average=True'
    )
  return averaging.averaged(state)


def _config(path: pathlib.Path) -> dict[str, Any]:
  """The config of a training run, all of its fields checked."""
  config = folder.read_config(path)
  try:
    return check.resolve(config)
  except errors.ConfigError as error:
    raise errors.WorkdirError(
      f'{path / folder.CONFIG}: not the config of a training run '
      f'({error}); give the workdir of one'
    ) from error


def _find(
  directory: pathlib.Path, experiment: build.Experiment
) -> checkpoint.Found:
  found = checkpoint.find_newest(directory, experiment.init_state())
  if found is None:
    remedy = (
      'run with --config.best_metric=eval/loss'
      if directory.name == folder.BEST
      else 'run the training first'
    )
    raise errors.WorkdirError(f'{directory}: no checkpoint yet; {remedy}')
  return found


def _learning_rate(
  path: pathlib.Path,
  config: dict[str, Any],
  experiment: build.Experiment,
  found: checkpoint.Found,
  *,
  best: bool,
  member: int | None,
) -> Any:
  """The rate of each inner update: the learned value times the multiplier."""
  learned = _learned_rate(
    path, config, experiment, found, best=best, member=member
  )
  multiplier = build_schedule.build_multiplier(
    config['inner'], build.num_updates(config)
  )
  if multiplier is None:
    return learned
  if isinstance(learned, dict):
    return {name: _product(s, multiplier) for name, s in learned.items()}
  return _product(learned, multiplier)


def _product(
  schedule: optax.Schedule, multiplier: optax.Schedule
) -> optax.Schedule:
  return lambda count: schedule(count) * multiplier(count)


def _learned_rate(
  path: pathlib.Path,
  config: dict[str, Any],
  experiment: build.Experiment,
  found: checkpoint.Found,
  *,
  best: bool,
  member: int | None,
) -> Any:
  """The schedule up to the checkpoint's step, also of a run not finished."""
  if 'learning_rate' not in config['meta']['learned']:
    return optax.constant_schedule(config['inner']['learning_rate'])
  metrics = path / folder.METRICS
  # A run that was killed and goes on writes the rows up to its best step again,
  # with other times in them: those are not as that checkpoint recorded.
  rows = (
    metrics_csv.read_steps(metrics, found.step)
    if best
    else metrics_csv.read(metrics, found.record)
  )
  keys = [*bijections.flatten(dict(experiment.initial), 'hyperparams')]
  if member is not None:
    keys.append(metrics_csv.MEMBER)
  missing = [key for key in keys if key not in rows]
  if missing:
    raise errors.WorkdirError(
      f'{metrics}: has no column {missing[0]}; put the file back'
    )
  if member is not None:
    rows = metrics_csv.of_member(rows, member)
  schedules = {
    name.removeprefix('learning_rate').lstrip('/'): schedule.make_schedule(s)
    for name, s in schedule.make_schedules(
      experiment.initial, rows, config['meta']['unroll_length']
    ).items()
    if name.split('/')[0] == 'learning_rate'
  }
  return schedules.get('', schedules)
