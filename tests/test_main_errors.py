"""The command itself: exit statuses, one line on stderr, nothing written.

Every case is a process as a user would start it. Where a mistake must be
answered without JAX, a `jax` that ends the process stands before the real one
on the path.
"""

import concurrent.futures
import io
import os
import pathlib
import shlex
import subprocess
import sys

import pytest
import runs

from metalr_flax import console
from metalr_flax import errors
from metalr_flax.config import flags
from metalr_flax.workdir import files
from metalr_flax.workdir import folder as folder_lib

ROOT = runs.ROOT
DEFAULT = f'--config={runs.CONFIGS / "default.py"}'
NO_JAX = 42  # the status of a process that imports `jax` where it must not


@pytest.fixture(scope='module')
def without_jax(tmp_path_factory):
  """A folder for PYTHONPATH in which importing JAX ends the process."""
  path = tmp_path_factory.mktemp('without_jax')
  (path / 'jax.py').write_text(f'import os\nos._exit({NO_JAX})\n')
  return path


def run(argv, cwd, *first):
  """Runs the command with some folders first on its path."""
  paths = [*map(str, first), str(ROOT), os.environ.get('PYTHONPATH', '')]
  return subprocess.run(
    [sys.executable, '-m', 'metalr_flax.main', *argv],
    cwd=cwd,
    env={
      **os.environ,
      'PYTHONPATH': os.pathsep.join(filter(None, paths)),
      'JAX_PLATFORMS': 'cpu',
    },
    capture_output=True,
    text=True,
    timeout=runs.LIMIT,
    check=False,
  )


def snapshot(folder):
  """What is in a folder: names, and the bytes of the files."""
  return {
    path.relative_to(folder): path.read_bytes() if path.is_file() else None
    for path in sorted(folder.rglob('*'))
  }


def assert_refused(process, status, parts):
  """One line on stderr, nothing on stdout, and the status."""
  assert process.returncode == status, process.stderr
  assert process.stdout == ''
  assert process.stderr.startswith('metalr_flax: error: ')
  assert process.stderr.count('\n') == 1
  assert process.stderr.endswith('\n')
  assert 'Traceback' not in process.stderr
  for part in ('; ', *parts):
    assert part in process.stderr


# --- Answered without JAX.

STAGE_ONE = {
  'unknown field': ([DEFAULT, '--config.meta.unrol_length=6'], 'meta.unrol_length', 'did you mean meta.unroll_length?'),
  'wrong type': ([DEFAULT, '--config.task.batch_size=many'], 'task.batch_size=many', 'must be an integer'),
  'nan': ([DEFAULT, '--config.meta.learning_rate=nan'], 'meta.learning_rate=nan', 'must be a number'),
  'rate out of range': ([DEFAULT, '--config.inner.learning_rate=1'], 'inner.learning_rate=1.0', '(0, 1)', 'sigmoid'),
  'K < 1': ([DEFAULT, '--config.meta.unroll_length=0'], 'meta.unroll_length=0', 'must be an integer'),
  'task': ([DEFAULT, '--config.task.name=digit'], 'task.name=digit', 'did you mean digits?'),
  'model': ([DEFAULT, '--config.model.name=liner'], 'model.name=liner', 'did you mean linear?'),
  'optimizer': ([DEFAULT, '--config.inner.optimizer=rmsporp'], 'inner.optimizer=rmsporp', 'did you mean rmsprop?'),
  'estimator': ([DEFAULT, '--config.meta.estimator=revers'], 'meta.estimator=revers', 'did you mean reverse?'),
  'missing config file': (['--config=nowhere.py'], 'config=nowhere.py', 'no such file'),
  'unknown flag': ([DEFAULT, '--wrokdir=x'], '--wrokdir', 'did you mean workdir?'),
}  # fmt: skip


@pytest.mark.parametrize(
  ('argv', 'parts'),
  [(argv, parts) for argv, *parts in STAGE_ONE.values()],
  ids=STAGE_ONE,
)
def test_a_mistake_is_answered_without_jax(argv, parts, tmp_path, without_jax):
  process = run([*argv, '--workdir=run'], tmp_path, without_jax)
  assert_refused(process, 2, parts)
  assert snapshot(tmp_path) == {}  # no run/, no checkpoints/


def test_without_mistakes_jax_is_imported(tmp_path, without_jax):
  """Or else the test above would show nothing."""
  process = run([DEFAULT], tmp_path, without_jax)
  assert process.returncode == NO_JAX, process.stderr
  assert snapshot(tmp_path) == {}


