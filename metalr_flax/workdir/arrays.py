"""The only user of Orbax: writes a state's arrays to a folder and reads them.

Orbax takes some paths for patterns or for addresses, TensorStore below it
shortens `..` without regard to links: what is given to them is the real path,
of a class of its own.
"""

from collections.abc import Iterator
import contextlib
import fnmatch
import logging as python_logging
import os
import pathlib
import re
from typing import Any

from absl import logging
from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from metalr_flax import errors
from metalr_flax.workdir import files
from metalr_flax.workdir import fingerprint

_ITEM = 'state'
# Each holds the machine's own path, and is read on no local file system.
_COMMITTED = 'commit_success.txt'
_EPath: Any = type(epath.Path('/'))


class OrbaxError(OSError):
  """Any error of Orbax, which raises many kinds, bare Exceptions among them."""


class _LiteralPath(_EPath):
  """A path that is never a pattern.

  Orbax looks for its own files with `glob`, which takes a folder `lr[0.1]` for
  `lr0` and a fault of the storage for an empty folder. It then leaves half of
  a checkpoint out, with a warning.
  """

  def glob(self, pattern: str) -> Iterator['_LiteralPath']:
    """The files whose names match the last part of `pattern`."""
    below, _, name = pattern.rpartition('/')
    folder = self / below
    found = fnmatch.filter(files.list_directory(folder), name)
    return iter([folder / each for each in found])


def _literal(path: pathlib.Path) -> _LiteralPath:
  real = os.path.realpath(path)
  literal = _LiteralPath(real)
  # A folder /gs or /s3 would be taken for a bucket of that cloud.
  return literal if os.fspath(literal) == real else _LiteralPath(f'/..{real}')


def save(folder: pathlib.Path, state: Any) -> None:
  """Writes the arrays of a state into a new folder.

  Where there are several processes, all have to call it; each writes its share.

  Args:
    folder: the folder, which must not exist.
    state: a pytree of arrays.

  Raises:
    OSError: where Orbax or the storage fails, or Orbax warns of something.
  """
  with (
    _orbax_errors(),
    _warnings_refused(),
    ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as writer,
  ):
    writer.save(
      _literal(folder),
      args=ocp.args.Composite(**{_ITEM: ocp.args.StandardSave(state)}),
    )
  for name in files.walk(folder)[0] if jax.process_index() == 0 else ():
    if pathlib.Path(name).name == _COMMITTED:
      (folder / name).unlink()


def sync(folder: pathlib.Path) -> None:
  """Puts on the disk what this host has written to a folder that was saved.

  Raises:
    OSError: where the storage fails.
  """
  for name in files.walk(folder)[0]:
    if pathlib.Path(name).name != _COMMITTED:
      files.sync(folder / name)


def restore(folder: pathlib.Path, template: Any) -> Any:
  """Reads a state, new arrays on the devices of the template's.

  Each process reads what its own devices hold, and waits for no other.

  Args:
    folder: where `save` wrote it.
    template: a state of the same structure, shapes and dtypes.

  Raises:
    OSError: where Orbax or the storage fails.
  """
  abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
  return jax.tree.map(_uncommitted, _restore(folder, abstract))


def _restore(folder: pathlib.Path, abstract: Any) -> Any:
  # A new reader each time: after a failure it refuses good steps as well.
  alone = _alone()
  handler = ocp.CompositeCheckpointHandler(
    composite_options=ocp.CompositeOptions(multiprocessing_options=alone)
  )
  with (
    _orbax_errors(),
    ocp.Checkpointer(handler, multiprocessing_options=alone) as reader,
  ):
    restored = reader.restore(
      _literal(folder),
      args=ocp.args.Composite(**{_ITEM: ocp.args.StandardRestore(abstract)}),
    )
  return restored[_ITEM]


def _alone() -> ocp.options.MultiprocessingOptions:
  """Options of a reader that waits for no other process."""
  if jax.process_count() == 1:
    return ocp.options.MultiprocessingOptions()
  index = jax.process_index()
  return ocp.options.MultiprocessingOptions(
    primary_host=index, active_processes={index}
  )


def _uncommitted(leaf: jax.Array) -> jax.Array:
  """A leaf without a device and a fixed layout, as the first state's are.

  (The compiled run refuses an int4 array that Orbax has put on one.)
  """
  key = jnp.issubdtype(leaf.dtype, jax.dtypes.extended)
  several = len(leaf.sharding.device_set) > 1
  return leaf if key or several else jnp.asarray(np.asarray(leaf))


