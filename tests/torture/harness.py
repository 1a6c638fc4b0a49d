"""Trials: one run of the trainer each, with a fault, and what came of it."""

import collections
import concurrent.futures
import contextlib
import json
import os
import pathlib
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading

import pytest
import runs
from tensorboard.backend.event_processing import event_file_loader

from metalr_flax.workdir import manifest

HERE = pathlib.Path(__file__).parent
# 1.4 MB of state in arrays that Orbax does not put inline, tangents and all.
FIELDS = {
  'num_outer_steps': 20,
  'checkpoint_every': 4,
  'eval_every': 7,
  'log_every': 3,
  'model__kwargs__features': '(64,256,256,10)',
  'task__batch_size': 8,
  'meta__unroll_length': 2,
  'meta__discount': 0.9,
  'best_metric': 'eval/loss',
}
Trial = collections.namedtuple('Trial', 'status text fired secs')


def build_shim(folder):
  """The fault-injecting library, or a skip that says why there is none."""
  compiler = shutil.which('cc') or shutil.which('gcc') or shutil.which('clang')
  if not compiler or sys.platform != 'linux':
    pytest.skip('no C compiler, or not Linux: faults cannot be injected')
  library = folder / 'shim.so'
  source = HERE / 'shim.c'
  subprocess.run(
    [compiler, '-shared', '-fPIC', '-O1', '-o', library, source, '-ldl'],
    check=True,
  )
  return library


class Servers:
  """At most two processes that fork a run for each trial."""

  def __init__(self, folder, library):
    self.folder = folder
    self._number = iter(range(10**9))
    inherited = runs.environment()
    self._environment = {
      **inherited,
      'LD_PRELOAD': str(library),
      'MPLCONFIGDIR': str(folder),
      # Compiled once for all workers: a warm cache changes no bit. What a kill
      # has torn of it is not for other tests.
      'JAX_COMPILATION_CACHE_DIR': (
        f'{inherited["JAX_COMPILATION_CACHE_DIR"]}/torture'
      ),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    }
    self._all = []
    self._free = queue.Queue()
    self._lock = threading.Lock()

  def _take(self):
    """A process that is free, the second of them started when it is needed."""
    with self._lock:
      if self._free.empty() and len(self._all) < 2:
        return self._start()
    return self._free.get()

  def _start(self):
    process = subprocess.Popen(
      [sys.executable, HERE / 'server.py'],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      cwd=runs.ROOT,
      env=self._environment,
      start_new_session=True,
    )
    self._all.append(process)
    assert process.stdout.readline() == 'ready\n'
    return process

  def run(
    self,
    workdir,
    fields=None,
    fault=None,
    config='digits_mlp',
    flags=(),
    **order,
  ):
    """Runs the trainer once; see server.py for the order."""
    number = next(self._number)
    output = self.folder / f'{number}.out'
    fired = self.folder / f'{number}.fired'
    if fault:
      fault = {'pattern': f'{workdir}/*', 'fired': str(fired), **fault}
    output.touch()  # a trial may be killed before it opens it
    base = FIELDS if config == 'digits_mlp' else {}
    order |= {
      'argv': [
        *runs.command(workdir, config, **{**base, **(fields or {})}),
        *flags,
      ],
      'output': str(output),
      'fault': fault,
    }
    process = self._take()
    try:
      print(json.dumps(order), file=process.stdin, flush=True)
      answer = json.loads(process.stdout.readline())
    finally:
      self._free.put(process)
    text = output.read_text(errors='replace')
    output.unlink()
    return Trial(answer['status'], text, fired.exists(), answer['secs'])

  def map(self, function, items):
    """Does all trials, two at a time; every failure of them is reported."""
    items = list(items)
    failures = []
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
      futures = [pool.submit(function, item) for item in items]
      for item, future in zip(items, futures, strict=True):
        try:
          future.result()
        except AssertionError as error:
          failures.append(f'{item}: {str(error)[:1500]}')
    assert not failures, f'{len(failures)} of {len(items)}:\n' + '\n'.join(
      failures[:5]
    )

  def close(self):
    """Ends both, with whatever run of theirs is still going on."""
    for process in self._all:
      with process, contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def digest(workdir, step=None, folder='state'):
  """The SHA-256 of the newest checkpoint's leaves, its files verified."""
  names = [p.name for p in (workdir / folder).iterdir()]
  steps = sorted(int(n) for n in names if n.isdecimal())
  notes = manifest.verify(workdir / folder / str(step or steps[-1]))
  return notes['step'], notes['sha256']


def events(workdir):
  """All that TensorBoard shows: (tag, step, value), in order of the files."""
  found = []
  for path in sorted(workdir.glob('events.out.tfevents.*'), key=_order):
    for event in event_file_loader.EventFileLoader(str(path)).Load():
      for value in event.summary.value:
        if value.tag.startswith(('perf/', 'plots/', 'config', '_hparams_')):
          continue
        found.append((value.tag, event.step, tuple(value.tensor.float_val)))
  return sorted(found)


def _order(path):
  return path.stat().st_mtime_ns, path.name


def spread(items, count):
  """`count` of the items, evenly over all of them."""
  return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]


def remains(workdir):
  """Everything that must be the same however a run was cut."""
  results = json.loads((workdir / 'results.json').read_text())
  return {
    'digest': digest(workdir),
    'best': digest(workdir, folder='best'),
    'rows': runs.rows(workdir),
    'events': events(workdir),
    'results': results,
    'schedule': json.loads((workdir / 'schedule.json').read_text()),
    'kept': sorted(p.name for p in (workdir / 'state').iterdir()),
    'kept best': [p.name for p in (workdir / 'best').iterdir()],
  }


def assert_same(workdir, expected):
  got = remains(workdir)
  for name, value in expected.items():
    assert got[name] == value, f'{name} differ: {got[name]} {value}'


def assert_no_traceback(trial):
  place = trial.text.find('Traceback')
  assert place < 0, trial.text[max(0, place - 500) : place + 1000]


def assert_one_line(trial, status, *parts):
  assert trial.status == status, trial
  assert_no_traceback(trial)
  line = trial.text.strip().splitlines()[-1]
  assert line.startswith(('metalr_flax: error: ', 'metalr_flax: interrupted: '))
  for part in parts:
    assert part in line, line


def finish(servers, workdir, fields=None):
  """The same command again, to the end."""
  trial = servers.run(workdir, fields)
  assert trial.status == 0, trial
  return trial


def read_operations(workdir, log):
  """All operations of a run on its workdir: (kind, path within it)."""
  lines = [line.split(' ', 1) for line in log.read_text().splitlines()]
  inside = f'{workdir}/'
  return [(k, p.removeprefix(inside)) for k, p in lines if p.startswith(inside)]


def operations(workdir, log):
  """A run's file operations: [kind, pattern of the path, ordinal]."""
  seen = collections.Counter()
  found = []
  for kind, path in read_operations(workdir, log):
    if kind == 'openread':
      continue
    # Names made of a time, a process or a random number differ by run.
    pattern = re.sub(r'[0-9a-f]{16,}|\d{6,}[^/]*', '*', f'/{path}')
    seen[kind, pattern] += 1
    found.append((kind, pattern, seen[kind, pattern]))
  return found


@contextlib.contextmanager
def workdir(folder, name):
  """A folder that goes away where the trial went well."""
  path = folder / str(name)
  yield path
  shutil.rmtree(path, ignore_errors=True)


SIGNALS = (signal.SIGTERM, signal.SIGINT)