def test_from_the_root_of_the_repository(without_jax):
  before = sorted((ROOT / 'checkpoints').iterdir())
  process = run(
    ['--config=configs/default.py', '--config.seed=-1'], ROOT, without_jax
  )
  assert_refused(process, 2, ['seed=-1: must be an integer from 0'])
  assert sorted((ROOT / 'checkpoints').iterdir()) == before


def test_help(tmp_path, without_jax):
  process = run(['--help', '--config=nowhere.py'], tmp_path, without_jax)
  assert (process.returncode, process.stderr) == (0, '')
  assert '--config=configs/default.py' in process.stdout
  assert '--workdir=' in process.stdout
  assert 'Exit status' in process.stdout


# --- Workdirs.


def test_a_workdir_below_a_file_is_refused(tmp_path, without_jax):
  (tmp_path / 'notes').write_text('mine')
  before = snapshot(tmp_path)
  process = run([DEFAULT, '--workdir=notes/run'], tmp_path, without_jax)
  assert_refused(process, 2, ['workdir=notes/run: cannot be written', 'Not a'])
  assert snapshot(tmp_path) == before


def test_a_foreign_workdir_is_refused(tmp_path, without_jax):
  (tmp_path / 'thesis').mkdir()
  (tmp_path / 'thesis' / 'chapter.tex').write_text('mine')
  before = snapshot(tmp_path)
  process = run([DEFAULT, '--workdir=thesis'], tmp_path, without_jax)
  assert_refused(process, 3, ['workdir=thesis', 'chapter.tex', '--workdir='])
  assert snapshot(tmp_path) == before


def resolved(*argv):
  return flags.parse('metalr_flax.main', [DEFAULT, *argv], '').config


def test_a_changed_config_is_refused_with_a_command_that_works(
  tmp_path, without_jax
):
  used = tmp_path / 'my runs'  # a space: the command has to quote it
  files.write_json(used / 'config.json', resolved())
  (tmp_path / 'my runs-2').mkdir()
  before = snapshot(tmp_path)
  argv = [DEFAULT, '--config.seed=1']
  process = run([*argv, '--workdir', 'my runs'], tmp_path, without_jax)
  assert_refused(process, 3, ['workdir=my runs', 'seed=0 (here 1)'])
  assert snapshot(tmp_path) == before

  command = process.stderr.partition('elsewhere: ')[2]
  python, *words = shlex.split(command)
  assert (python, words[:2]) == ('python', ['-m', 'metalr_flax.main'])
  assert words[2:] == [*argv, '--workdir=my runs-3']
  # The mistake is gone: this one goes on to import JAX.
  assert run(words[2:], tmp_path, without_jax).returncode == NO_JAX


# --- Answered after imports, and still before anything is written.

STAGE_TWO = {
  'class that does not exist': (['--config.model.name=metalr_flax.models:Lniear'], 'model.name=metalr_flax.models:Lniear', 'cannot be imported', 'Lniear'),
  'argument of the model': (["--config.model.kwargs={'init_sed': 42}"], 'model.kwargs: Linear', 'init_sed', 'init_seed'),
  'argument of the optimizer': (["--config.inner.kwargs={'momentun': 0.9}"], 'inner.kwargs: rmsprop', 'momentun', 'momentum'),
  'learned name': (["--config.meta.learned={'dekay': 'sigmoid'}"], 'meta.learned.dekay=sigmoid', 'rmsprop', 'did you mean decay?'),
}  # fmt: skip


@pytest.fixture(scope='module')
def stage_two(tmp_path_factory):
  """These import JAX for seconds each: all of them at once."""

  def start(name):
    argv, *_ = STAGE_TWO[name]
    folder = (
      tmp_path_factory.getbasetemp() / 'stage_two' / name.replace(' ', '_')
    )
    folder.mkdir(parents=True)
    return folder, run([DEFAULT, *argv], folder)

  with concurrent.futures.ThreadPoolExecutor(len(STAGE_TWO)) as pool:
    return dict(zip(STAGE_TWO, pool.map(start, STAGE_TWO), strict=True))


@pytest.mark.parametrize('name', STAGE_TWO)
def test_a_mistake_that_needs_imports_writes_nothing_either(name, stage_two):
  folder, process = stage_two[name]
  assert_refused(process, 2, STAGE_TWO[name][1:])
  assert snapshot(folder) == {}


# --- What the workdir's own functions refuse, without a process for each.


def writable_error(path):
  with pytest.raises(errors.ConfigError) as caught:
    folder_lib.check_writable(pathlib.Path(path))
  line = str(caught.value)
  assert len(line.splitlines()) == 1
  assert line.startswith('workdir=')
  assert line.endswith('; choose another --workdir=')
  return line