def check_complete(folder: pathlib.Path, state: Any) -> None:
  """Reads every stored value of a state just saved, without decoding it.

  That takes about a hundredth of the time of the save, and fails where any
  file that a restore needs is missing or too short.

  Args:
    folder: where `save` wrote the state.
    state: that state.

  Raises:
    OrbaxError: where an array is not all there.
    OSError: where the storage does not answer.
  """
  with _orbax_errors():
    for name in {f'{_ITEM}/_METADATA', *files.walk(folder)[0]}:
      if _is_metadata(name):
        files.read_json(folder / name)
    heads, chunks = _read_names(folder / _ITEM)
  count = len(jax.tree.leaves(state))
  if not len(heads) == len(chunks) == len(heads & chunks) == count:
    raise OrbaxError(
      f'only {len(heads & chunks)} of {count} arrays can be read back'
    )


def _is_metadata(name: str) -> bool:
  """Whether a file is JSON of Orbax's own; all others are TensorStore's."""
  parts = pathlib.PurePath(name).parts
  return parts[-1].startswith('_') or 'array_metadatas' in parts


def _read_names(folder: pathlib.Path) -> tuple[set[bytes], set[bytes]]:
  """Names of the arrays that have a description, and of those with values."""
  base = {'driver': 'file', 'path': f'{os.path.realpath(folder)}/'}
  spec = {'driver': 'ocdbt', 'base': base}
  store = tensorstore.KvStore.open(spec).result()
  heads: set[bytes] = set()
  chunks: set[bytes] = set()
  for key in store.list().result():
    # Raises where its file is too short; empty where there is no such file.
    if store.read(key).result().value:
      name, _, part = key.rpartition(b'/')
      (heads if part == b'.zarray' else chunks).add(name)
  return heads, chunks


def check_equal(folder: pathlib.Path, state: Any, sha256: str) -> None:
  """Restores a state just saved and compares every bit.

  On the host: the device may have no room for another one.

  Args:
    folder: where `save` wrote the state.
    state: that state.
    sha256: its `fingerprint.digest`.

  Raises:
    OrbaxError: where it does not restore to the same bits.
    OSError: where the storage does not answer.
  """
  found = _restore(folder, jax.tree.map(_on_host, state))
  if fingerprint.digest(found) != sha256:
    raise OrbaxError('the arrays read back are not those that were saved')


def _on_host(leaf: jax.Array) -> Any:
  """A template that asks Orbax for a NumPy array; it takes no memory itself."""
  if jnp.issubdtype(leaf.dtype, jax.dtypes.extended):  # a key is small
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)
  return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)


@contextlib.contextmanager
def _orbax_errors() -> Iterator[None]:
  try:
    yield
  except OSError:
    raise
  except jax.errors.JaxRuntimeError as error:
    if jax.process_count() > 1:  # another one is gone: no fault of the storage
      raise
    raise OrbaxError(reason(error)) from error
  except Exception as error:
    raise OrbaxError(reason(error)) from error


class _Warnings(python_logging.Handler):
  """Collects Orbax's warnings from all of its threads."""

  def __init__(self) -> None:
    super().__init__(python_logging.WARNING)
    self.found: list[str] = []

  def emit(self, record: python_logging.LogRecord) -> None:
    """Keeps a message of Orbax's."""
    if f'{os.sep}orbax{os.sep}' in record.pathname:
      self.found.append(record.getMessage())


@contextlib.contextmanager
def _warnings_refused() -> Iterator[None]:
  """Raises Orbax's warnings: it warns when it leaves something out."""
  warnings = _Warnings()
  logger = logging.get_absl_logger()
  logger.addHandler(warnings)
  try:
    yield
  finally:
    logger.removeHandler(warnings)
  if warnings.found:
    raise OrbaxError(f'Orbax warns: {_one_line(warnings.found[0])}')


def reason(error: BaseException) -> str:
  """An exception's message on one line, without its middle where it is long.

  TensorStore adds the whole specification of what it was about to do.
  """
  return _one_line(re.split(r' \[tensorstore_spec', errors.text_of(error))[0])


def _one_line(text: str) -> str:
  line = ' '.join(text.split())
  return line if len(line) <= 300 else f'{line[:180]} ... {line[-115:]}'
