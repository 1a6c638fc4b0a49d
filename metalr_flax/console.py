"""The lines on stdout and stderr that tell a person how a run goes."""

import collections
from collections.abc import Callable, Mapping
import datetime
import functools
import logging as python_logging
import os
import sys
import time
from typing import Any, TYPE_CHECKING

from absl import flags
from absl import logging

if TYPE_CHECKING:
  from metalr_flax import terminal

_SHOWN = ('loss', 'accuracy', 'learning_rate')
_muted = False


def set_up_logging() -> None:
  """Sends the log to stderr: our lines and CLU's, warnings of all others."""
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # or absl remarks on it at the first line
  logging.use_absl_handler()
  logging.set_verbosity(logging.INFO)
  logging.get_absl_handler().addFilter(_is_for_people)
  logging.get_absl_handler().setFormatter(_Plain())
  if not isinstance(sys.unraisablehook, functools.partial):
    sys.unraisablehook = functools.partial(_show, sys.unraisablehook)


class _Plain(python_logging.Formatter):
  """Writes a line of the log as our errors are: who says it, and what it is."""

  def format(self, record: python_logging.LogRecord) -> str:
    """A record as `metalr_flax: warning: ...`."""
    ours = f'{os.sep}metalr_flax{os.sep}' in record.pathname
    who = 'metalr_flax' if ours else record.name.partition('.')[0]
    return f'{who}: {record.levelname.lower()}: {super().format(record)}'


def _show(hook: Callable[[Any], Any], unraisable: Any) -> None:
  """Hides what Orbax's coroutines leave behind after a fault of the storage.

  It raises the fault as well; its other reads and writes then find their event
  loop closed, or nobody waiting for them.
  """
  code = str(getattr(unraisable.object, 'cr_code', ''))
  closed = str(unraisable.exc_value) == 'Event loop is closed'
  if not closed and f'{os.sep}orbax{os.sep}' not in code:
    hook(unraisable)


def _is_for_people(record: python_logging.LogRecord) -> bool:
  orbax = f'{os.sep}orbax{os.sep}' in record.pathname
  if record.exc_info and (orbax or record.name == 'asyncio'):
    return False  # Orbax raises the same error, which we print in one line
  if f'{os.sep}clu{os.sep}platform{os.sep}' in record.pathname:
    return False  # notes for a cluster's page; they repeat what was printed
  ours = f'{os.sep}metalr_flax{os.sep}', f'{os.sep}clu{os.sep}'
  return record.levelno >= python_logging.WARNING or any(
    folder in record.pathname for folder in ours
  )


def mute() -> None:
  """Says nothing on stdout from here on: process 0 speaks for all."""
  global _muted
  _muted = True
  logging.set_verbosity(logging.WARNING)


def say(text: str) -> None:
  """Prints a line at once, also where stdout is a file or a pipe.

  A run goes on where its stdout is closed.
  """
  if _muted:
    return
  encoding = getattr(sys.stdout, 'encoding', None) or 'utf-8'
  # A path may have letters that a terminal does not know.
  text = text.encode(encoding, 'backslashreplace').decode(encoding)
  try:
    print(text, flush=True)
  except (OSError, ValueError) as error:  # ValueError: it was closed
    sys.stdout = open(os.devnull, 'w')  # noqa: SIM115
    logging.warning('stdout: %s; going on without it', error)


def is_terminal() -> bool:
  """Whether stdout is a terminal that can go back in its line."""
  if _muted:
    return False
  try:
    shown = sys.stdout is not None and sys.stdout.isatty()
  except ValueError:  # it was closed
    return False
  return shown and os.environ.get('TERM', '') not in ('', 'dumb', 'unknown')


def open_line() -> 'terminal.Line | None':
  """The line that is updated in place; None where stdout has no such line."""
  if not is_terminal():
    return None
  from metalr_flax import terminal  # imports rich

  # To the stderr that the line looks after.
  flags.FLAGS['logtostderr'].value = True
  return terminal.Line()


