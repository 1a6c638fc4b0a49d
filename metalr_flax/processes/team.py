"""The team of a run's processes, and how they agree on what comes next.

All of them run the same program. Where one may see what another does not, a
file, a signal, a measured time, they agree before they go on: otherwise one
would wait for ever in a computation that the others never begin.
"""

from collections.abc import Callable
import json
from typing import Any, Protocol, TypeVar

from metalr_flax import errors

T = TypeVar('T')
# Raised in every process alike, beside those that are asked for.
_SHARED = (errors.MetalrError, OSError)


class Exchange(Protocol):
  """Gives a text to all processes and takes one from each of them."""

  def __call__(self, text: str) -> list[str]:
    """The texts of all processes, in their order."""


class Team:
  """The processes of a run.

  A team of one agrees with itself and exchanges nothing.

  Attributes:
    index: the number of this process.
    count: how many processes there are.
  """

  def __init__(
    self, index: int = 0, count: int = 1, exchange: Exchange | None = None
  ):
    """Makes a team.

    Args:
      index: the number of this process.
      count: how many processes there are.
      exchange: see `Exchange`; not needed by one process.
    """
    self.index = index
    self.count = count
    self._exchange = exchange

  @property
  def leads(self) -> bool:
    """Whether this is process 0, which alone writes a run's own files."""
    return self.index == 0

  def gather(self, value: Any) -> list[Any]:
    """The values of all processes in their order; JSON values."""
    if self._exchange is None:
      return [value]
    return [json.loads(text) for text in self._exchange(json.dumps(value))]

  def first(self, action: Callable[[], T], *kinds: type[Exception]) -> T:
    """Lets process 0 alone do something.

    Args:
      action: what it does; returns JSON values.
      *kinds: exceptions to be raised in all processes, beside a MetalrError or
        an OSError.

    Returns:
      What it returned, in all processes.
    """
    if self._exchange is None:
      return action()
    kinds = (*kinds, *_SHARED)
    if not self.leads:
      value, failure = self.gather(None)[0]
      if failure:
        raise _error(failure, kinds)
      return value
    try:
      value = action()
    except kinds as error:
      self.gather([None, _failure(error, kinds)])
      raise
    self.gather([value, None])
    return value

  def each(self, action: Callable[[], T], *kinds: type[Exception]) -> T:
    """Lets every process do something that may fail in some of them.

    Args:
      action: what each does; not together with the others.
      *kinds: see `first`.

    Returns:
      What this process's returned.
    """
    if self._exchange is None:
      return action()
    kinds = (*kinds, *_SHARED)
    value, raised = None, None
    try:
      value = action()
    except kinds as error:
      raised = error
    failures = self.gather(raised and _failure(raised, kinds))
    for index, failure in enumerate(failures):
      if failure and index == self.index and raised:
        raise raised
      if failure:
        raise _error([failure[0], f'process {index}: {failure[1]}'], kinds)
    return value  # type: ignore[return-value]


ALONE = Team()


def _failure(
  error: BaseException, kinds: tuple[type[Exception], ...]
) -> list[Any]:
  """What the other processes need to raise the same."""
  if isinstance(error, errors.MetalrError):
    return [type(error).__name__, str(error)]
  place = next(i for i, kind in enumerate(kinds) if isinstance(error, kind))
  return [place, errors.text_of(error)]


def _error(failure: list[Any], kinds: tuple[type[Exception], ...]) -> Exception:
  kind, text = failure
  return (getattr(errors, kind) if isinstance(kind, str) else kinds[kind])(text)
