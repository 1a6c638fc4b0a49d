"""The workdir: one run at a time may write in it, and of one config only.

The lock is an advisory one on the directory itself: no lock file is left
behind, and the system drops the lock of a killed run. Readers never take it.
"""

from collections.abc import Iterator, Mapping
import contextlib
import errno
import fcntl
import os
import pathlib
import re
import shlex
import tempfile
import time
from typing import Any

from absl import logging

from metalr_flax import errors
from metalr_flax.config import schema
from metalr_flax.workdir import files

CONFIG = 'config.json'
METRICS = 'metrics.csv'
RESULTS = 'results.json'
SCHEDULE = 'schedule.json'
STATE = 'state'
BEST = 'best'
PROFILE = 'profile'
PLOT = 'plots/learning_rate.png'
REPORT = 'report.html'
# In STATE and BEST: half a checkpoint.
UNFINISHED = re.compile(r'\.\d+\.(saving|old)')
_PROBE = '.probe'
_ABSENT = object()
_MOST_DIFFERENCES = 10  # in one line
# Faults of the storage itself, no property of the path: they may pass.
_PASSING = (
  errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE,
  errno.ENFILE, errno.ESTALE, errno.EINTR, errno.ETIMEDOUT, errno.ENOMEM,
)  # fmt: skip


@files.retried
def check_writable(path: pathlib.Path) -> None:
  """Refuses a workdir that cannot be written; leaves nothing behind.

  Raises:
    ConfigError: naming the directory and the system's reason.
    OSError: where the storage does not answer.
  """
  existing = path
  while not os.path.lexists(existing) and existing != existing.parent:
    existing = existing.parent
  try:
    _check_name(path)
    os.rmdir(tempfile.mkdtemp(prefix=_PROBE, dir=existing))
    missing = [existing / n for n in path.parts[len(existing.parts) :]]
    # One may be too long, or hold a NUL; Orbax adds about 130 letters.
    for name in (path, *missing, path / STATE / ('x' * 200)):
      with contextlib.suppress(FileNotFoundError):
        os.lstat(name)
  except (OSError, ValueError) as error:
    if isinstance(error, OSError) and error.errno in _PASSING:
      raise
    reason = (isinstance(error, OSError) and error.strerror) or error
    raise _unwritable(path, f'{existing}: {reason}') from error


def _check_name(path: pathlib.Path) -> None:
  """Refuses names that Orbax or TensorStore would change.

  Raises:
    ValueError: saying which.
  """
  str(path).encode()  # they take no other
  for name in pathlib.Path(os.path.realpath(path)).parts:
    if '\\' in name or name.endswith(('gs:', '.__lock')):
      raise ValueError(
        rf'Orbax saves nothing below a folder {name}: its name has a \ in it '
        f'or ends with gs: or .__lock'
      )


def _unwritable(path: pathlib.Path, reason: str) -> errors.ConfigError:
  return errors.ConfigError.of(
    'workdir',
    path,
    f'cannot be written ({reason})',
    'choose another --workdir=',
  )


class Lock:
  """A lock that is held, on the directory that had the workdir's name then."""

  def __init__(self, directory: int, path: pathlib.Path):
    self._directory = directory
    self._path = path

  def check(self) -> None:
    """Refuses to write where the locked directory was removed or replaced.

    Whoever removes a workdir and starts another run under its name would find
    the first run's checkpoints among its own.

    Raises:
      StorageError: where the path leads elsewhere by now, or nowhere.
    """
    if not _leads_to(self._path, self._directory):
      raise errors.StorageError(
        f'{self._path}: was removed or replaced under this run; run the same '
        f'command again to start anew'
      )


@files.retried
def _leads_to(path: pathlib.Path, directory: int) -> bool:
  """Whether a path is that of an open directory."""
  try:
    found = os.stat(path)
  except (FileNotFoundError, NotADirectoryError):
    return False
  return os.path.samestat(os.fstat(directory), found)


@contextlib.contextmanager
def locked(path: pathlib.Path) -> Iterator[Lock]:
  """Holds the lock of an existing workdir.

  Raises:
    WorkdirError: where another run holds it.
  """
  directory = files.open_directory(path)
  try:
    _lock(directory, path)
    lock = Lock(directory, path)
    lock.check()  # it may have gone between the two steps
    yield lock
  finally:
    os.close(directory)  # which also drops the lock


def _lock(directory: int, path: pathlib.Path) -> None:
  try:
    try:
      fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:  # it may be a check of another run: _check_free
      time.sleep(0.1)
      fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
      raise errors.WorkdirError(
        f'workdir={path}: in use by another run; wait for it, or choose '
        f'another --workdir='
      ) from error
    logging.warning('%s: no locks on this file system (%s)', path, error)


def check(path: pathlib.Path, config: Mapping[str, Any], command: str) -> None:
  """Refuses a workdir that this run cannot use, before JAX is imported.

  Raises:
    ConfigError: where it cannot be written.
    WorkdirError: where it is not this run's, or in use.
    StorageError: where a run is there and the storage does not answer.
  """
  _check_temporary()
  with files.ending_with_status_5(path):
    try:
      check_writable(path)
      check_config(path, config, command)
      _check_free(path)
    except OSError as error:
      if os.path.lexists(path / CONFIG):
        raise
      # No run is there yet: another folder is as good.
      raise _unwritable(path, error.strerror or str(error)) from error


