"""Killed anywhere, any number of times: the same bits as if never."""

import os
import pty
import random
import shutil
import signal
import subprocess
import sys
import time

import harness
import pytest
import runs
import tiers


@pytest.mark.thorough
def test_kills_at_file_operations(
  servers, uninterrupted, whole, share, tmp_path
):
  found = harness.operations(*uninterrupted)
  count = share(200)
  chosen = harness.spread(found, count)

  def trial(item):
    number, (kind, pattern, ordinal) = item
    with harness.workdir(tmp_path, number) as workdir:
      fault = {
        'kind': kind,
        'pattern': f'{workdir}{pattern}',
        'ordinal': ordinal,
        'action': 'torn' if number % 2 else 'kill',
      }
      killed = servers.run(workdir, fault=fault)
      if not killed.fired and 'ocdbt' in pattern:
        # How often TensorStore commits varies a little from run to run.
        shutil.rmtree(workdir)
        killed = servers.run(workdir, fault={**fault, 'ordinal': 1})
      assert killed.fired, f'the fault never came: {killed}'
      assert killed.status == -signal.SIGKILL, killed
      harness.finish(servers, workdir)
      harness.assert_same(workdir, whole)

  servers.map(trial, enumerate(chosen))


BEST = [
  ('write', '/best/.14.saving/manifest.json', 'torn'),
  ('rename', '/best/14', 'kill'),
  ('rename', '/best/.7.old', 'kill'),
  ('unlink', '/best/.7.old/*', 'kill'),
]


@tiers.parametrize('operation', BEST, [], full=BEST[3:])
def test_kills_while_the_best_is_saved(servers, whole, tmp_path, operation):
  """The one before is there until it is, and it is there in the end."""
  kind, path, action = operation
  fault = {
    'kind': kind,
    'pattern': f'{tmp_path}/run{path}',
    'ordinal': 1,
    'action': action,
  }
  killed = servers.run(tmp_path / 'run', fault=fault)
  assert killed.fired, killed
  assert killed.status == -signal.SIGKILL, killed
  step, _ = harness.digest(tmp_path / 'run', folder='best')
  assert step in (7, 14)
  assert step == 7 or '.7.old' in path
  harness.finish(servers, tmp_path / 'run')
  harness.assert_same(tmp_path / 'run', whole)


@pytest.mark.thorough
def test_chains_of_random_kills(servers, whole, secs, share, tmp_path):
  def trial(seed):
    draw = random.Random(seed)
    with harness.workdir(tmp_path, seed) as workdir:
      for _ in range(draw.randint(3, 5)):
        after = draw.uniform(0.0, 1.1 * secs)
        servers.run(workdir, after=after, signal=signal.SIGKILL)
      harness.finish(servers, workdir)
      harness.assert_same(workdir, whole)

  servers.map(trial, range(share(40)))


@pytest.mark.thorough
def test_resume_at_every_step(servers, share, tmp_path):
  """A 60-step run, cut after each of its steps."""
  fields = {'num_outer_steps': 60}
  one = tmp_path / 'one'
  harness.finish(servers, one, fields)
  expected = harness.remains(one)

  def trial(step):
    with harness.workdir(tmp_path, step) as workdir:
      harness.finish(servers, workdir, {'num_outer_steps': step})
      assert harness.digest(workdir)[0] == step
      harness.finish(servers, workdir, fields)
      got = harness.remains(workdir)
      for name in ('digest', 'rows', 'results', 'schedule'):
        assert got[name] == expected[name], name

  servers.map(trial, harness.spread(range(60), share(60)))


