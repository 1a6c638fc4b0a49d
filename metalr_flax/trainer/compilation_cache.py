"""Keeps compiled programs between starts, in a folder of the user's.

JAX reads and writes the entries; this file chooses the folder, keeps its size
in bounds and removes entries that a kill has torn. Nothing that goes wrong here
is an error: a run without the cache compiles, as the first one does.
"""

from collections.abc import Iterator, Mapping
import contextlib
import hashlib
import os
import pathlib
import platform
import warnings
import zlib

import jax

MAX_BYTES = 1 << 30
_FOLDER = 'metalr_flax/compiled'
_ZSTD = b'\x28\xb5\x2f\xfd'
_CHECKED = 'checked'  # its time: what is older was found whole


def enable() -> pathlib.Path | None:
  """Lets this process keep what it compiles for the next one.

  A folder that the user gives JAX (`JAX_COMPILATION_CACHE_DIR`) stays as it is,
  and so does `JAX_ENABLE_COMPILATION_CACHE=false`, which turns all of it off.

  Returns:
    The folder in use, None where JAX's own settings or the disk say otherwise.
  """
  if 'JAX_COMPILATION_CACHE_DIR' in os.environ or _decided():
    return None
  folder = _folder(os.environ)
  if folder is None or not _is_usable(folder):
    return None
  with contextlib.suppress(OSError):
    tidy(folder, MAX_BYTES)
  for name, value in {
    'jax_compilation_cache_dir': str(folder),
    'jax_persistent_cache_min_compile_time_secs': 0.0,
    'jax_persistent_cache_min_entry_size_bytes': -1,
  }.items():
    jax.config.update(name, value)
  warnings.filterwarnings(
    'ignore', 'Error (reading|writing) persistent compilation cache'
  )
  return folder


def _decided() -> bool:
  """Whether JAX has a folder already, or is to have none."""
  values = jax.config.values
  given = values.get('jax_compilation_cache_dir')
  return bool(given) or not values.get('jax_enable_compilation_cache', True)


def _folder(environment: Mapping[str, str]) -> pathlib.Path | None:
  """The user's own; one for each kind of CPU that shares the home folder."""
  given = environment.get('XDG_CACHE_HOME', '')
  try:
    base = pathlib.Path(given if os.path.isabs(given) else '~/.cache')
    return base.expanduser() / _FOLDER / _machine()
  except RuntimeError:  # there is no home
    return None


def _machine() -> str:
  """A name for this CPU: code for another one may be illegal on it."""
  features = [platform.machine()]
  with contextlib.suppress(OSError), open('/proc/cpuinfo') as file:
    lines = (line.partition(':') for line in file)
    named = {key.strip(): value.strip() for key, _, value in lines}
    features += [named.get('model name', ''), named.get('flags', '')]
  return hashlib.sha256('\n'.join(features).encode()).hexdigest()[:12]


def _is_usable(folder: pathlib.Path) -> bool:
  """Makes the folder, for this user alone; whether it can be written."""
  try:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return os.access(folder, os.R_OK | os.W_OK | os.X_OK)
  except OSError:
    return False


def tidy(folder: pathlib.Path, max_bytes: int) -> None:
  """Removes torn entries, and the oldest where they are too many.

  Args:
    folder: of the entries.
    max_bytes: how much may stay.

  Raises:
    OSError: where the folder cannot be read or written.
  """
  checked = folder / _CHECKED
  since = checked.stat().st_mtime if checked.exists() else 0.0
  checked.touch()  # before the look: what is written meanwhile is for the next
  size = 0
  for entry, stat in _entries(folder):
    torn = stat.st_mtime >= since and not _is_whole(entry)
    size += stat.st_size
    if torn or size > max_bytes:
      entry.unlink(missing_ok=True)


def _entries(
  folder: pathlib.Path,
) -> Iterator[tuple[pathlib.Path, os.stat_result]]:
  """All entries, what was used last first."""
  found = []
  for entry in folder.glob('*-cache'):
    with contextlib.suppress(FileNotFoundError):  # another run's tidying
      found.append((entry, entry.stat()))
  yield from sorted(found, key=lambda item: -_used(item[1]))


def _used(stat: os.stat_result) -> float:
  return max(stat.st_atime, stat.st_mtime)


def _is_whole(entry: pathlib.Path) -> bool:
  """False for what a kill cut short; JAX would read it in vain for ever."""
  content = entry.read_bytes()
  try:
    # JAX compresses with zstd where that is installed: nobody can tell here.
    return content.startswith(_ZSTD) or bool(zlib.decompress(content))
  except zlib.error:
    return False
