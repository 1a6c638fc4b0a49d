"""Refuses processes that were not started as one run: they would not agree."""

from collections.abc import Mapping
from importlib import metadata
import platform
from typing import Any

from metalr_flax import errors
from metalr_flax.config import schema
from metalr_flax.processes import team as team_lib

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'numpy', 'orbax-checkpoint')
_ABSENT = 'none'


def check(team: team_lib.Team, config: Mapping[str, Any], workdir: str) -> None:
  """Compares what the processes were started with.

  Args:
    team: the processes.
    config: resolved.
    workdir: where process 0 writes.

  Raises:
    ConfigError: in all processes alike, naming the first difference.
  """
  if team.count == 1:
    return
  packages = {name: metadata.version(name) for name in _PACKAGES}
  mine = {
    **dict(schema.flatten(config)),
    'workdir': workdir,
    'metalr_flax': metadata.version('metalr_flax'),
    'python': platform.python_version(),
    **packages,
  }
  first, *others = team.gather(mine)
  for index, other in enumerate(others, 1):
    for name in {**first, **other}:
      here, there = (found.get(name, _ABSENT) for found in (first, other))
      if here != there:
        raise errors.ConfigError.of(
          name,
          here,
          f'is {there} in process {index}; all processes of a run need the '
          f'same config, workdir and versions',
          'start all with the same command and environment',
        )
