"""The door to Orbax: saves the whole state, restores the newest intact one.

A checkpoint `<directory>/<step>/` appears under its name only when all of it is
on the disk: Orbax writes it under another name, `manifest` seals it, and it is
renamed. A step without an intact manifest does not count.
"""

from collections.abc import Iterator, Mapping
import concurrent.futures
import contextlib
import functools
import os
import pathlib
import re
import shutil
from typing import Any, NamedTuple

from absl import logging
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from metalr_flax import errors
from metalr_flax import fingerprint
from metalr_flax import manifest
from metalr_flax import state as state_lib
from metalr_flax import storage

MAX_TO_KEEP = 3


class _OrbaxError(OSError):
  """Orbax could not read or write: it raises anything, bare Exceptions too."""


class Found(NamedTuple):
  """A checkpoint that was read back and is intact.

  Attributes:
    step: its outer step.
    state: the state saved.
    record: the JSON values saved beside it.
  """

  step: int
  state: state_lib.MetaTrainState
  record: dict[str, Any]


def find_newest(
  directory: pathlib.Path, template: state_lib.MetaTrainState
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
  steps = storage.retried(lambda: _steps(directory), directory)
  for step in steps:
    path = directory / str(step)
    try:
      read = functools.partial(_read, path, template)
      return storage.retried(read, path)
    except (manifest.DamagedError, _OrbaxError) as error:
      logging.warning('%s: damaged (%s); trying the one before', path, error)
    except OSError as error:
      raise errors.StorageError(
        f'{path}: cannot be read ({_reason(error)}); mend the storage and run '
        f'the same command'
      ) from error
  if steps:
    raise errors.NoCheckpointError(
      f'{directory}: {len(steps)} checkpoints and none intact; bring back a '
      f'copy, or start anew with another --workdir='
    )
  return None


def clean(directory: pathlib.Path, found: Found | None) -> None:
  """Makes room for new checkpoints; for the one run that may write.

  Damaged ones are renamed, never deleted. What a killed run had not finished
  writing is removed.

  Args:
    directory: where the checkpoints are.
    found: the newest intact one; all that are newer are not.
  """
  storage.make_directory(directory)
  for step in _steps(directory):
    if found and step > found.step:
      path, number = directory / str(step), 1
      while (aside := path.with_name(f'{step}.damaged{number}')).exists():
        number += 1
      path.rename(aside)
  for name in storage.list_directory(directory):
    if re.match(r'\.\d+\.(saving|old)', name):
      shutil.rmtree(directory / name)
  _settle(directory)


def _steps(directory: pathlib.Path) -> list[int]:
  """Step numbers of a directory, the newest first."""
  names = storage.list_directory(directory)
  return sorted(
    (int(n) for n in names if re.fullmatch(r'0|[1-9][0-9]*', n)), reverse=True
  )


def _read(path: pathlib.Path, template: state_lib.MetaTrainState) -> Found:
  notes = manifest.verify(path)
  fingerprint.check_structure(
    path, notes['leaves'], fingerprint.describe(template)
  )
  abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
  # A new reader each time: after a failure it refuses good steps as well.
  with (
    _orbax_errors(),
    ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader,
  ):
    restored = reader.restore(
      path.absolute(),
      args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract)),
    )
  if fingerprint.digest(restored.state) != notes['sha256']:
    raise manifest.DamagedError('its arrays are not those that were saved')
  fingerprint.warn_of_changes(notes['environment'])
  return Found(notes['step'], restored.state, notes['record'])


@contextlib.contextmanager
def opened(
  directory: pathlib.Path, newest: int | None = None
) -> Iterator['Checkpoints']:
  """Checkpoints whose last save is finished at the end.

  Args:
    directory: where they are.
    newest: the newest step that is there and intact.
  """
  checkpoints = Checkpoints(directory, newest)
  try:
    yield checkpoints
    checkpoints.wait()
  finally:
    checkpoints.close()


@contextlib.contextmanager
def _orbax_errors() -> Iterator[None]:
  try:
    yield
  except OSError:
    raise
  except Exception as error:
    raise _OrbaxError(_reason(error)) from error


class Checkpoints:
  """Writes checkpoints `<directory>/<step>/` and keeps the newest 3."""

  def __init__(self, directory: pathlib.Path, newest: int | None):
    self._directory = directory.absolute()
    self._pool = concurrent.futures.ThreadPoolExecutor(max_workers=1)
    self._saving: concurrent.futures.Future | None = None
    self._newest = newest

  def save(
    self, state: state_lib.MetaTrainState, record: Mapping[str, Any]
  ) -> None:
    """Starts to save a state; returns before it is all written.

    Args:
      state: the state; it is copied, so it may be donated afterwards.
      record: JSON values to keep beside it.

    Raises:
      StorageError: where the save before this one failed.
    """
    self.wait()
    # A copy of the arrays: what is written in the background must not be what
    # the next chunk overwrites.
    state = jax.tree.map(jnp.copy, state)
    self._saving = self._pool.submit(self._save, state, dict(record))

  def wait(self) -> None:
    """Waits until the last save is all on the disk.

    Raises:
      StorageError: where it failed.
    """
    if self._saving:
      saving, self._saving = self._saving, None
      saving.result()

  def newest(self) -> int | None:
    """The newest step that is all on the disk; waits for the last save."""
    if self._saving:
      concurrent.futures.wait([self._saving])
    return self._newest

  def close(self) -> None:
    """Ends the background thread."""
    self._pool.shutdown(wait=True)

  def _save(
    self, state: state_lib.MetaTrainState, record: dict[str, Any]
  ) -> None:
    path = self._directory / str(int(state.step))
    try:
      storage.retried(lambda: _write(path, state, record), path)
    except (OSError, manifest.DamagedError) as error:
      raise errors.StorageError(
        f'{path}: cannot be saved ({_reason(error)}); what was saved before is '
        f'intact: mend the storage and run the same command'
      ) from error
    storage.retried(lambda: _settle(self._directory), self._directory)
    self._newest = int(state.step)


def _write(
  path: pathlib.Path, state: state_lib.MetaTrainState, record: dict[str, Any]
) -> None:
  """Orbax's files, then the manifest, then the name; may be done again."""
  saving = path.with_name(f'.{path.name}.saving')
  if path.exists():  # a rename that worked and was answered with a fault
    manifest.verify(path)
    return
  for name in storage.list_directory(path.parent):
    if name.startswith(saving.name):
      shutil.rmtree(path.parent / name)
  with (
    _orbax_errors(),
    ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as writer,
  ):
    writer.save(
      saving, args=ocp.args.Composite(state=ocp.args.StandardSave(state))
    )
  # Each holds the machine's own path, and is read on no local file system.
  for mark in saving.rglob('commit_success.txt'):
    mark.unlink()
  manifest.seal(
    saving,
    path.name,
    {
      'step': int(state.step),
      'record': record,
      'sha256': fingerprint.digest(state),
      'leaves': fingerprint.describe(state),
      'environment': fingerprint.environment(),
    },
  )
  os.rename(saving, path)


def _settle(directory: pathlib.Path) -> None:
  """Puts a new checkpoint's name on the disk; only then older ones may go."""
  storage.sync_directory(directory)
  for step in _steps(directory)[MAX_TO_KEEP:]:
    # Renamed first: half a checkpoint must not have a checkpoint's name.
    old = directory / f'.{step}.old'
    os.rename(directory / str(step), old)
    shutil.rmtree(old)


def _reason(error: Exception) -> str:
  return ' '.join(str(error).split())[:300]
