"""File operations that reach the disk, and are repeated when they fail.

A fault of the storage may pass (a full disk that somebody empties, a network
file system that comes back). Every public function here is tried a few times
before it counts as failed, and so is every other that is `retried`: what they
write can be written again without harm.
"""

from collections.abc import Callable, Iterator
import contextlib
import functools
import hashlib
import json
import os
import pathlib
import threading
import time
from typing import Any, Concatenate, ParamSpec, TypeVar

from absl import logging

from metalr_flax import errors

RETRY_SECS = (0.05, 0.5, 2.0)
_CHUNK = 1 << 20
# They say what a path is. Nothing about that will pass.
_ANSWERS = (
  FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError,
)  # fmt: skip
P = ParamSpec('P')
T = TypeVar('T')


def retried(
  function: Callable[Concatenate[pathlib.Path, P], T],
) -> Callable[Concatenate[pathlib.Path, P], T]:
  """Decorates a function of a path: it is called again after an OSError.

  Calling it twice must be harmless. Where one such function calls another, the
  outer one alone is repeated, as a whole.
  """

  @functools.wraps(function)
  def call(path: pathlib.Path, *args: P.args, **kwargs: P.kwargs) -> T:
    return _retry(lambda: function(path, *args, **kwargs), path)

  return call


class _Attempt(threading.local):
  """Whether this thread is inside an action that is repeated if it fails."""

  under_way = False


_attempt = _Attempt()


def _retry(
  action: Callable[[], T],
  path: pathlib.Path,
  *,
  final: tuple[type[OSError], ...] = (),  # raised at once
) -> T:
  """Repeats an action until it works or time is up; warns with the path."""
  if _attempt.under_way:
    return action()
  _attempt.under_way = True
  try:
    return _repeat(action, path, final)
  finally:
    _attempt.under_way = False


def _repeat(
  action: Callable[[], T], path: pathlib.Path, final: tuple[type[OSError], ...]
) -> T:
  for delay in RETRY_SECS:
    try:
      return action()
    except final:
      raise
    except OSError as error:
      reason = ' '.join(str(error).split())[:200]
      logging.warning('%s: %s; trying again in %g s', path, reason, delay)
      time.sleep(delay)
  try:
    return action()
  except OSError as error:
    # Of what is done to an open file. (An error without a number, as Orbax's
    # are, would lose its own message to "[Errno None] None".)
    if error.filename is None and error.errno is not None:
      error.filename = str(path)
    raise


@contextlib.contextmanager
def ending_with_status_5(
  path: pathlib.Path, *, assurance: str = ''
) -> Iterator[None]:
  """Turns a fault of the storage into the error line that ends the command.

  Args:
    path: what the line names where the fault itself names no file.
    assurance: what the line says of earlier work, before the remedy.

  Raises:
    StorageError: for any OSError.
  """
  try:
    yield
  except OSError as error:
    raise errors.StorageError(
      f'{error.filename or path}: {error.strerror or error}; {assurance}mend '
      f'the storage and run the same command'
    ) from error


@retried
def open_directory(path: pathlib.Path) -> int:
  """Opens a directory; returns the descriptor, which the caller closes."""
  return os.open(path, os.O_RDONLY)


@retried
def sync_directory(path: pathlib.Path) -> None:
  """Puts a directory's names on the disk: a new file's, or a renamed one's."""
  descriptor = open_directory(path)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


@retried
def make_directory(path: pathlib.Path) -> None:
  """Makes a directory and those above it, their names on the disk as well."""
  missing = [p for p in (path, *path.parents) if not p.exists()]
  path.mkdir(parents=True, exist_ok=True)
  for made in reversed(missing):
    sync_directory(made.parent)


@retried
def list_directory(path: pathlib.Path) -> list[str]:
  """The names in a directory, sorted; none where it does not exist.

  (pathlib's `glob` takes any fault of the storage for an empty directory.)
  """
  try:
    return sorted(os.listdir(path))
  except (FileNotFoundError, NotADirectoryError):
    return []


