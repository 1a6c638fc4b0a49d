"""The workdir: who may write in it, and for which config.

One writer at a time, held by an advisory lock on the directory itself: no lock
file to be left behind, and the system drops the lock of a killed run. Readers
never take it.
"""

from collections.abc import Iterator, Mapping
import contextlib
import errno
import fcntl
import json
import os
import pathlib
import shlex
import tempfile
from typing import Any

from absl import logging

from metalr_flax import errors
from metalr_flax import fields
from metalr_flax import storage

CONFIG = 'config.json'
METRICS = 'metrics.csv'
RESULTS = 'results.json'
SCHEDULE = 'schedule.json'
STATE = 'state'
PLOT = 'plots/learning_rate.png'
_PROBE = '.probe'


def check_writable(path: pathlib.Path) -> None:
  """Refuses a workdir that could not be written, leaving nothing behind.

  Raises:
    ConfigError: naming the directory and the system's reason.
  """
  existing = path
  while not os.path.lexists(existing) and existing != existing.parent:
    existing = existing.parent
  try:
    os.rmdir(tempfile.mkdtemp(prefix=_PROBE, dir=existing))
    missing = [existing / n for n in path.parts[len(existing.parts) :]]
    for name in (path, *missing):  # one may be too long, or hold a NUL
      with contextlib.suppress(FileNotFoundError):
        os.lstat(name)
  except (OSError, ValueError) as error:
    reason = error.strerror if isinstance(error, OSError) else error
    raise errors.ConfigError.of(
      'workdir',
      path,
      f'cannot be written ({existing}: {reason})',
      'choose another --workdir=',
    ) from error


@contextlib.contextmanager
def locked(path: pathlib.Path) -> Iterator[None]:
  """Holds the lock of an existing workdir.

  Raises:
    WorkdirError: where another run holds it.
  """
  directory = storage.retried(lambda: os.open(path, os.O_RDONLY), path)
  try:
    _lock(directory, path)
    yield
  finally:
    os.close(directory)  # which also drops the lock


def _lock(directory: int, path: pathlib.Path) -> None:
  try:
    fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
      raise errors.WorkdirError(
        f'workdir={path}: in use by another run; wait for it, or choose '
        f'another --workdir='
      ) from error
    logging.warning('%s: no locks on this file system (%s)', path, error)


def check(path: pathlib.Path, config: Mapping[str, Any], command: str) -> None:
  """All that can be said of a workdir before the run; see `check_config`.

  Raises:
    ConfigError: where it cannot be written.
    WorkdirError: where it is not this run's.
    StorageError: where the storage does not answer.
  """
  check_writable(path)
  try:
    storage.retried(lambda: check_config(path, config, command), path)
  except OSError as error:
    raise errors.StorageError(
      f'{error.filename or path}: {error.strerror or error}; mend the storage '
      f'and run the same command'
    ) from error


def check_config(
  path: pathlib.Path, config: Mapping[str, Any], command: str
) -> None:
  """Refuses a workdir that is foreign or belongs to another config.

  `num_outer_steps` may grow and the cadences may change.

  Args:
    path: the workdir; one that does not exist is fine.
    config: the resolved config of this run.
    command: this run's command without its workdir.

  Raises:
    WorkdirError: with the old and the new value, and a command that works.
  """
  if not path.exists():
    return
  if not (path / CONFIG).exists():
    foreign = [
      name
      for name in storage.list_directory(path)
      # What a killed run may leave of its first moments.
      if name != f'.{CONFIG}.tmp' and not name.startswith(_PROBE)
    ]
    if foreign:
      raise errors.WorkdirError(
        f'workdir={path}: has no {CONFIG} but other content '
        f'({foreign[0]}); choose an empty --workdir='
      )
    return
  old = dict(_leaves(read_config(path)))
  new = dict(_leaves(config))
  for name in sorted({*old, *new}, reverse=True):  # a key before its mapping
    before, after = old.get(name, '(absent)'), new.get(name, '(absent)')
    if before != after and not _may_change(name, before, after):
      raise errors.WorkdirError(
        f'workdir={path}: holds a run with {name}={before}, this one has '
        f'{name}={after}; run it elsewhere: {command} '
        f'--workdir={shlex.quote(str(_free_name(path)))}'
      )


def read_config(path: pathlib.Path) -> dict[str, Any]:
  """The resolved config that a workdir's run has.

  Raises:
    WorkdirError: where there is none, or none that can be read.
  """
  try:
    config = json.loads((path / CONFIG).read_text(encoding='utf-8'))
    if not isinstance(config, dict):
      raise ValueError('no mapping')
    return config
  except (FileNotFoundError, NotADirectoryError, ValueError) as error:
    raise errors.WorkdirError(
      f'{path / CONFIG}: not a readable config ({error}); is {path} a workdir?'
    ) from error


def _may_change(name: str, before: Any, after: Any) -> bool:
  if name == 'num_outer_steps':
    return isinstance(before, int) and after > before
  return name in fields.CADENCES


def _leaves(tree: Any, prefix: str = '') -> Iterator[tuple[str, Any]]:
  for key, value in tree.items():
    name = f'{prefix}{key}'
    if isinstance(value, Mapping) and value:
      yield from _leaves(value, f'{name}.')
    else:
      yield name, value


def _free_name(path: pathlib.Path) -> pathlib.Path:
  path, number = path if path.name else path.resolve(), 2
  while (free := pathlib.Path(f'{path}-{number}')).exists():
    number += 1
  return free
