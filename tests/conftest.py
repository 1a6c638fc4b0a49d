"""A strict session in three tiers, the cheapest and most telling tests first.

Warnings are errors, and nothing is broadcast silently. What a session compiles
is kept in a folder of its own until it ends, for tests and processes that
compile the same program again; a warm cache changes no bit. XLA's older
emitters take half of the time, so only a --full session compiles by the new.
"""

import gc
import itertools
import os
import pathlib
import shutil
import tempfile

import hypothesis
import jax
import pytest

HERE = pathlib.Path(__file__).parent
jax.config.update('jax_numpy_rank_promotion', 'raise')
# A mistake shows here first: seconds each, and near to its cause.
FIRST = (
  'test_architecture.py',
  'test_figures.py',
  'tuning/test_steering.py',
  'tuning/test_guard.py',
  'engine/test_jaxprs.py',
  'workdir/test_append_file.py',
  'engine/test_meta_gradient.py',
  'trainer/test_reference.py',
  'config',
  'engine/test_wrong_calls.py',
  'engine',
  'tuning',
  'models',
  'tasks',
  'workdir',
  'trainer',
  'test_audit.py',
  'comparison',
)  # then the commands as processes, and the torture

# Compiled fast, see `_quick_compilation`; but these look at what is compiled.
FAST = ('engine', 'tuning', 'models', 'comparison')
AS_FOR_USERS = ('test_memory.py',)
OLDER = '--xla_cpu_use_fusion_emitters=false'


def pytest_addoption(parser):
  parser.addoption(
    '--thorough',
    action='store_true',
    help='all tests, not only those that a person waits for',
  )
  parser.addoption(
    '--full',
    action='store_true',
    help='--thorough, what repeats it, and all trials of tests/torture',
  )


def pytest_configure(config):
  config.option.thorough |= config.option.full
  count = 2000 if config.option.full else 200 if config.option.thorough else 50
  hypothesis.settings.register_profile(
    'ours',
    max_examples=count,
    derandomize=True,
    database=None,
    deadline=None,
  )
  hypothesis.settings.load_profile('ours')
  # The numbers are those of a CPU, whatever else the machine has.
  jax.config.update(
    'jax_platforms', os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  )
  flags = os.environ.get('XLA_FLAGS', '')
  if OLDER not in flags and not config.option.full:
    os.environ['XLA_FLAGS'] = f'{flags} {OLDER}'.strip()
  # One folder for all processes of a session (`pytest -n auto`).
  config.compiled = (
    os.environ['JAX_COMPILATION_CACHE_DIR']
    if hasattr(config, 'workerinput')
    else tempfile.mkdtemp(prefix='compiled_')
  )
  cache = {
    'jax_compilation_cache_dir': config.compiled,
    'jax_persistent_cache_min_compile_time_secs': 0.1,
    'jax_persistent_cache_min_entry_size_bytes': -1,
  }
  for name, value in cache.items():
    jax.config.update(name, value)
    os.environ[name.upper()] = str(value)


def pytest_unconfigure(config):
  if not hasattr(config, 'workerinput'):
    shutil.rmtree(config.compiled, ignore_errors=True)


def pytest_collection_modifyitems(config, items):
  items.sort(key=lambda item: _place(item.path.relative_to(HERE).as_posix()))
  left_out = {
    name for name in ('thorough', 'full') if not getattr(config.option, name)
  }
  is_out = lambda item: any(map(item.get_closest_marker, left_out))
  config.hook.pytest_deselected(items=[*filter(is_out, items)])
  items[:] = itertools.filterfalse(is_out, items)


def _place(path):
  """Where a file comes: the order of FIRST, and what is in none last."""
  for place, name in enumerate(FIRST):
    if path == name or path.startswith(f'{name}/'):
      return place
  return len(FIRST) + path.startswith('torture/')


@pytest.fixture(scope='module', autouse=True)
def _memory():
  """Frees what a module compiled: the process stays small."""
  yield
  jax.clear_caches()
  gc.collect()


@pytest.fixture(scope='module', autouse=True)
def _quick_compilation(request):
  """Compiles fast where derivatives and values alone are looked at.

  They are the same whatever machine code they take.
  """
  path = request.path
  fast = path.parent.name in FAST and path.name not in AS_FOR_USERS
  _disable_most_optimizations(fast)
  yield
  _disable_most_optimizations(False)


def _disable_most_optimizations(value):
  """Here, and in the processes that are started."""
  jax.config.update('jax_disable_most_optimizations', value)
  os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = str(int(value))


@pytest.fixture(scope='session')
def reference(tmp_path_factory):
  """The workdir of the reference run, to be looked at only."""
  import runs  # the whole trainer, which tests of small parts need not wait for

  workdir = tmp_path_factory.mktemp('reference')
  runs.run_here(workdir)
  return workdir


@pytest.fixture
def x64():
  """Derivatives are checked in float64."""
  with jax.enable_x64(True):
    yield
