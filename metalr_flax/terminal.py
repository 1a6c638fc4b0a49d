"""A line at the bottom of a terminal that is updated in place.

The only user of rich, whose thread redraws the line a few times a second: to
show something costs a run no more than to remember it. What is printed
meanwhile, to stdout or stderr, comes above the line. The cursor is never
hidden, so that no way of ending a program leaves it so.
"""

from collections.abc import Callable
import itertools
import sys
import time
from typing import Any, NamedTuple

from rich import console as rich_console
from rich import live
from rich import text as rich_text

_REDRAWS_PER_SECOND = 4
_BAR = 32  # its greatest width


class Parts(NamedTuple):
  """What the line says; what finds no room in it is left out.

  Attributes:
    head: how far the work is, in words.
    share: the same as a part of 1, for the bar; None for no bar.
    values: what is measured, the most important first.
    tail: the speed and the time.
  """

  head: str
  share: float | None = None
  values: tuple[str, ...] = ()
  tail: str = ''


class Line:
  """The line; there is one at a time."""

  def __init__(self) -> None:
    self._make: Callable[[], Parts] = lambda: Parts('')
    self._console = _Console(file=_Lenient(sys.stdout))
    self._live = live.Live(
      console=self._console,
      get_renderable=lambda: lay_out(
        self._make(), self._console.width, self._console.encoding
      ),
      refresh_per_second=_REDRAWS_PER_SECOND,
      redirect_stderr=sys.stderr is not None and sys.stderr.isatty(),
      transient=True,
    )

  def show(self, make: Callable[[], Parts]) -> None:
    """Shows from now on what `make` returns, which is called in a thread."""
    self._make = make
    if not self._live.is_started:
      self._live.start(refresh=True)

  def show_word(self, word: str) -> None:
    """Shows a word with the seconds since then."""
    begun = time.monotonic()
    self.show(lambda: Parts(f'{word} ... {duration(time.monotonic() - begun)}'))

  def fit(self, head: str, values: tuple[str, ...]) -> str:
    """A text of as many of the values as one line has room for."""
    room = self._console.width - len(head)
    return '  '.join([head, *_fitting(values, room)])

  def close(self) -> None:
    """Removes the line, and prints as before."""
    self._live.stop()


class _Console(rich_console.Console):
  """rich's, which leaves long lines to the terminal and the cursor visible."""

  def __init__(self, file: Any):
    super().__init__(
      file=file, force_terminal=True, soft_wrap=True, highlight=False
    )

  def show_cursor(self, show: bool = True) -> bool:
    """Does nothing: a killed run could not bring it back."""
    del show
    return False


class _Lenient:
  """A stream that may break off: a run goes on where its terminal is closed."""

  def __init__(self, stream: Any):
    self._stream = stream

  def write(self, text: str) -> int:
    """Writes what it can."""
    encoding = getattr(self._stream, 'encoding', None) or 'utf-8'
    text = text.encode(encoding, 'backslashreplace').decode(encoding)
    try:
      return self._stream.write(text)
    except (OSError, ValueError):
      return 0

  def flush(self) -> None:
    """Passes on what was written."""
    try:
      self._stream.flush()
    except (OSError, ValueError):
      return

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)


def lay_out(parts: Parts, width: int, encoding: str) -> rich_text.Text:
  """A line of at most `width - 1` letters: head, bar, values, tail.

  The bar gives way to the first two values.
  """
  room = width - 3 - len(parts.head) - len(parts.tail)
  least = 0 if parts.share is None else width // 20  # of the bar
  values = _fitting(parts.values, room - least - 1)
  if least and len(values) < min(2, len(parts.values)):
    least, values = 0, _fitting(parts.values, room)
  room -= sum(len(value) + 2 for value in values)
  line = rich_text.Text(parts.head, style='bold', no_wrap=True, end='')
  if least:
    line.append(' ')
    size = min(_BAR, max(least, room - 1))
    line.append_text(_draw_bar(parts.share or 0.0, size, encoding))
  for text, style in (*((v, 'not bold') for v in values), (parts.tail, 'dim')):
    line.append('  ' * bool(text)).append(text, style=f'not bold {style}')
  line.truncate(width - 1, overflow='crop')
  return line


def _fitting(values: tuple[str, ...], room: int) -> list[str]:
  """The first values, two blanks before each, that need no more than a room."""
  ends = itertools.accumulate(len(value) + 2 for value in values)
  return [v for v, end in zip(values, ends, strict=True) if end <= room]


def _draw_bar(share: float, size: int, encoding: str) -> rich_text.Text:
  try:
    done, left = '\u2501', '\u2500'  # a heavy and a light line
    done.encode(encoding)
  except (UnicodeEncodeError, LookupError):
    done, left = '#', '-'
  count = int(size * min(1.0, max(0.0, share)))
  bar = rich_text.Text(done * count, style='cyan')
  return bar.append(left * (size - count), style='dim')


def duration(seconds: float) -> str:
  """A time in its two greatest units: `48s`, `3m07s`, `2h05m`, `3d04h`."""
  whole = round(seconds)
  for unit, size, below, part in (
    ('d', 86400, 'h', 3600), ('h', 3600, 'm', 60), ('m', 60, 's', 1),
  ):  # fmt: skip
    if whole >= size:
      return f'{whole // size}{unit}{whole % size // part:02}{below}'
  return f'{whole}s'
