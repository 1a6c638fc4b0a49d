"""What a person sees at a terminal: a real command in a real one."""

import io
import os
import pty
import re
import signal
import sys
import termios
import time

from absl import logging
import pytest
import runs

from metalr_flax import console
from metalr_flax import terminal

CSI = re.compile(r'\x1b\[([0-9;?]*)([A-Za-z])')
LINE = re.compile(
  ' *\\d+/90000 +\\d+% [\u2501\u2500]+  loss \\S+ +learning_rate \\S+.*'
  ' [\\d.]+/s +\\w+ left'
)


class Screen:
  """As much of a terminal as rich's lines need; what it cannot do raises."""

  def __init__(self, columns):
    self.columns = columns
    self.lines = [[]]
    self.row = self.column = 0
    self.codes = set()
    self.seen = []  # the bottom line whenever it was overwritten

  def feed(self, text):
    while text:
      found = CSI.match(text)
      if found:
        self._control(found[1], found[2])
        text = text[found.end() :]
      else:
        self._put(text[0])
        text = text[1:]

  def _control(self, number, letter):
    self.codes.add(letter)
    if letter == 'K':
      self.seen.append(self.text(self.row))
      assert number == '2'
      self.lines[self.row] = []
    elif letter == 'A':
      self.row -= int(number or 1)
      assert self.row >= 0
    else:
      assert letter == 'm', letter  # colours; no cursor is hidden

  def _put(self, letter):
    if letter == '\r':
      self.column = 0
    elif letter == '\n':
      self.row += 1
      if self.row == len(self.lines):
        self.lines.append([])
    else:
      assert letter >= ' ', repr(letter)
      if self.column == self.columns:
        self._put('\r')
        self._put('\n')
      line = self.lines[self.row]
      line += ' ' * (self.column + 1 - len(line))
      line[self.column] = letter
      self.column += 1

  def text(self, row):
    return ''.join(self.lines[row]).rstrip()

  def lines_shown(self):
    return [self.text(row) for row in range(len(self.lines))]


def at_a_terminal(module, argv, columns, stop_after):
  """Runs a command there; returns its screen and its status.

  It gets SIGINT as soon as all of `stop_after` were shown.
  """
  ours, its = pty.openpty()
  termios.tcsetwinsize(ours, (24, columns))
  environment = {**runs.environment(), 'TERM': 'xterm-256color'}
  streams = dict.fromkeys(('stdin', 'stdout', 'stderr'), its)
  options = {**streams, 'text': None, 'env': environment}
  shown = b''
  with runs.started(['-m', module, *argv], **options) as process:
    os.close(its)
    while True:
      try:
        shown += os.read(ours, 1 << 16)
      except OSError:  # it has ended
        break
      if stop_after and all(part.encode() in shown for part in stop_after):
        process.send_signal(signal.SIGINT)
        stop_after = ()
    process.wait()
  os.close(ours)
  screen = Screen(columns)
  screen.feed(shown.decode())
  return screen, process.returncode


@pytest.mark.thorough
def test_a_run_has_one_line_in_place_below_its_evaluations(tmp_path):
  argv = runs.command(
    tmp_path / 'run', num_outer_steps=90000, eval_every=200, log_every=10**5
  )
  screen, status = at_a_terminal(
    'metalr_flax.main', argv, 100, ('step   400/', '\u2501', '/s', ' left')
  )
  assert status == 75
  seen = [line for line in screen.seen if line]
  assert any(re.fullmatch(r'compiling ... \d+s', line) for line in seen)
  steps = [line for line in seen if LINE.fullmatch(line)]
  assert steps, seen
  assert {len(line) for line in seen} <= {*range(100)}
  # What stays: the evaluations, nothing of the line, and the answer.
  lines = screen.lines_shown()
  kept = [line for line in lines if line.startswith('step ')]
  assert len(kept) >= 2
  assert all(' eval/loss ' in line for line in kept)
  assert kept[0].startswith('step   200/90000   0%  eval/loss ')
  assert not [
    line for line in lines if re.search('compiling|saving|\u2500', line)
  ]
  text = ''.join(lines)
  assert 'metalr_flax: interrupted: SIGINT at outer step' in text
  assert lines[-1] == ''  # the prompt comes in a line of its own


