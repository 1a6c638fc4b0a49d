"""Checkpoints: saves the whole state, restores the newest intact one.

A checkpoint `<directory>/<step>/` appears under its name only when all of it is
on the disk: Orbax writes it under another name, it is read back, `manifest`
seals it, and it is renamed. A step without an intact manifest does not count.
"""

from collections.abc import Callable
import dataclasses
import os
import pathlib
import re
import shutil
from typing import Any, NamedTuple

from absl import logging

from metalr_flax import errors
from metalr_flax.engine import records
from metalr_flax.workdir import arrays
from metalr_flax.workdir import files
from metalr_flax.workdir import fingerprint
from metalr_flax.workdir import folder
from metalr_flax.workdir import manifest

MAX_TO_KEEP = 3
# What `write` puts into a manifest.
_NOTES = {
  'step': int, 'record': dict, 'sha256': str, 'leaves': dict,
  'environment': dict,
}  # fmt: skip


class _GoneError(Exception):
  """A checkpoint was removed by its run while it was read."""


class Found(NamedTuple):
  """A checkpoint that was read back and is intact.

  Attributes:
    step: its outer step.
    state: the state saved.
    record: the JSON values saved beside it.
  """

  step: int
  state: records.MetaTrainState
  record: dict[str, Any]


def find_newest(
  directory: pathlib.Path, template: records.MetaTrainState
) -> Found | None:
  """Reads the newest intact checkpoint; writes nothing.

  Args:
    directory: where the checkpoints are, `<directory>/<step>/`.
    template: a state of the same structure, shapes and dtypes.

  Returns:
    What was found; None where nothing was ever saved.

  Raises:
    NoCheckpointError: where there are checkpoints but none is intact.
    WorkdirError: where the newest intact one is of another structure.
    StorageError: where the storage does not answer.
  """
  before = None
  while True:
    steps = _steps(directory)
    if steps == before:
      raise errors.StorageError(
        f'{directory}: lists checkpoints that are not there ({steps}); mend '
        f'the storage and run the same command'
      )
    try:
      return _newest_intact(directory, steps, template)
    except _GoneError:
      before = steps  # the run that goes on there has saved newer ones


def _newest_intact(
  directory: pathlib.Path,
  steps: list[int],
  template: records.MetaTrainState,
) -> Found | None:
  for step in steps:
    path = directory / str(step)
    try:
      return _read_if_there(path, template)
    except (manifest.DamagedError, arrays.OrbaxError) as error:
      logging.warning('%s: damaged (%s); trying the one before', path, error)
    except OSError as error:
      raise errors.StorageError(
        f'{path}: cannot be read ({arrays.reason(error)}); mend the storage '
        f'and run the same command'
      ) from error
  if steps:
    raise errors.NoCheckpointError(
      f'{directory}: {len(steps)} checkpoints and none intact; bring back a '
      f'copy, or start anew with another --workdir='
    )
  return None


@files.retried
def clean(directory: pathlib.Path, found: Found | None) -> None:
  """Makes room for new checkpoints; for the one run that may write.

  Damaged ones are renamed, never deleted. What a killed run had not finished
  writing is removed.

  Args:
    directory: where the checkpoints are.
    found: the newest intact one; all that are newer are not.
  """
  files.make_directory(directory)
  for step in _steps(directory):
    if found and step > found.step:
      path, number = directory / str(step), 1
      while (aside := path.with_name(f'{step}.damaged{number}')).exists():
        number += 1
      path.rename(aside)
  sweep(directory)
  settle(directory)


@files.retried
def sweep(directory: pathlib.Path) -> None:
  """Removes what a killed run had not finished writing, or removing."""
  files.make_directory(directory)
  for name in files.list_directory(directory):
    if folder.UNFINISHED.match(name):
      _remove(directory / name)


def _remove(path: pathlib.Path) -> None:
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path)
  else:
    path.unlink()


def _steps(directory: pathlib.Path) -> list[int]:
  """Step numbers of a directory, the newest first."""
  names = files.list_directory(directory)
  return sorted(
    (int(n) for n in names if re.fullmatch(r'0|[1-9][0-9]*', n)), reverse=True
  )


