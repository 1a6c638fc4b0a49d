"""Real runs of the real program, and what they left behind."""

import contextlib
import csv
import os
import pathlib
import subprocess
import sys
import threading

import jax
import numpy as np

from metalr_flax import interrupts
from metalr_flax.comparison import config as config_lib
from metalr_flax.config import flags
from metalr_flax.trainer import build
from metalr_flax.trainer import launch
from metalr_flax.workdir import checkpoint
from metalr_flax.workdir import folder

ROOT = pathlib.Path(__file__).parent.parent
CONFIGS = ROOT / 'configs'


def command(workdir, config='default', **fields):
  """The arguments of a run; dots in field names are written as `__`."""
  overrides = [
    f'--config.{name.replace("__", ".")}={value}'
    for name, value in fields.items()
  ]
  path = CONFIGS / f'{config}.py'
  doubled = str(workdir).replace('{', '{{').replace('}', '}}')  # no field
  return [f'--config={path}', f'--workdir={doubled}', *overrides]


def run_here(workdir, config='default', *, stop=None, **fields):
  """Trains in this process."""
  arguments = flags.parse(
    'metalr_flax.main', command(workdir, config, **fields), ''
  )
  launch.train(
    arguments.config,
    arguments.workdir,
    command=arguments.command,
    stop=interrupts.StopRequest() if stop is None else stop,
  )


def parse_comparison(*argv):
  """The resolved config of a comparison's command line."""
  return parse(argv).config


def parse(argv):
  """A comparison's command line."""
  return flags.parse(
    'metalr_flax.compare',
    argv,
    '',
    check_name=config_lib.check_name,
    resolve=config_lib.resolve,
    fields=config_lib.FIELDS,
  )


def environment():
  paths = [str(ROOT), str(ROOT / 'tests'), os.environ.get('PYTHONPATH', '')]
  return {**os.environ, 'PYTHONPATH': os.pathsep.join(paths).rstrip(':')}


# Seconds after which a process hangs, however slow the machine.
LIMIT = 1800


@contextlib.contextmanager
def started(argv, **options):
  """A Python process, killed at the block's end or after LIMIT."""
  options = {
    'stdout': subprocess.PIPE,
    'stderr': subprocess.PIPE,
    'text': True,
    'cwd': ROOT,
    'env': environment(),
    **options,
  }
  with subprocess.Popen([sys.executable, *argv], **options) as process:
    limit = threading.Timer(LIMIT, process.kill)
    limit.start()
    try:
      yield process
    finally:
      limit.cancel()
      process.kill()


def script(*argv, **variables):
  """What a Python script prints, which ends well; with variables of its own."""
  done = subprocess.run(
    [sys.executable, *argv],
    env={**environment(), **variables},
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=LIMIT,
    check=False,
  )
  assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
  return done.stdout


def training(workdir, config='default', *, pipesize=-1, **fields):
  """A training process; it waits where its pipe is full of lines."""
  argv = command(workdir, config, **fields)
  return started(['-m', 'metalr_flax.main', *argv], pipesize=pipesize)


def stop_at(process, beginning):
  """Sends SIGTERM when a line begins so; returns what was said on stderr."""
  for line in process.stdout:
    if line.startswith(beginning):
      process.terminate()
      break
  _, stderr = process.communicate()
  return stderr


def run(workdir, config='default', *, status=0, **fields):
  """Trains in a process of its own; returns stdout and stderr."""
  with training(workdir, config, **fields) as process:
    stdout, stderr = process.communicate()
  assert process.returncode == status, stderr
  return stdout, stderr


def newest_state(workdir):
  """The leaves of a run's newest checkpoint, by path, as NumPy arrays."""
  config = folder.read_config(workdir)
  with build.randomness(config):
    template = build.build(config).init_state()
    found = checkpoint.find_newest(workdir / folder.STATE, template)
  leaves = jax.tree_util.tree_leaves_with_path(found.state)
  return {
    jax.tree_util.keystr(path): np.asarray(
      jax.random.key_data(leaf)
      if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
      else leaf
    )
    for path, leaf in leaves
  }


def rows(workdir):
  """The cells of metrics.csv as written, rates left out."""
  with open(workdir / folder.METRICS, newline='') as file:
    table = list(csv.DictReader(file))
  return [
    {k: v for k, v in row.items() if not k.startswith('perf/')} for row in table
  ]


def assert_same_run(one, other):
  """Both runs ended in the same bits and wrote the same rows."""
  assert rows(one) == rows(other)
  state, expected = newest_state(one), newest_state(other)
  assert state.keys() == expected.keys()
  for name, leaf in state.items():
    assert leaf.dtype == expected[name].dtype, name
    assert leaf.tobytes() == expected[name].tobytes(), name
