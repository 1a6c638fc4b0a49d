"""The manifest of a directory: its files, with the SHA-256 of each.

Orbax loads a large array with a flipped bit without a word, and takes an empty
directory for a checkpoint. The manifest is written last: a directory without
one was never finished.
"""

from collections.abc import Mapping
import errno
import hashlib
import json
import os
import pathlib
import stat
from typing import Any

from metalr_flax.workdir import files as files_lib

NAME = 'manifest.json'


class DamagedError(Exception):
  """A file of a sealed directory is not what its manifest says."""


def seal(directory: pathlib.Path, name: str, notes: Mapping[str, Any]) -> None:
  """Puts a directory on the disk: its files, then its manifest, then itself.

  Args:
    directory: all of its files are written.
    name: what it will be called.
    notes: JSON values to keep in the manifest.
  """
  names, directories = files_lib.walk(directory)
  files = {path: files_lib.hash_and_sync(directory / path) for path in names}
  for path in directories:
    files_lib.sync_directory(directory / path)
  content = {
    'name': name,
    'files': files,
    'directories': directories,
    'notes': dict(notes),
  }
  with open(directory / NAME, 'wb') as file:
    file.write(_encode(content))
    file.flush()
    os.fsync(file.fileno())
  files_lib.sync_directory(directory)


def verify(directory: pathlib.Path) -> dict[str, Any]:
  """Reads every file of a sealed directory and compares.

  Returns:
    The notes.

  Raises:
    DamagedError: naming the file and what is wrong with it.
    OSError: where the storage does not answer.
  """
  content = _read(directory)
  check_fields(content, {'name': str, 'files': dict, 'notes': dict})
  if content['name'] != directory.name:
    raise DamagedError(f'{NAME} is that of {content["name"]}')
  found, directories = files_lib.walk(directory)
  # The first manifests of release 0.1 list files alone.
  listed = content.setdefault('directories', directories)
  check_fields(content, {'directories': list})
  for name in sorted({*map(str, listed)} ^ {*directories}):
    what = 'does not belong there' if name in directories else 'is missing'
    raise DamagedError(f'{name} {what}')
  for name in sorted({*content['files'], *found} - {NAME}):
    if name not in content['files']:
      raise DamagedError(f'{name} does not belong there')
    if name not in found:
      raise DamagedError(f'{name} is missing')
    if _hash(directory / name) != content['files'][name]:
      raise DamagedError(f'{name} is not as it was written')
  return content['notes']


def check_fields(values: Mapping[str, Any], kinds: Mapping[str, type]) -> None:
  """Refuses a manifest without a field, or with one of another type.

  Raises:
    DamagedError: naming the field.
  """
  for name, kind in kinds.items():
    if not isinstance(values.get(name), kind):
      raise DamagedError(f'{NAME} has no {kind.__name__} {name}')


def _hash(path: pathlib.Path) -> str | None:
  if not _is_file(path):
    return None
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _is_file(path: pathlib.Path) -> bool:
  """False for a link to nowhere, and for a pipe: reading it may never end."""
  try:
    return stat.S_ISREG(os.stat(path).st_mode)
  except (FileNotFoundError, NotADirectoryError):
    return False
  except OSError as error:  # a fault of the storage is none of the file
    if error.errno == errno.ELOOP:
      return False
    raise


def _read(directory: pathlib.Path) -> dict[str, Any]:
  if not _is_file(directory / NAME):
    raise DamagedError(f'{NAME} is missing')
  raw = (directory / NAME).read_bytes()
  try:
    content = json.loads(raw)
    content.pop('sha256')
    if _encode(content) == raw:
      return content
  except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
    pass
  raise DamagedError(f'{NAME} is not as it was written')


def _encode(content: dict[str, Any]) -> bytes:
  """JSON with a digest of its own: the same content is the same bytes."""
  body = json.dumps(content, sort_keys=True)
  sha256 = hashlib.sha256(body.encode()).hexdigest()
  text = json.dumps({**content, 'sha256': sha256}, sort_keys=True, indent=1)
  return text.encode() + b'\n'
