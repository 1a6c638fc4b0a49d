"""Checkpoints: saves the whole state, restores the newest intact one.

A checkpoint `<directory>/<step>/` appears under its name only when all of it is
on the disk: Orbax writes it under another name, it is read back, `manifest`
seals it, and it is renamed. A step without an intact manifest does not count.

Where a run has several processes, all call these functions; Orbax lets each
write and read its share. Process 0 alone does the rest, and what it finds, or
any of them, all act upon.
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
from metalr_flax.processes import team as team_lib
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
  directory: pathlib.Path,
  template: records.MetaTrainState,
  team: team_lib.Team = team_lib.ALONE,
) -> Found | None:
  """Reads the newest intact checkpoint; writes nothing.

  Args:
    directory: where the checkpoints are, `<directory>/<step>/`.
    template: a state of the same structure, shapes and dtypes.
    team: the processes of the run.

  Returns:
    What was found; None where nothing was ever saved.

  Raises:
    NoCheckpointError: where there are checkpoints but none is intact.
    WorkdirError: where the newest intact one is of another structure.
    StorageError: where the storage does not answer.
  """
  before = None
  while True:
    steps = team.first(lambda: _steps(directory))
    if steps == before:
      raise errors.StorageError(
        f'{directory}: lists checkpoints that are not there ({steps}); mend '
        f'the storage and run the same command'
      )
    try:
      return _newest_intact(directory, steps, template, team)
    except _GoneError:
      before = steps  # the run that goes on there has saved newer ones


def _newest_intact(
  directory: pathlib.Path,
  steps: list[int],
  template: records.MetaTrainState,
  team: team_lib.Team,
) -> Found | None:
  for step in steps:
    path = directory / str(step)
    try:
      return _read_if_there(path, template, team)
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
  path: pathlib.Path, template: records.MetaTrainState, team: team_lib.Team
) -> Found:
  try:
    return _read(path, template, team)
  except (manifest.DamagedError, OSError) as error:
    if not team.first(lambda: _is_there(path)):
      raise _GoneError from error
    raise


def _is_there(path: pathlib.Path) -> bool:
  try:
    os.lstat(path)
  except FileNotFoundError:
    return False
  return True


def _read(
  path: pathlib.Path, template: records.MetaTrainState, team: team_lib.Team
) -> Found:
  # Process 0 hashes all files; each process then reads what it needs of them.
  notes = team.first(lambda: _verified(path, template), manifest.DamagedError)
  restored = team.each(
    lambda: arrays.restore(path, _stored(template)), arrays.OrbaxError
  )
  state = template.replace(**restored)
  if fingerprint.digest(state) != notes['sha256']:
    raise manifest.DamagedError('its arrays are not those that were saved')
  if team.leads:
    fingerprint.warn_of_changes(notes['environment'], state)
  return Found(notes['step'], state, notes['record'])


def _verified(
  path: pathlib.Path, template: records.MetaTrainState
) -> dict[str, Any]:
  """The notes of a checkpoint's manifest, its files as they were written."""
  notes = manifest.verify(path)
  manifest.check_fields(notes, _NOTES)
  if str(notes['step']) != path.name:
    raise manifest.DamagedError(f'{manifest.NAME} is of step {notes["step"]}')
  fingerprint.check_structure(
    path, notes['leaves'], fingerprint.describe(template)
  )
  return notes


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
  sha256: str,
  compare: bool = True,
  team: team_lib.Team = team_lib.ALONE,
) -> None:
  """Writes a checkpoint: Orbax's files, the manifest, the name.

  What cannot be read back gets neither manifest nor name.

  Args:
    path: its folder, `<directory>/<step>`.
    state: the state.
    record: JSON values to keep beside it; those of process 0 are kept.
    check: raises where the folder must not be written to any more.
    sha256: the state's `fingerprint.digest`.
    compare: whether to restore it as well, and to compare every bit.
    team: the processes of the run.

  Raises:
    OSError: where Orbax or the storage fails.
    DamagedError: where there is another one under that name.
  """
  saving = path.with_name(f'.{path.name}.saving')
  notes = {
    'step': state.steps_done,
    'record': record,
    'sha256': sha256,
    'leaves': fingerprint.describe(state),
    'environment': fingerprint.environment_of(state),
  }

  def begin() -> bool:
    check()
    return _is_saved(path, sha256) or _clear(saving)

  if team.first(begin, manifest.DamagedError):
    return
  stored = _stored(state)
  _save(saving, stored, team)
  of_stored = fingerprint.digest(stored) if compare else ''

  def seal() -> None:
    arrays.check_complete(saving, stored)
    if compare:
      arrays.check_equal(saving, stored, of_stored)
    manifest.seal(saving, path.name, notes)
    check()
    os.rename(saving, path)

  team.first(seal, arrays.OrbaxError)


def _is_saved(path: pathlib.Path, sha256: str) -> bool:
  """Whether it has its name: a rename may work and be answered by a fault."""
  if not path.exists():
    return False
  if manifest.verify(path)['sha256'] != sha256:
    raise manifest.DamagedError('another run saved this step')
  return True


def _clear(saving: pathlib.Path) -> bool:
  """Makes room for Orbax's files; False."""
  for name in files.list_directory(saving.parent):
    if name.startswith(saving.name):
      _remove(saving.parent / name)
  return False


def _save(
  saving: pathlib.Path, stored: dict[str, Any], team: team_lib.Team
) -> None:
  """Lets Orbax write the arrays, by all processes together."""
  try:
    arrays.save(saving, stored)
    if team.count > 1:
      arrays.sync(saving)
  except OSError as error:
    if team.count == 1:
      raise
    # Not tried again: the other processes wait for this one inside of Orbax.
    raise errors.StorageError(
      f'{saving}: cannot be saved ({arrays.reason(error)}); what was saved '
      f'before is intact: mend the storage and run the same command'
    ) from error
  team.gather(None)  # all are on the disk


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
def make_way(path: pathlib.Path, sha256: str) -> None:
  """Removes a checkpoint that is damaged, or not of the state with `sha256`.

  A run that was killed after it, and goes on from before it, comes here again.
  """
  try:
    if not path.exists():
      return
    if manifest.verify(path).get('sha256') == sha256:
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