class Progress:
  """Shows how far a run has come: a line updated in place, or lines.

  At each evaluation there is a line that stays; where stdout is no terminal,
  also every few seconds.

  Attributes:
    every_secs: seconds between lines where there is no evaluation.
  """

  every_secs = 5.0

  def __init__(
    self, start: int, num_outer_steps: int, known_answers: Mapping[str, float]
  ):
    """Starts the clock.

    Args:
      start: outer steps done.
      num_outer_steps: outer steps of the whole run.
      known_answers: what a perfect model would end at, as
        `Task.known_answers` returns it; shown in brackets.
    """
    self._total = num_outer_steps
    self._answers = known_answers
    self._step = start
    self._said = time.monotonic()
    self._waited = False  # since the last line: it shows no speed
    self._line = open_line()
    self._marks: collections.deque[tuple[float, int]] = collections.deque(
      maxlen=10
    )

  def wait_for(self, what: str) -> None:
    """Says what the run does now, before it goes on with steps.

    Args:
      what: a few words, such as `compiling`.
    """
    self._waited = True
    if self._line:
      self._line.show_word(what)
    else:
      say(f'{what} ...')

  def close(self) -> None:
    """Removes the line that is updated in place."""
    if self._line:
      self._line.close()

  def __call__(self, step: int, row: Mapping[str, float]) -> None:
    """Updates the line; prints one after an evaluation or where it is time.

    Args:
      step: outer steps done.
      row: metrics of that step, by public key, with the learned values that
        were in use in it.
    """
    now = time.monotonic()
    shown = {key: value for key, value in row.items() if self._is_shown(key)}
    evaluated = any(key.startswith('eval/') for key in row)
    due = evaluated or now - self._said >= self.every_secs
    if self._line:
      self._update(self._line, step, shown, evaluated)
    elif due and step != self._step:
      self._print(step, shown, now)

  def _print(self, step: int, row: Mapping[str, float], now: float) -> None:
    rate = (step - self._step) / max(now - self._said, 1e-9)
    self._step, self._said = step, now
    left = datetime.timedelta(seconds=round((self._total - step) / rate))
    width = len(str(self._total))
    values = '  '.join(self._format(key, value) for key, value in row.items())
    speed = '' if self._waited else f'  | {rate:,.1f} steps/s, {left} left'
    self._waited = False
    say(
      f'step {step:{width}}/{self._total} ({100 * step // self._total:3}%)  '
      f'{values}{speed}'
    )

  def _update(
    self,
    line: 'terminal.Line',
    step: int,
    row: Mapping[str, float],
    evaluated: bool,
  ) -> None:
    """Shows the last step in the line, and above it what was evaluated."""
    from metalr_flax import terminal

    done = f'{step:{len(str(self._total))}}/{self._total}'
    done = f'{done} {100 * step // self._total:3}%'
    keys = sorted(row, key=_place)
    if evaluated:
      values = tuple(self._format(key, row[key]) for key in keys)
      say(line.fit(f'step {done}', values))
    values = tuple(
      # All of one width: the line stands still.
      f'{_name(key).removeprefix("train/")} {row[key]:<#8.3g}'
      for key in keys
      if not key.startswith('eval/')
    )
    share = step / self._total if self._total else 1.0
    speed = self._speed(step)
    line.show(lambda: terminal.Parts(done, share, values, speed))

  def _speed(self, step: int) -> str:
    """Outer steps per second over the last chunks, and the time left."""
    from metalr_flax import terminal

    self._marks.append((time.monotonic(), step))
    begun, before = self._marks[0]
    if step == before:
      return ''
    rate = (step - before) / max(self._marks[-1][0] - begun, 1e-9)
    left = terminal.duration((self._total - step) / rate)
    return f'{f"{rate:.{0 if rate >= 10 else 2}f}/s":>6}{left:>6} left'

  def _is_shown(self, key: str) -> bool:
    name = key.rpartition('/')[2]
    return key.startswith('hyperparams/') or name in (*_SHOWN, *self._answers)

  def say_answers(self) -> None:
    """Prints the known answers, where there are any."""
    known = [
      f'{name} {value:g}' + ' (the noise in the data)' * (name == 'loss')
      for name, value in self._answers.items()
    ]
    if known:
      say(
        f'a perfect model would end at, in brackets below: {", ".join(known)}'
      )

  def _format(self, key: str, value: float) -> str:
    """A value, with its answer where it is not that of one batch."""
    section, _, name = key.rpartition('/')
    answered = name in self._answers and section in ('eval', 'params')
    answer = f' ({self._answers[name]:g})' if answered else ''
    return f'{_name(key)} {value:.4g}{answer}'


def _name(key: str) -> str:
  """A metric's name as it is shown."""
  return key.removeprefix('hyperparams/').removeprefix('params/')


def _place(key: str) -> int:
  """How important a metric is: there may be no room for the last ones."""
  first = ('eval/loss', 'eval/', 'train/loss', 'hyperparams/')
  fitting = (i for i, start in enumerate(first) if key.startswith(start))
  return next(fitting, len(first))