def make_tty(monkeypatch):
  """This process's stdout and stderr as one terminal of 100 columns."""
  stream = io.StringIO()
  stream.isatty = lambda: True
  monkeypatch.setattr(sys, 'stdout', stream)
  monkeypatch.setattr(sys, 'stderr', stream)
  monkeypatch.setenv('TERM', 'xterm')
  monkeypatch.setenv('COLUMNS', '100')
  return stream


def test_what_is_printed_and_logged_comes_above_the_line(monkeypatch):
  tty = make_tty(monkeypatch)
  console.set_up_logging()
  progress = console.Progress(0, 10, {})
  progress.wait_for('compiling')
  console.say('a line of ours ' + 'x' * 100 + ' [bold]')
  print('a line of a task')
  logging.warning('of the log')
  sys.stderr.write('of a warning\n')
  progress(5, {'train/loss': 1.0, 'hyperparams/learning_rate': 0.25})
  limit = time.monotonic() + 60
  while '5/10' not in tty.getvalue() and time.monotonic() < limit:
    time.sleep(0.01)  # it is redrawn a few times a second
  progress(6, {'train/loss': 1.0, 'eval/loss': 2.0})
  print('the last')
  progress.close()
  print('after')
  screen = Screen(100)
  screen.feed(tty.getvalue().replace('\n', '\r\n'))
  lines = screen.lines_shown()
  expected = [
    'a line of ours ' + 'x' * 85,
    'x' * 15 + ' [bold]',
    'a line of a task',
    'absl: warning: of the log',
    'of a warning',
    'step  6/10  60%  eval/loss 2  train/loss 1',
    'the last',
    'after',
    '',
  ]
  assert lines == expected
  bar = '\u2501{15,16}\u2500{15,16}'
  shown = f' 5/10  50% {bar}  loss 1.00      learning_rate 0.250'
  assert [line for line in screen.seen if re.fullmatch(shown, line)]


@pytest.mark.parametrize('name', ['dumb', 'unknown', ''])
def test_where_there_is_no_going_back_there_are_lines(name, monkeypatch):
  tty = make_tty(monkeypatch)
  monkeypatch.setenv('TERM', name)
  progress = console.Progress(0, 10, {})
  progress.wait_for('compiling')
  progress(5, {'train/loss': 1.0, 'eval/loss': 2.0})
  progress(6, {'train/loss': 1.0, 'eval/loss': 2.0})
  progress.close()
  said = tty.getvalue()
  first, second, third = said.splitlines()
  assert first == 'compiling ...'
  # The time of compiling is no speed.
  assert second == 'step  5/10 ( 50%)  train/loss 1  eval/loss 2'
  assert third.startswith('step  6/10 ( 60%)  train/loss 1  eval/loss 2  | ')
  assert '\x1b' not in said


def test_a_terminal_that_closes_ends_nothing(monkeypatch):
  tty = make_tty(monkeypatch)
  line = console.open_line()
  line.show_word('compiling')

  def fail(text):
    raise OSError(5, 'Input/output error')

  monkeypatch.setattr(tty, 'write', fail)
  console.say('unseen')
  line.show_word('saving')
  line.close()


def test_colours_are_left_out_where_asked_for(monkeypatch):
  tty = make_tty(monkeypatch)
  monkeypatch.setenv('NO_COLOR', '1')
  progress = console.Progress(0, 10, {})
  progress(5, {'train/loss': 1.0})
  progress.close()
  colours = re.findall(r'\x1b\[([\d;]+)m', tty.getvalue())
  assert not {*';'.join(colours).split(';')} - {'', '0', '1', '2'}


@pytest.mark.parametrize('width', [20, 40, 80, 120, 200])
def test_the_line_fits_and_keeps_what_matters(width):
  values = ('loss 0.500   ', 'learning_rate 0.000100', 'meta/loss 0.400   ')
  parts = terminal.Parts('  62/100  62%', 0.62, values, ' 12/s     3s left')
  for encoding, letter in [('utf-8', '\u2501'), ('ascii', '#')]:
    text = terminal.lay_out(parts, width, encoding).plain
    assert len(text) < width
    assert (letter in text) == (width >= 80)
    assert (values[1] in text) == (width >= 80)
    assert (values[2] in text) == (width >= 120)
    assert text.endswith('left') == (width >= 40)


@pytest.mark.parametrize(
  ('seconds', 'text'),
  [(0, '0s'), (59.6, '1m00s'), (3599, '59m59s'), (7500, '2h05m'), (273600, '3d04h')],
)  # fmt: skip
def test_durations(seconds, text):
  assert terminal.duration(seconds) == text
