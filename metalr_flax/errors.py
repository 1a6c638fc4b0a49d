"""Exceptions that end a run, each with the exit status of its kind.

The message of every one is a single line: what was wrong (a field or a file),
the rule it broke and the remedy. Nothing here is for bugs: those keep their
traceback and status 1.
"""

from collections.abc import Callable
import contextlib
import sys


class MetalrError(Exception):
  """Base class: a run that must end with `status` and one line on stderr."""

  status = 1

  def __str__(self) -> str:
    return ' '.join(super().__str__().split())


class ConfigError(MetalrError):
  """A bad flag or config field, or a workdir that cannot be written."""

  status = 2

  @classmethod
  def of(cls, field: str, value: object, rule: str, hint: str) -> 'ConfigError':
    """The error line `<field>=<value>: <rule>; <hint>`."""
    return cls(f'{field}={value}: {rule}; {hint}')


class WorkdirError(MetalrError):
  """The workdir is in use, is foreign, or belongs to another config."""

  status = 3


class DivergedError(MetalrError):
  """Training met a number that is not finite."""

  status = 4


class StorageError(MetalrError):
  """Files could not be written any more while the run was under way."""

  status = 5


class NoCheckpointError(MetalrError):
  """There are checkpoints, but none of them is intact."""

  status = 6


class Interrupted(MetalrError):
  """SIGTERM or SIGINT came; the state is saved and the run can go on."""

  status = 75


def status_of(command: Callable[[], None]) -> int:
  """Runs a command line's work and returns its exit status.

  What ends it early is one line on stderr.

  Args:
    command: the work; a MetalrError of any kind may come out of it.
  """
  try:
    command()
  except MetalrError as error:
    kind = 'interrupted' if isinstance(error, Interrupted) else 'error'
    with contextlib.suppress(OSError):  # stderr may be on the disk that is full
      print(f'metalr_flax: {kind}: {error}', file=sys.stderr)
    return error.status
  return 0