@pytest.mark.thorough
def test_signals_in_every_phase(servers, whole, secs, share, tmp_path):
  unheard = []

  def trial(number):
    draw = random.Random(number)
    with harness.workdir(tmp_path, number) as workdir:
      after = number / 60 * 1.05 * secs
      stopped = servers.run(
        workdir,
        after=after,
        signal=harness.SIGNALS[number % 2],
        # Every fourth is followed by an impatient second one.
        again=draw.uniform(0.0, 0.8) if number % 4 == 0 else None,
      )
      harness.assert_no_traceback(stopped)
      # Before the handler is there the default death is right.
      early = not stopped.text and not workdir.exists()
      unheard.extend([number] * early)
      if number % 4 and not early:
        assert stopped.status in (0, 75), stopped
      else:
        assert stopped.status in (0, 75, -harness.SIGNALS[0], -2), stopped
      if stopped.status == 75:
        harness.assert_one_line(stopped, 75, 'state saved in')
        assert harness.digest(workdir)
      harness.finish(servers, workdir)
      harness.assert_same(workdir, whole)

  count = share(60)
  servers.map(trial, harness.spread(range(1, 61), count))
  assert len(unheard) <= max(1, count // 10), 'the handler comes late'


@pytest.mark.thorough
def test_signals_at_file_operations(
  servers, uninterrupted, whole, share, full, tmp_path
):
  """In the midst of steps, saves, evaluations and the exit, of 60 each way."""
  found = harness.operations(*uninterrupted)
  count = share(60)
  chosen = harness.spread(found, count)
  stopped_at = []

  def trial(item):
    number, (kind, pattern, ordinal) = item
    with harness.workdir(tmp_path, number) as workdir:
      fault = {
        'kind': kind,
        'pattern': f'{workdir}{pattern}',
        'ordinal': 1 if 'ocdbt' in pattern else ordinal,
        'action': 'signal',
        'errno': int(harness.SIGNALS[number % 2]),
      }
      stopped = servers.run(workdir, fault=fault)
      assert stopped.fired, f'the signal was never sent: {stopped}'
      if stopped.status:
        harness.assert_one_line(stopped, 75, 'state saved in')
        stopped_at.append(harness.digest(workdir)[0])
      harness.finish(servers, workdir)
      # A checkpoint where the run was stopped may be one of the newest three.
      cut = stopped.status == 75
      same = {k: v for k, v in whole.items() if k != 'kept' or not cut}
      harness.assert_same(workdir, same)

  servers.map(trial, enumerate(chosen))
  if full:
    assert len(set(stopped_at)) >= 5, f'too few phases: {stopped_at}'


# Time goes by as the scripts say, however long the machine takes.
CLOCK = """
import os, signal, types
from metalr_flax import interrupts
now = 0.0
interrupts.time = types.SimpleNamespace(monotonic=lambda: now)
"""
TWICE = f"""{CLOCK}
stop = interrupts.StopRequest().install()
os.kill(os.getpid(), signal.NAME)
now = 0.1
os.kill(os.getpid(), signal.NAME)
print(stop.name, flush=True)
now = 0.5
os.kill(os.getpid(), signal.NAME)
"""


@pytest.mark.parametrize('number', harness.SIGNALS)
def test_a_signal_delivered_twice_is_one(number):
  """As `timeout` does: to the process, and to its group. A later one kills."""
  process = subprocess.run(
    [sys.executable, '-c', TWICE.replace('NAME', number.name)],
    env=runs.environment(),
    capture_output=True,
    text=True,
    check=False,
  )
  assert process.stdout == f'{number.name}\n'
  assert process.returncode == -number


HANGUP = f"""{CLOCK}
signal.signal(signal.SIGHUP, signal.BEFORE)
stop = interrupts.StopRequest().install()
for _ in range(2):
  os.kill(os.getpid(), signal.SIGHUP)
  now += 0.4
print(stop.name or 'goes on')
"""


@pytest.mark.parametrize(
  ('before', 'says'), [('SIG_DFL', 'SIGHUP'), ('SIG_IGN', 'goes on')]
)
def test_a_hangup_asks_to_stop_but_not_under_nohup(before, says):
  """However often it comes: a shell and the system send one each."""
  process = subprocess.run(
    [sys.executable, '-c', HANGUP.replace('BEFORE', before)],
    env=runs.environment(),
    capture_output=True,
    text=True,
    check=False,
  )
  assert (process.stdout, process.returncode) == (f'{says}\n', 0)


# The program as the leader of a terminal's session; whoever runs the tests may
# do so under `nohup`, which the program heeds.
IN_TERMINAL = """
import fcntl, os, signal, sys, termios
signal.signal(signal.SIGHUP, signal.SIG_DFL)
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, '-m', 'metalr_flax.main', *sys.argv[1:]])
"""


@pytest.mark.thorough
def test_a_terminal_that_is_closed(tmp_path):
  """SIGHUP, and EIO from then on for all that is printed."""
  workdir = tmp_path / 'run'
  fields = {**harness.FIELDS, 'num_outer_steps': 10**6}
  argv = runs.command(workdir, 'digits_mlp', **fields)
  terminal, ours = pty.openpty()
  with runs.started(
    ['-c', IN_TERMINAL, *argv],
    stdin=ours,
    stdout=ours,
    stderr=ours,
    start_new_session=True,
    env={**runs.environment(), 'PYTHONUNBUFFERED': ''},
  ) as process:
    os.close(ours)
    shown = b''
    while b'step ' not in shown:
      shown += os.read(terminal, 10000)
    os.close(terminal)
    assert process.wait() == 75
  step, _ = harness.digest(workdir)
  assert step == len(runs.rows(workdir))


@pytest.mark.thorough
def test_nobody_reads_what_is_printed(tmp_path):
  """On a full disk, say: the run is done and its status says so."""
  with open('/dev/full', 'w') as full:
    process = subprocess.run(
      [
        *(sys.executable, '-m', 'metalr_flax.main'),
        *runs.command(tmp_path, num_outer_steps=2),
      ],
      stdout=full,
      stderr=full,
      cwd=runs.ROOT,
      env={**runs.environment(), 'PYTHONUNBUFFERED': ''},
      check=False,
    )
  assert process.returncode == 0
  assert (tmp_path / 'results.json').exists()


@pytest.mark.thorough
def test_signals_while_the_program_starts(share, tmp_path):
  """A real process, from its first instant: imports and all."""
  for number in range(max(2, share(8))):
    workdir = tmp_path / str(number)
    with runs.training(workdir, 'digits_mlp', **harness.FIELDS) as process:
      time.sleep(number * 0.3)
      process.send_signal(signal.SIGTERM)
      _, stderr = process.communicate()
    # Before the handler is there the default death is right.
    assert process.returncode in (-signal.SIGTERM, 75), stderr
    assert 'Traceback' not in stderr
    if process.returncode == 75:
      assert harness.digest(workdir)