def _check_temporary() -> None:
  try:
    tempfile.gettempdir()
  except FileNotFoundError as error:  # chex and others could not be imported
    raise errors.ConfigError(
      'TMPDIR: no folder for temporary files can be written; name one with '
      'TMPDIR='
    ) from error


def _check_free(path: pathlib.Path) -> None:
  """Refuses a workdir where another run is under way."""
  if path.is_dir():
    with locked(path):
      pass


@files.retried
def check_config(
  path: pathlib.Path, config: Mapping[str, Any], command: str
) -> None:
  """Refuses a workdir that is foreign or belongs to another config.

  `num_outer_steps`, the cadences and the patience may change: `with_length`
  says which length a run then has.

  Args:
    path: the workdir; one that does not exist is fine.
    config: the resolved config of this run.
    command: this run's command without its workdir.

  Raises:
    WorkdirError: with the old and the new values, and a command that works.
  """
  if not path.exists():
    return
  if not (path / CONFIG).exists():
    foreign = [
      name
      for name in files.list_directory(path)
      if not _is_left_over(path, name)
    ]
    if foreign:
      raise errors.WorkdirError(
        f'workdir={path}: has no {CONFIG} but other content '
        f'({foreign[0]}); choose an empty --workdir='
      )
    return
  differences = _list_differences(read_config(path), config)
  if differences:
    raise errors.WorkdirError(
      f'workdir={path}: holds a run with {_shown(differences)}; run it '
      f'elsewhere: {command} {as_flag(free_name(path))}'
    )


def check_seen(path: pathlib.Path) -> None:
  """Refuses a workdir where this process does not see what process 0 writes.

  Raises:
    WorkdirError: where it is not there after a while.
  """
  for delay in (*files.RETRY_SECS, 0.0):
    if CONFIG in files.list_directory(path):
      return
    time.sleep(delay)
  raise errors.WorkdirError(
    f'workdir={path}: what process 0 writes there is not seen here; choose a '
    f'--workdir= on a file system that all hosts share'
  )


def _list_differences(
  before: Mapping[str, Any], now: Mapping[str, Any]
) -> list[str]:
  """What two configs may not differ in, as `field=old (here new)`."""
  old, new = dict(schema.flatten(before)), dict(schema.flatten(now))
  names = [
    name
    for name in {**new, **old}  # in the order of this command's config
    if old.get(name, _ABSENT) != new.get(name, _ABSENT)
    and not _may_change(name, old.get(name))
  ]
  return [
    f'{name}={old[name]} (here {new.get(name, "none")})'
    if name in old
    else f'no {name} (here {new[name]})'
    for name in names
    # An empty mapping beside its keys in the other config says nothing more.
    if not any(other.startswith(f'{name}.') for other in names)
  ]


def _shown(differences: list[str]) -> str:
  more = len(differences) - _MOST_DIFFERENCES
  rest = [f'and {more} more'] if more > 0 else []
  return ', '.join([*differences[:_MOST_DIFFERENCES], *rest])


def with_length(
  path: pathlib.Path, config: Mapping[str, Any]
) -> dict[str, Any]:
  """A run's config with the length that the run in its workdir has.

  A run that was extended goes on to its larger `num_outer_steps` also by its
  first command; a smaller number never shortens one.

  Args:
    path: the workdir, which `check_config` found to be this run's.
    config: the resolved config of this run.
  """
  if not (path / CONFIG).exists():
    return dict(config)
  length = max(read_config(path)['num_outer_steps'], config['num_outer_steps'])
  return {**config, 'num_outer_steps': length}


def _is_left_over(path: pathlib.Path, name: str) -> bool:
  """Whether a run without a config may have left it.

  A killed one leaves its first moments, and one whose workdir was removed
  while it saved leaves that save.
  """
  if name in (STATE, BEST):
    inside = files.list_directory(path / name)
    return (path / name).is_dir() and all(map(UNFINISHED.match, inside))
  return name == f'.{CONFIG}.tmp' or name.startswith(_PROBE)


def read_config(path: pathlib.Path) -> dict[str, Any]:
  """The resolved config that a workdir's run has.

  Raises:
    WorkdirError: where there is none, or none that can be read.
  """
  try:
    config = files.read_json(path / CONFIG)
    if not isinstance(config, dict):
      raise ValueError('no mapping')
    schema.complete(config)  # of a run from before such a field was there
    return schema.to_plain(config)
  except (
    FileNotFoundError, NotADirectoryError, ValueError, errors.ConfigError
  ) as error:  # fmt: skip
    raise errors.WorkdirError(
      f'{path / CONFIG}: not a readable config ({error}); is {path} a workdir?'
    ) from error


def _may_change(name: str, before: Any) -> bool:
  if name == 'num_outer_steps':
    return isinstance(before, int)  # or it is no run of ours
  return name in schema.MAY_CHANGE


def as_flag(path: pathlib.Path) -> str:
  """The flag that names a workdir, for a shell; its braces are doubled."""
  doubled = str(path).replace('{', '{{').replace('}', '}}')
  return f'--workdir={shlex.quote(doubled)}'


def free_name(path: pathlib.Path) -> pathlib.Path:
  """A name like a workdir's that nothing has yet."""
  path, number = path if path.name else path.resolve(), 2
  while (free := pathlib.Path(f'{path}-{number}')).exists():
    number += 1
  return free