@files.retried
def _read_if_there(
  path: pathlib.Path, template: records.MetaTrainState
) -> Found:
  try:
    return _read(path, template)
  except (manifest.DamagedError, OSError) as error:
    try:
      os.lstat(path)
    except FileNotFoundError:
      raise _GoneError from error
    raise


def _read(path: pathlib.Path, template: records.MetaTrainState) -> Found:
  notes = manifest.verify(path)
  manifest.check_fields(notes, _NOTES)
  if str(notes['step']) != path.name:
    raise manifest.DamagedError(f'{manifest.NAME} is of step {notes["step"]}')
  fingerprint.check_structure(
    path, notes['leaves'], fingerprint.describe(template)
  )
  state = template.replace(**arrays.restore(path, _stored(template)))
  if fingerprint.digest(state) != notes['sha256']:
    raise manifest.DamagedError('its arrays are not those that were saved')
  fingerprint.warn_of_changes(notes['environment'], state)
  return Found(notes['step'], state, notes['record'])


def _stored(state: records.MetaTrainState) -> dict[str, Any]:
  """A state's fields, without an average where none is kept.

  Orbax refuses a checkpoint without a field that is asked for, even if empty;
  those of release 0.1 have no average.
  """
  fields = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
  return {n: v for n, v in fields.items() if n != 'average' or v}


@files.retried
def write(
  path: pathlib.Path,
  state: records.MetaTrainState,
  record: dict[str, Any],
  check: Callable[[], None],
  *,
  compare: bool = True,
) -> None:
  """Writes a checkpoint: Orbax's files, the manifest, the name.

  What cannot be read back gets neither manifest nor name.

  Args:
    path: its folder, `<directory>/<step>`.
    state: the state.
    record: JSON values to keep beside it.
    check: raises where the folder must not be written to any more.
    compare: whether to restore it as well, and to compare every bit.

  Raises:
    OSError: where Orbax or the storage fails.
    DamagedError: where there is another one under that name.
  """
  check()
  saving = path.with_name(f'.{path.name}.saving')
  if path.exists():  # a rename that worked and was answered with a fault
    if manifest.verify(path)['sha256'] != fingerprint.digest(state):
      raise manifest.DamagedError('another run saved this step')
    return
  for name in files.list_directory(path.parent):
    if name.startswith(saving.name):
      _remove(path.parent / name)
  stored = _stored(state)
  arrays.save(saving, stored)
  arrays.check_complete(saving, stored)
  sha256 = fingerprint.digest(state)
  if compare:
    arrays.check_equal(saving, stored, fingerprint.digest(stored))
  manifest.seal(
    saving,
    path.name,
    {
      'step': state.steps_done,
      'record': record,
      'sha256': sha256,
      'leaves': fingerprint.describe(state),
      'environment': fingerprint.environment_of(state),
    },
  )
  check()
  os.rename(saving, path)


@files.retried
def settle(directory: pathlib.Path) -> None:
  """Puts a new checkpoint's name on the disk; only then older ones may go."""
  files.sync_directory(directory)
  for step in _steps(directory)[MAX_TO_KEEP:]:
    _drop(directory / str(step))


def _drop(path: pathlib.Path) -> None:
  # Renamed first: half a checkpoint must not have a checkpoint's name.
  old = path.with_name(f'.{path.name}.old')
  os.rename(path, old)
  shutil.rmtree(old)


@files.retried
def make_way(path: pathlib.Path, state: records.MetaTrainState) -> None:
  """Removes a checkpoint that is damaged, or not of this state.

  A run that was killed after it, and goes on from before it, comes here again.
  """
  try:
    if not path.exists():
      return
    if manifest.verify(path).get('sha256') == fingerprint.digest(state):
      return
  except manifest.DamagedError as error:
    logging.warning('%s: damaged (%s); saving it again', path, error)
  _drop(path)


@files.retried
def keep_only(path: pathlib.Path) -> None:
  """Puts a new checkpoint's name on the disk and removes all others there."""
  files.sync_directory(path.parent)
  for step in _steps(path.parent):
    if str(step) != path.name:
      _drop(path.with_name(str(step)))
