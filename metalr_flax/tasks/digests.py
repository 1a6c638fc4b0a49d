"""Tells whether a user's files are still those that a run was trained on."""

from collections.abc import Iterable
import pathlib
import zlib

import jax
import jax.numpy as jnp

_BLOCK = 2**20
# The key of it in a task's `data_state`, where every checkpoint keeps it.
KEY = 'files_crc32'


def id_of(paths: Iterable[str | pathlib.Path]) -> dict[str, jax.Array]:
  """What a task's `data_state` has beside its position, to know its data by.

  Args:
    paths: the user's files, in an order of their own.

  Returns:
    `{KEY: uint32}`, a checksum of the files and their names; `{}` for none.
  """
  checksum, paths = 0, [*paths]
  for path in paths:
    checksum = zlib.crc32(bytes(pathlib.Path(path)), checksum)
    with open(path, 'rb') as file:
      while block := file.read(_BLOCK):
        checksum = zlib.crc32(block, checksum)
  return {KEY: jnp.uint32(checksum)} if paths else {}