@retried
def walk(path: pathlib.Path) -> tuple[list[str], list[str]]:
  """All files and all directories below a directory, by relative path."""

  def fail(error: OSError) -> None:
    raise error

  files: list[str] = []
  directories: list[str] = []
  for folder, inner, names in os.walk(path, onerror=fail):
    below = pathlib.Path(folder).relative_to(path)
    files += [str(below / name) for name in names]
    directories += [str(below / name) for name in inner]
  return sorted(files), sorted(directories)


@retried
def write_bytes(path: pathlib.Path, content: bytes) -> None:
  """Replaces a file as a whole: readers see the old one or the new one."""
  make_directory(path.parent)
  temporary = path.with_name(f'.{path.name}.tmp')
  with open(temporary, 'wb') as file:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, path)
  sync_directory(path.parent)


def read_json(path: pathlib.Path) -> Any:
  """What a JSON file holds; a file that is not there is looked for once.

  Raises:
    ValueError: where it is none, or nested too deeply to be read.
    OSError: where it cannot be read.
  """
  try:
    text = _retry(lambda: path.read_text('utf-8'), path, final=_ANSWERS)
    return json.loads(text)
  except RecursionError as error:
    raise ValueError('nested too deeply') from error


def write_json(path: pathlib.Path, value: Any) -> None:
  """Replaces a JSON file as a whole."""
  write_bytes(path, (json.dumps(value, indent=2) + '\n').encode())


@retried
def sync(path: pathlib.Path) -> None:
  """Puts a file that was written and closed on the disk."""
  with open(path, 'rb') as file:
    os.fsync(file.fileno())


@retried
def hash_and_sync(path: pathlib.Path) -> str:
  """The SHA-256 of a file, which is on the disk when this returns."""
  sha = hashlib.sha256()
  with open(path, 'rb') as file:
    os.fsync(file.fileno())
    while chunk := file.read(_CHUNK):
      sha.update(chunk)
  return sha.hexdigest()


class AppendFile:
  """A file that grows, from a known size on.

  Everything goes to an explicit offset, and what is not yet known to be on the
  disk is kept: after a fault, a failed fsync among them, it is written again.
  """

  def __init__(self, path: pathlib.Path, size: int):
    """Opens or makes the file and cuts it to `size` bytes."""
    self._path = path
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    self._descriptor = _retry(lambda: os.open(path, flags, 0o666), path)
    _retry(lambda: os.ftruncate(self._descriptor, size), path)
    sync_directory(path.parent)
    self._synced = size
    self._tail = bytearray()  # what follows the synced bytes
    self._written = 0  # of the tail
    self.closed = False

  def write(self, data: bytes) -> None:
    """Takes bytes; `push` hands them to the system."""
    self._tail += data

  def push(self) -> None:
    """Hands all bytes to the system, where readers see them."""
    _retry(self._push, self._path)

  def flush(self) -> None:
    """The same as `push`, by the name that writers call."""
    self.push()

  def sync(self) -> int:
    """Puts all bytes on the disk; returns the file's size."""

    def sync() -> None:
      self._push()
      try:
        os.fsync(self._descriptor)
      except OSError:
        self._written = 0  # the system may have dropped them: all anew
        raise

    _retry(sync, self._path)
    self._synced += len(self._tail)
    self._tail.clear()
    self._written = 0
    return self._synced

  def close(self) -> None:
    """Closes the file; what was not pushed is dropped."""
    if not self.closed:
      self.closed = True
      with contextlib.suppress(OSError):  # what counts was synced
        os.close(self._descriptor)

  def _push(self) -> None:
    while self._written < len(self._tail):
      rest = memoryview(self._tail)[self._written :]
      try:
        offset = self._synced + self._written
        self._written += os.pwrite(self._descriptor, rest, offset)
      finally:
        rest.release()
