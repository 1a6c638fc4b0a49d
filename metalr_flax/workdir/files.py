"""Files that survive: on the disk when we say so, and tried again on a fault.

A fault of the storage may pass (a full disk that somebody empties, a network
file system that comes back). Whatever is written here can be written again
without harm, so each operation is tried a few times before it counts as failed.
"""

from collections.abc import Callable
import contextlib
import hashlib
import json
import os
import pathlib
import time
from typing import Any, TypeVar

from absl import logging

RETRY_SECS = (0.05, 0.5, 2.0)
_CHUNK = 1 << 20
T = TypeVar('T')


def retried(action: Callable[[], T], path: pathlib.Path) -> T:
  """Does something that may be done again, until it works or time is up.

  Args:
    action: what to do; doing it twice must be harmless.
    path: for the warning.

  Returns:
    What the action returns.
  """
  for delay in RETRY_SECS:
    try:
      return action()
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


def sync_directory(path: pathlib.Path) -> None:
  """Puts a directory's names on the disk: a new file's, or a renamed one's."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def make_directory(path: pathlib.Path) -> None:
  """Makes a directory and those above it, their names on the disk as well."""
  missing = [p for p in (path, *path.parents) if not p.exists()]
  path.mkdir(parents=True, exist_ok=True)
  for made in reversed(missing):
    sync_directory(made.parent)


def list_directory(path: pathlib.Path) -> list[str]:
  """The names in a directory, sorted; none where it does not exist.

  (pathlib's `glob` takes any fault of the storage for an empty directory.)
  """
  try:
    return sorted(os.listdir(path))
  except (FileNotFoundError, NotADirectoryError):
    return []


def walk(path: pathlib.Path) -> tuple[list[str], list[str]]:
  """All files and all directories below a directory, by relative path."""

  def fail(error: OSError) -> None:
    raise error

  files: list[str] = []
  directories: list[str] = []
  for folder, inner, names in os.walk(path, onerror=fail):
    place = pathlib.Path(folder).relative_to(path)
    files += [str(place / name) for name in names]
    directories += [str(place / name) for name in inner]
  return sorted(files), sorted(directories)


def write_bytes(path: pathlib.Path, content: bytes) -> None:
  """Replaces a file as a whole: readers see the old one or the new one."""

  def write() -> None:
    make_directory(path.parent)
    temporary = path.with_name(f'.{path.name}.tmp')
    with open(temporary, 'wb') as file:
      file.write(content)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_directory(path.parent)

  retried(write, path)


def read_json(path: pathlib.Path) -> Any:
  """What a JSON file holds.

  Raises:
    ValueError: where it is none, or nested too deeply to be read.
    OSError: where it cannot be read.
  """
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except RecursionError as error:
    raise ValueError('nested too deeply') from error


def write_json(path: pathlib.Path, value: Any) -> None:
  """Replaces a JSON file as a whole."""
  write_bytes(path, (json.dumps(value, indent=2) + '\n').encode())


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

  Everything goes to an explicit place, and what is not yet known to be on the
  disk is kept: after a fault, a failed fsync among them, it is written again.
  """

  def __init__(self, path: pathlib.Path, size: int):
    """Opens or makes the file and cuts it to `size` bytes."""
    self._path = path
    self._descriptor = retried(
      lambda: os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), path
    )
    retried(lambda: os.ftruncate(self._descriptor, size), path)
    retried(lambda: sync_directory(path.parent), path)
    self._synced = size
    self._tail = bytearray()  # what follows the synced bytes
    self._written = 0  # of the tail
    self.closed = False

  def write(self, data: bytes) -> None:
    """Takes bytes; `push` hands them to the system."""
    self._tail += data

  def push(self) -> None:
    """Hands all bytes to the system, where readers see them."""
    retried(self._push, self._path)

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

    retried(sync, self._path)
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
        place = self._synced + self._written
        self._written += os.pwrite(self._descriptor, rest, place)
      finally:
        rest.release()
