"""The lines on stdout and stderr that tell a person how a run goes."""

from collections.abc import Callable, Mapping
import datetime
import functools
import logging as python_logging
import os
import sys
import time
from typing import Any

from absl import flags
from absl import logging

_SHOWN = ('loss', 'accuracy', 'learning_rate')


def set_up_logging() -> None:
  """Sends the log to stderr: our lines and CLU's, warnings of all others."""
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # or absl remarks on it at the first line
  logging.use_absl_handler()
  logging.set_verbosity(logging.INFO)
  logging.get_absl_handler().addFilter(_is_for_people)
  if not isinstance(sys.unraisablehook, functools.partial):
    sys.unraisablehook = functools.partial(_show, sys.unraisablehook)


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


def say(text: str) -> None:
  """Prints a line at once, also where stdout is a file or a pipe.

  A run goes on where its stdout is closed.
  """
  encoding = getattr(sys.stdout, 'encoding', None) or 'utf-8'
  # A path may have letters that a terminal does not know.
  text = text.encode(encoding, 'backslashreplace').decode(encoding)
  try:
    print(text, flush=True)
  except (OSError, ValueError) as error:  # ValueError: it was closed
    sys.stdout = open(os.devnull, 'w')  # noqa: SIM115
    logging.warning('stdout: %s; going on without it', error)


class Progress:
  """Prints how far a run has come, at each evaluation or every few seconds.

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

  def __call__(self, step: int, row: Mapping[str, float]) -> None:
    """Prints a line if there was an evaluation or the last line is old.

    Args:
      step: outer steps done.
      row: metrics of that step, by public key, with the learned values that
        were in use in it.
    """
    now = time.monotonic()
    evaluated = any(key.startswith('eval/') for key in row)
    due = evaluated or now - self._said >= self.every_secs
    if not due or step == self._step:
      return
    rate = (step - self._step) / max(now - self._said, 1e-9)
    self._step, self._said = step, now
    left = datetime.timedelta(seconds=round((self._total - step) / rate))
    width = len(str(self._total))
    values = '  '.join(
      self._format(key, value)
      for key, value in row.items()
      if key.startswith('hyperparams/')
      or key.rpartition('/')[2] in (*_SHOWN, *self._answers)
    )
    say(
      f'step {step:{width}}/{self._total} ({100 * step // self._total:3}%)  '
      f'{values}  | {rate:,.1f} steps/s, {left} left'
    )

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
    shown = key.removeprefix('hyperparams/').removeprefix('params/')
    answered = name in self._answers and section in ('eval', 'params')
    answer = f' ({self._answers[name]:g})' if answered else ''
    return f'{shown} {value:.4g}{answer}'
