"""A finished run back in the hand: its model, its config, its schedule."""

import pathlib
from typing import Any

from flax import nnx
from ml_collections import config_dict
import optax

from metalr_flax import build
from metalr_flax import checkpoint
from metalr_flax import errors
from metalr_flax import schedule
from metalr_flax import state as state_lib
from metalr_flax import workdir as workdir_lib


def load(
  workdir: str | pathlib.Path,
) -> tuple[nnx.Module, config_dict.ConfigDict, optax.Schedule]:
  """Loads what a run made from its workdir, which is only read.

    model, config, schedule = metalr_flax.load('checkpoints/digits_mlp')
    logits = model(images)
    tx = optax.rmsprop(schedule)

  A config may name the user's own classes; they are imported.

  Args:
    workdir: the folder of a run that has a checkpoint.

  Returns:
    The trained NNX module of the newest intact checkpoint in evaluation mode,
    the run's config, and the learning rate's schedule by inner step: the
    learned one, or the constant that the run had.

  Raises:
    WorkdirError: where the folder is no workdir or has no checkpoint yet.
    NoCheckpointError: where no checkpoint is intact.
  """
  path = pathlib.Path(workdir)
  config = workdir_lib.read_config(path)
  with build.randomness(config):
    experiment = build.build(config)
    state = _newest_state(path, experiment)
  return (
    experiment.make_model(state.params, state.model_state),
    config_dict.ConfigDict(config),
    _learning_rate(path, config),
  )


def _newest_state(
  path: pathlib.Path, experiment: build.Experiment
) -> state_lib.MetaTrainState:
  directory = path / workdir_lib.STATE
  found = checkpoint.find_newest(directory, experiment.init_state())
  if found is None:
    raise errors.WorkdirError(
      f'{directory}: no checkpoint yet; run the training first'
    )
  return found.state


def _learning_rate(
  path: pathlib.Path, config: dict[str, Any]
) -> optax.Schedule:
  file = path / workdir_lib.SCHEDULE
  if 'learning_rate' in config['meta']['learned'] and file.exists():
    return schedule.load_schedule(file)
  return optax.constant_schedule(config['inner']['learning_rate'])
