"""Exceptions that end a run, each with the exit status of its kind.

The message of every one is a single line: what was wrong (a field or a file),
the rule it broke and the remedy. Nothing here is for bugs: those keep their
traceback and status 1.
"""

from collections.abc import Callable, Iterator
import contextlib
import os
import sys


class MetalrError(Exception):
  """Base class of what ends a command with `status` and one line on stderr."""

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
  """A file could not be read or written while the run was under way."""

  status = 5


class DataError(StorageError):
  """Data that are read as the run goes ended, or are not what they were."""


class NoCheckpointError(MetalrError):
  """There are checkpoints, but none of them is intact."""

  status = 6


class LostProcessError(MetalrError):
  """Another process of the run was killed, or cannot be reached any more."""

  status = 7


class OtherProcessError(MetalrError):
  """Another process of the run ended, with the `status` given here."""

  def __init__(self, message: str, status: int):
    super().__init__(message)
    self.status = status


class Interrupted(MetalrError):
  """A signal asked to stop; the state is saved and the run can go on."""

  status = 75


def text_of(error: BaseException) -> str:
  """The message of an exception, `no message` where it has none."""
  try:
    return str(error) or 'no message'
  except Exception:  # raised by a class of the user's own
    return 'no message'


@contextlib.contextmanager
def exits_refused(what: str) -> Iterator[None]:
  """Turns `sys.exit()` in the user's own code into an error line.

  It would end the command with status 0 and nothing done.

  Args:
    what: the field or file whose code runs here, for the message.

  Raises:
    ConfigError: where that code raises SystemExit or GeneratorExit.
  """
  try:
    yield
  except (SystemExit, GeneratorExit) as error:
    raise ConfigError(
      f'{what}: its code ends the program ({type(error).__name__}: '
      f'{text_of(error)}); raise an exception there that says what is wrong'
    ) from error


def status_of(command: Callable[[], None]) -> int:
  """Runs a command and returns its exit status.

  An error that ends it early is printed as one line on stderr.

  Args:
    command: the work; a MetalrError of any kind may come out of it.
  """
  try:
    command()
    return 0
  except MetalrError as error:
    kind = 'interrupted' if isinstance(error, Interrupted) else 'error'
    with contextlib.suppress(OSError):  # stderr may be on the disk that is full
      print(f'metalr_flax: {kind}: {error}', file=sys.stderr)
    return error.status
  finally:
    drop_broken_streams()


def drop_broken_streams() -> None:
  """Replaces a stdout or stderr that cannot be written by the null device.

  Otherwise Python would end with status 120, because at its end it writes what
  is left in them: the terminal may be closed, or the disk full.
  """
  for name in ('stdout', 'stderr'):
    stream = getattr(sys, name)
    try:
      if stream is not None:  # of a process without such a descriptor
        stream.flush()
    except (OSError, ValueError):
      setattr(sys, name, open(os.devnull, 'w'))  # noqa: SIM115
