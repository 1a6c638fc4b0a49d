"""Refuses a run whose data files are no longer those it was trained on."""

from collections.abc import Mapping
import pathlib
from typing import Any

import numpy as np

from metalr_flax import errors
from metalr_flax.tasks import digests


def is_known(data_state: Any) -> bool:
  """Whether a task says by its state which files it read."""
  return isinstance(data_state, Mapping) and digests.KEY in data_state


def check(
  workdir: pathlib.Path, config: Mapping[str, Any], saved: Any, now: Any
) -> None:
  """Compares the checksums of a checkpoint's data and of today's.

  Other rows would be another split, other means and perhaps other classes: the
  run would go on, or a prediction be made, with what the model never saw.

  Args:
    workdir: of the run, for the message.
    config: the run's.
    saved: the checkpoint's `data_state`.
    now: the `data_state` of the task as its files are.

  Raises:
    WorkdirError: where they differ.
  """
  if not is_known(saved):
    return
  if np.any(np.asarray(saved[digests.KEY]) != np.asarray(now[digests.KEY])):
    raise errors.WorkdirError(
      f'workdir={workdir}: was trained on other data than are in task.path='
      f'{config["task"]["path"]} now; put the files back as they were, or '
      f'choose another --workdir='
    )
