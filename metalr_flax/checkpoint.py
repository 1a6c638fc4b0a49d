"""The door to Orbax: saves the whole state, restores the newest intact one."""

from collections.abc import Iterator, Mapping
import contextlib
import hashlib
from importlib import metadata
import pathlib
import platform
from typing import Any, NamedTuple

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from metalr_flax import errors
from metalr_flax import state as state_lib

MAX_TO_KEEP = 3
# What Orbax and TensorStore were seen to raise for damaged files.
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError)
_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'numpy')


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
  """
  steps = _steps(directory)
  for step in steps:
    try:
      return _read(directory, step, template)
    except _UNREADABLE as error:
      reason = ' '.join(str(error).split())[:200]
      logging.warning(
        '%s: damaged (%s: %s); trying the one before',
        directory / str(step),
        type(error).__name__,
        reason,
      )
  if steps:
    raise errors.NoCheckpointError(
      f'{directory}: {len(steps)} checkpoints and none intact; bring back a '
      f'copy, or start anew with another --workdir='
    )
  return None


def set_aside(directory: pathlib.Path, found: Found | None) -> None:
  """Moves damaged checkpoints out of the way: renamed, never deleted.

  Args:
    directory: where the checkpoints are.
    found: the newest intact one; all that are newer are not.
  """
  for step in _steps(directory):
    if found and step > found.step:
      path, number = directory / str(step), 1
      while (aside := path.with_name(f'{step}.damaged{number}')).exists():
        number += 1
      path.rename(aside)


def _steps(directory: pathlib.Path) -> list[int]:
  """Step numbers of a directory, the newest first."""
  if not directory.is_dir():
    return []
  names = [path.name for path in directory.iterdir()]
  return sorted((int(n) for n in names if n.isdecimal()), reverse=True)


def _read(
  directory: pathlib.Path, step: int, template: state_lib.MetaTrainState
) -> Found:
  abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
  # A new reader each time: after a failure it refuses good steps as well.
  with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
    restored = reader.restore(
      directory.absolute() / str(step),
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(abstract),
        notes=ocp.args.JsonRestore(),
      ),
    )
  # Orbax alone loads a large array with a flipped bit without a word.
  if digest(restored.state) != restored.notes['sha256']:
    raise ValueError('the SHA-256 of its arrays is not the one recorded')
  _warn_of_changes(restored.notes['environment'])
  return Found(step, restored.state, restored.notes['record'])


@contextlib.contextmanager
def opened(directory: pathlib.Path) -> Iterator['Checkpoints']:
  """Checkpoints that are closed at the end: an unclosed save is lost."""
  options = ocp.CheckpointManagerOptions(
    max_to_keep=MAX_TO_KEEP, create=True, enable_async_checkpointing=True
  )
  with ocp.CheckpointManager(directory.absolute(), options=options) as manager:
    yield Checkpoints(manager)


class Checkpoints:
  """Writes checkpoints `<directory>/<step>/` and keeps the newest 3."""

  def __init__(self, manager: ocp.CheckpointManager):
    self._manager = manager

  def save(
    self, state: state_lib.MetaTrainState, record: Mapping[str, Any]
  ) -> None:
    """Starts to save a state; returns before it is all written.

    Args:
      state: the state; it is copied, so it may be donated afterwards.
      record: JSON values to keep beside it.
    """
    step = int(state.step)
    # A copy of the arrays: Orbax writes in the background what the next chunk
    # will overwrite.
    state = jax.tree.map(jnp.copy, state)
    notes = {
      'record': dict(record),
      'sha256': digest(state),
      'environment': environment(),
    }
    saved = self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state), notes=ocp.args.JsonSave(notes)
      ),
    )
    if not saved:
      raise errors.StorageError(
        f'{self._manager.directory / str(step)}: Orbax did not save; something '
        f'of that name is in the way, move it elsewhere and run again'
      )

  def wait(self) -> None:
    """Waits until the last save is all written."""
    self._manager.wait_until_finished()


def digest(state: Any) -> str:
  """SHA-256 of all leaves, with their paths, dtypes and shapes."""
  sha = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf = jax.random.key_data(leaf)
    array = np.asarray(leaf)
    name = jax.tree_util.keystr(path)
    sha.update(f'{name} {array.dtype} {array.shape}'.encode())
    sha.update(array.tobytes())
  return sha.hexdigest()


def environment() -> dict[str, str]:
  """What the bits of a result depend on beside the program."""
  versions = {name: metadata.version(name) for name in _PACKAGES}
  device = jax.devices()[0]
  return {
    **versions,
    'machine': platform.machine(),
    'device': f'{device.platform} {device.device_kind}',
    'devices': str(jax.device_count()),
  }


def _warn_of_changes(saved: Mapping[str, str]) -> None:
  for name, now in environment().items():
    if saved.get(name) != now:
      logging.warning(
        '%s was %s when this run was saved and is %s now: the run goes on, but '
        'not with the same last bits', name, saved.get(name), now,
      )  # fmt: skip
