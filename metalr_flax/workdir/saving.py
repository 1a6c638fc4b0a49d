"""Saves checkpoints in the background, one at a time.

Several processes save in the foreground: they wait for each other inside of
Orbax, by computations that must come in one order in all of them.
"""

from collections.abc import Callable, Iterator, Mapping
import concurrent.futures
import contextlib
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from metalr_flax import errors
from metalr_flax.engine import records
from metalr_flax.processes import team as team_lib
from metalr_flax.workdir import arrays
from metalr_flax.workdir import checkpoint
from metalr_flax.workdir import fingerprint
from metalr_flax.workdir import folder
from metalr_flax.workdir import manifest

# All arrays of a checkpoint are read; of the first that a run saves, and of
# every so many, each bit is compared too, which takes nearly as long as saving.
_COMPARE_EVERY = 10


@contextlib.contextmanager
def opened(
  directory: pathlib.Path,
  check: Callable[[], None] = lambda: None,
  team: team_lib.Team = team_lib.ALONE,
) -> Iterator['Checkpoints']:
  """Opens the checkpoints of a directory; the last save is finished at the end.

  Args:
    directory: where they are.
    check: raises a MetalrError where it must not be written to any more.
    team: the processes of the run, which all save.
  """
  checkpoints = Checkpoints(directory, check, team)
  try:
    yield checkpoints
    checkpoints.wait()
  finally:
    checkpoints.close()


class Checkpoints:
  """Writes checkpoints `<directory>/<step>/` and keeps the newest 3.

  The one that `save` is told is the best goes beside them, under `best`.
  """

  def __init__(
    self,
    directory: pathlib.Path,
    check: Callable[[], None],
    team: team_lib.Team,
  ):
    self._check = check
    self._team = team
    self._directory = directory.absolute()
    self._pool = concurrent.futures.ThreadPoolExecutor(max_workers=1)
    self._saving: concurrent.futures.Future | None = None
    self._count = 0

  def save(
    self,
    state: records.MetaTrainState,
    record: Mapping[str, Any],
    *,
    best: bool = False,
  ) -> None:
    """Starts to save a state; returns before it is all written.

    Args:
      state: the state; it is copied, so it may be donated afterwards.
      record: JSON values to keep beside it.
      best: whether to save it as the best one, in place of the one before.

    Raises:
      StorageError: where the save before this one failed.
    """
    if self._team.count > 1:
      self._save(state, dict(record), best)
      return
    self.wait()
    # A copy of the arrays: what is written in the background must not be what
    # the next chunk overwrites.
    state = jax.tree.map(jnp.copy, state)
    self._saving = self._pool.submit(self._save, state, dict(record), best)

  def wait(self) -> None:
    """Waits until the last save is all on the disk.

    Raises:
      StorageError: where it failed.
    """
    if self._saving:
      saving, self._saving = self._saving, None
      saving.result()

  def close(self) -> None:
    """Ends the background thread."""
    self._pool.shutdown(wait=True)

  def _save(
    self, state: records.MetaTrainState, record: dict[str, Any], best: bool
  ) -> None:
    kept = self._directory.with_name(folder.BEST) if best else self._directory
    path = kept / str(state.steps_done)
    first = self._team.first
    sha256 = fingerprint.digest(state)
    try:
      if best:
        first(lambda: checkpoint.make_way(path, sha256))
      checkpoint.write(
        path,
        state,
        record,
        self._check,
        sha256=sha256,
        compare=self._count % _COMPARE_EVERY == 0,
        team=self._team,
      )
    except (OSError, manifest.DamagedError) as error:
      raise errors.StorageError(
        f'{path}: cannot be saved ({arrays.reason(error)}); what was saved '
        f'before is intact: mend the storage and run the same command'
      ) from error
    self._count += 1
    first(lambda: self._settle(path, best))

  def _settle(self, path: pathlib.Path, best: bool) -> None:
    self._check()
    if best:
      checkpoint.keep_only(path)
    else:
      checkpoint.settle(self._directory)
