"""The flags that say where the processes of a run find each other."""

import dataclasses
import re
from typing import Any

from absl import flags

from metalr_flax import errors

_WHERE = ('coordinator', 'num_processes', 'process_id')
NAMES = ('distributed', *_WHERE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster:
  """Where the processes of a run find each other.

  Attributes:
    coordinator: `host:port`, where process 0 listens; None for all that the
      environment says (Slurm, Open MPI, Kubernetes, a TPU pod).
    num_processes: how many there are.
    process_id: the number of this one, from 0.
  """

  coordinator: str | None = None
  num_processes: int | None = None
  process_id: int | None = None


def define(values: flags.FlagValues) -> None:
  """Adds the flags to those of a command."""
  flags.DEFINE_bool(
    'distributed', False, 'one of several processes', flag_values=values
  )
  flags.DEFINE_string(
    'coordinator', None, 'host:port of process 0', flag_values=values
  )
  flags.DEFINE_integer(
    'num_processes', None, 'how many there are', flag_values=values
  )
  flags.DEFINE_integer(
    'process_id', None, 'the number of this one', flag_values=values
  )


def read(values: flags.FlagValues) -> Cluster | None:
  """What the flags say; None for a run of one process.

  Raises:
    ConfigError: naming the flag that is wrong.
  """
  given: dict[str, Any] = {name: values[name].value for name in _WHERE}
  named = [name for name, value in given.items() if value is not None]
  if not values['distributed'].value:
    if named:
      raise errors.ConfigError.of(
        named[0],
        given[named[0]],
        'is for a run of several processes',
        'add --distributed, or leave it out',
      )
    return None
  if not named:
    return Cluster()
  for name in _WHERE:
    if given[name] is None:
      raise errors.ConfigError.of(
        named[0],
        given[named[0]],
        f'needs --{name}= beside it',
        'give all three, or none where the environment has them',
      )
  cluster = Cluster(**given)
  _check(given['coordinator'], given['num_processes'], given['process_id'])
  return cluster


def _check(coordinator: str, num_processes: int, process_id: int) -> None:
  match = re.fullmatch(r'(\S+):(\d{1,5})', coordinator)
  if not match or not 0 < int(match[2]) < 2**16:
    raise errors.ConfigError.of(
      'coordinator',
      coordinator,
      'must be host:port',
      'the host of process 0 and a free port of it, e.g. 10.0.0.1:8476',
    )
  if num_processes < 1:
    raise errors.ConfigError.of(
      'num_processes', num_processes, 'must be 1 or more', 'count them all'
    )
  if not 0 <= process_id < num_processes:
    raise errors.ConfigError.of(
      'process_id',
      process_id,
      f'must be 0 to {num_processes - 1}',
      'each process has a number of its own below num_processes',
    )
