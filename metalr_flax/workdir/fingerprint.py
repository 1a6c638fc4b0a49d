"""Describes a state and hashes it, to tell whether another is the same."""

from collections.abc import Mapping
import hashlib
from importlib import metadata
import pathlib
import platform
import sys
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from metalr_flax import errors

_DEVICES = 'devices'
_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'numpy')


def digest(state: Any) -> str:
  """SHA-256 of all leaves, with their paths, dtypes and shapes.

  It does not depend on how they are split over devices. Where other processes
  hold a part of one, all have to call this, and get the same.
  """
  sha = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf = jax.random.key_data(leaf)
    array = _whole(leaf)
    name = jax.tree_util.keystr(path)
    sha.update(f'{name} {array.dtype} {array.shape}'.encode())
    sha.update(array.tobytes())
  return sha.hexdigest()


def _whole(leaf: Any) -> np.ndarray:
  """A leaf on the host."""
  if (
    isinstance(leaf, jax.Array)
    and not leaf.is_fully_addressable
    and not leaf.is_fully_replicated
  ):
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(leaf, tiled=True)
  return np.asarray(leaf)


def describe(state: Any) -> dict[str, str]:
  """Every leaf's dtype and shape, by path."""
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): (
      f'{leaf.dtype}{list(leaf.shape)}'
    )
    for path, leaf in jax.tree_util.tree_leaves_with_path(state)
  }


def check_savable(values: Any, config: Mapping[str, Any]) -> None:
  """Refuses arrays that Orbax could not save or would not give back.

  Orbax tells leaves apart by their paths with dots between the parts, we by
  their paths with slashes. Better to say so before a long run than after it.

  Args:
    values: `params`, `model_state` and `data_state` of the first state.
    config: of the run, for the message.

  Raises:
    ConfigError: naming the variable.
  """
  seen = set()
  for path, leaf in jax.tree_util.tree_leaves_with_path(values):
    names = [
      jax.tree_util.keystr(path, simple=True, separator=s) for s in ('/', '.')
    ]
    twice = [name for i, name in enumerate(names) if (i, name) in seen]
    rule, remedy = '', ''
    if not np.size(leaf):
      rule = f'{names[0]} has no elements (shape {np.shape(leaf)})'
      remedy = 'leave it out: Orbax saves none such'
    elif str(jnp.result_type(leaf)) == 'uint4':
      rule, remedy = f'{names[0]} is uint4', 'take uint8: Orbax saves no uint4'
    elif twice:
      rule = f'two of its variables would be saved as {twice[0]}'
      remedy = 'give one of them another name'
    if rule:
      part = 'task' if names[0].startswith('data_state') else 'model'
      owner = config[part]['name']
      raise errors.ConfigError.of(f'{part}.name', owner, rule, remedy)
    seen |= {*enumerate(names)}


def environment() -> dict[str, str]:
  """Versions and devices, on which a result's last bits depend."""
  versions = {name: metadata.version(name) for name in _PACKAGES}
  device = jax.devices()[0]
  return {
    **versions,
    'machine': platform.machine(),
    'device': f'{device.platform} {device.device_kind}',
  }


def environment_of(state: Any) -> dict[str, str]:
  """The same, and how many devices a state lies on: '1', '8 (data 4, ...)'."""
  return {**environment(), _DEVICES: _placement(jax.tree.leaves(state)[0])}


def _placement(leaf: jax.Array) -> str:
  count = str(len(leaf.sharding.device_set))
  if not isinstance(leaf.sharding, jax.sharding.NamedSharding):
    return count
  sizes = leaf.sharding.mesh.shape.items()
  return f'{count} ({", ".join(f"{axis} {size}" for axis, size in sizes)})'


def versions() -> dict[str, str]:
  """What a run was made with, for its reader."""
  package = sys.modules[__name__.partition('.')[0]]
  return {
    package.__name__: package.__version__,
    'python': platform.python_version(),
    'orbax-checkpoint': metadata.version('orbax-checkpoint'),
    **environment(),
    _DEVICES: str(jax.device_count()),
  }


def warn_of_changes(saved: Mapping[str, str], state: Any) -> None:
  """Warns where the last bits may differ from those of the run saved.

  Args:
    saved: what `environment_of` said when it was saved.
    state: the one restored.
  """
  for name, now in environment_of(state).items():
    if saved.get(name) == now:
      continue
    if name == _DEVICES:
      logging.warning(
        'devices were %s when this was saved and are %s now: all values are '
        'the same to the bit; what follows adds in another order, and agrees '
        'to about 1e-5',
        saved.get(name), now,
      )  # fmt: skip
    else:
      logging.warning(
        '%s was %s when this run was saved and is %s now: the run goes on, but '
        'not with the same last bits', name, saved.get(name), now,
      )  # fmt: skip


def check_structure(
  path: pathlib.Path, saved: Mapping[str, str], wanted: Mapping[str, str]
) -> None:
  """Refuses a checkpoint whose leaves differ, by name; nothing is cast.

  Args:
    path: the checkpoint, for the message.
    saved: what `describe` said when it was saved.
    wanted: what it says of this program's state.

  Raises:
    WorkdirError: naming the first leaf that differs.
  """
  for name in sorted({*saved, *wanted}):
    before, now = saved.get(name, 'absent'), wanted.get(name, 'absent')
    if before != now:
      raise errors.WorkdirError(
        f'{path}: {name} is {before} there and {now} in this program; go on '
        f'with the code, data, versions and JAX_ENABLE_X64 that saved it, or '
        f'choose another --workdir='
      )