def test_workdirs_that_cannot_be_written(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'file').touch()
  # A link to a disk that is not mounted.
  (tmp_path / 'link').symlink_to(tmp_path / 'gone' / 'disk')
  before = snapshot(tmp_path)
  assert 'Not a directory' in writable_error('file')
  assert 'Not a directory' in writable_error('file/run')
  assert 'No such file' in writable_error('link')
  assert 'No such file' in writable_error('link/run')
  assert 'too long' in writable_error('a' * 300)
  assert 'too long' in writable_error(f'new/{"a" * 300}')
  assert 'too long' in writable_error('new/' * 2000)
  assert 'null byte' in writable_error('a\0b')
  assert 'null byte' in writable_error('new/a\0b')
  if pathlib.Path('/proc/self').exists():
    assert '/proc' in writable_error('/proc/metalr_flax/run')
  assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
  'path', ['.', 'new', 'new/deep/er', '../x', 'a b', '-x']
)
def test_looking_whether_a_workdir_can_be_written_leaves_nothing(
  path, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  folder_lib.check_writable(pathlib.Path(path))
  assert snapshot(tmp_path) == {}


def check(path, *overrides):
  folder_lib.check_config(pathlib.Path(path), resolved(*overrides), 'again')


def workdir_error(path, *overrides):
  with pytest.raises(errors.WorkdirError) as caught:
    check(path, *overrides)
  assert caught.value.status == 3
  assert len(str(caught.value).splitlines()) == 1
  return str(caught.value)


@pytest.fixture
def used(tmp_path):
  path = tmp_path / 'run'
  files.write_json(path / 'config.json', resolved())
  return path


def test_what_may_change_in_a_used_workdir(used):
  check(used)
  for field, value in [
    ('num_outer_steps', 10**6),
    ('num_outer_steps', 1),
    ('log_every', 3),
    ('eval_every', 3),
    ('checkpoint_every', 3),
  ]:
    check(used, f'--config.{field}={value}')


@pytest.mark.parametrize(
  ('override', 'parts'),
  [
    ('--config.seed=7', ['with seed=0 (here 7); run']),
    ('--config.inner.learning_rate=0.2', ['with inner.learning_rate=0.1 (here 0.2); run']),
    ("--config.inner.kwargs={'decay': 0.8}", ['with no inner.kwargs.decay (here 0.8); run']),
    ('--config.task.kwargs={}', ['with task.kwargs.skip=5 (here none); run']),
    ('--config.meta.learned.learning_rate=log', ['with meta.learned.learning_rate=sigmoid (here log); run']),
    ('--config.threefry_partitionable', ['with threefry_partitionable=False (here True); run']),
  ],
)  # fmt: skip
def test_what_may_not_change_in_a_used_workdir(override, parts, used):
  line = workdir_error(used, override)
  for part in (f'workdir={used}', *parts, f'again --workdir={used}-2'):
    assert part in line


def test_all_differences_are_told_at_once(used):
  line = workdir_error(
    used, '--config.seed=7', '--config.log_every=1', '--config.task.kwargs={}',
    '--config.inner.optimizer=sgd', '--config.num_outer_steps=3',
  )  # fmt: skip
  told = 'inner.optimizer=rmsprop (here sgd), seed=0 (here 7), task.kwargs.skip'
  assert f'holds a run with {told}=5 (here none); run it' in line
  config = resolved()
  config['model']['kwargs'] = {f'a{i}': i for i in range(13)}
  files.write_json(used / 'config.json', config)
  line = workdir_error(used, "--config.model.kwargs={'init_seed': 42}")
  assert line.count(' (here ') == 10
  assert ', and 4 more; run it elsewhere: again' in line


@pytest.mark.parametrize('number', [2, 3, 4])
def test_the_workdir_suggested_is_a_new_one(number, used):
  for taken in range(2, number):
    used.with_name(f'run-{taken}').mkdir()
  line = workdir_error(used, '--config.seed=7')
  assert line.endswith(f'--workdir={used}-{number}')


def test_inside_a_used_workdir_another_one_is_suggested(used, monkeypatch):
  monkeypatch.chdir(used)
  line = workdir_error('.', '--config.seed=7')
  assert line.endswith(f'--workdir={used.resolve()}-2')


@pytest.mark.parametrize(
  'content', ['', '{', '[]', '3', 'null', b'\xff\xfe', '{"seed": 0}']
)
def test_a_config_of_something_else_is_refused(content, used):
  """Many tools call a file config.json."""
  data = content if isinstance(content, bytes) else content.encode()
  (used / 'config.json').write_bytes(data)
  assert str(used) in workdir_error(used)


@pytest.mark.parametrize('steps', ['2000', None, [2000]])
def test_steps_of_something_else_are_refused(steps, used):
  config = {**resolved(), 'num_outer_steps': steps}
  files.write_json(used / 'config.json', config)
  assert 'num_outer_steps=' in workdir_error(used)


def test_empty_and_interrupted_workdirs_are_fine(tmp_path):
  check(tmp_path / 'new')
  check(tmp_path)
  (tmp_path / '.config.json.tmp').touch()  # killed while it was written
  check(tmp_path)
  # A run that saved while its workdir was renamed.
  (tmp_path / 'state' / '.8.saving').mkdir(parents=True)
  check(tmp_path)
  (tmp_path / 'state' / '8').mkdir()
  with pytest.raises(errors.WorkdirError, match='other content'):
    check(tmp_path)


def test_a_second_run_is_refused_before_jax_is_imported(tmp_path, without_jax):
  workdir = tmp_path / 'run'
  workdir.mkdir()
  with folder_lib.locked(workdir):
    process = run([DEFAULT, '--workdir=run'], tmp_path, without_jax)
  assert_refused(process, 3, ['workdir=run', 'in use by another run'])
  assert not list(workdir.iterdir())


def test_one_who_only_looks_does_not_keep_a_run_out(tmp_path, monkeypatch):
  """Another command asks whether the workdir is free just as a run starts."""
  looking = folder_lib.locked(tmp_path)
  looking.__enter__()
  monkeypatch.setattr(
    folder_lib.time, 'sleep', lambda _: looking.__exit__(None, None, None)
  )
  folder_lib.check(tmp_path, resolved(), 'again')


def test_a_name_that_is_not_utf8_is_refused(tmp_path, without_jax):
  process = run([DEFAULT, '--workdir=a\udcff'], tmp_path, without_jax)
  assert_refused(process, 2, ['workdir=', "can't encode"])
  assert not list(tmp_path.iterdir())


def test_no_folder_for_temporary_files_is_told(monkeypatch, tmp_path):
  """A container whose root is read-only."""

  def fail():
    raise FileNotFoundError('No usable temporary directory found')

  monkeypatch.setattr(folder_lib.tempfile, 'gettempdir', fail)
  with pytest.raises(errors.ConfigError, match='name one with TMPDIR='):
    folder_lib.check(tmp_path / 'run', resolved(), 'again')


@pytest.mark.thorough
def test_help_and_letters_that_stdout_does_not_take(tmp_path):
  command = [sys.executable, '-m', 'metalr_flax.main']
  with open('/dev/full', 'w') as full:
    process = subprocess.run(
      [*command, '--help'], stdout=full, stderr=subprocess.PIPE, cwd=ROOT
    )
  assert (process.returncode, process.stderr) == (0, b'')
  process = subprocess.run(
    [
      *command,
      DEFAULT,
      f'--workdir={tmp_path}/é',
      '--config.num_outer_steps=3',
    ],
    env={
      **os.environ,
      'PYTHONIOENCODING': 'ascii',
      'TERM': 'xterm-256color',
      'FORCE_COLOR': '1',
    },
    capture_output=True,
    cwd=ROOT,
    check=False,
  )
  assert process.returncode == 0, process.stderr
  assert b'\\xe9' in process.stdout
  # No terminal: lines alone, whatever the environment says.
  assert b'\ncompiling ...\n' in process.stdout
  assert b'\x1b' not in process.stdout + process.stderr
  assert b'\r' not in process.stdout


@pytest.mark.parametrize('encoding', ['ascii', 'latin-1', 'utf-8'])
def test_letters_that_a_terminal_does_not_know(encoding, monkeypatch):
  stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
  monkeypatch.setattr(sys, 'stdout', stream)
  console.say('é→')
  shown = {'ascii': '\\xe9\\u2192', 'latin-1': 'é\\u2192', 'utf-8': 'é→'}
  assert stream.buffer.getvalue().decode(encoding) == shown[encoding] + '\n'


def test_without_jit_there_is_no_run(tmp_path):
  process = subprocess.run(
    [sys.executable, '-m', 'metalr_flax.main', DEFAULT, '--workdir=run'],
    env={**os.environ, 'JAX_DISABLE_JIT': '1', 'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
    cwd=tmp_path,
    check=False,
  )
  assert_refused(process, 2, ['JAX_DISABLE_JIT=1'])
  assert not list(tmp_path.iterdir())
