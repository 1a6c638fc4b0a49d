"""Faults of the storage, races for a workdir, changed configs, old releases."""

import concurrent.futures
import errno
import os
import pathlib
import shutil
import subprocess
import threading
import time

import harness
import jax
import numpy as np
import pytest
import runs

import metalr_flax
from metalr_flax import errors
from metalr_flax.workdir import checkpoint
from metalr_flax.workdir import folder
from metalr_flax.workdir import saving

ERRNOS = (errno.EIO, errno.ENOSPC, errno.EROFS, errno.EMFILE)
RELEASE = pathlib.Path(__file__).parent / 'release_0_1'


def run_with_fault(servers, workdir, whole, fault):
  """A transient fault changes nothing; a lasting one is status 5, then mended."""
  trial = servers.run(workdir, fault=fault)
  assert trial.fired, f'the fault never came: {trial}'
  if fault['persistent']:
    harness.assert_one_line(trial, 5, 'mend the storage')
  else:
    assert trial.status == 0, trial
    harness.assert_no_traceback(trial)
    harness.assert_same(workdir, whole)
  harness.finish(servers, workdir)
  harness.assert_same(workdir, whole)


@pytest.mark.thorough
def test_injected_faults(servers, uninterrupted, whole, share, tmp_path):
  """A transient fault is survived; a persistent one is status 5."""
  found = [
    operation
    for operation in harness.operations(*uninterrupted)
    # Readers of what is being made, and removing what may be gone.
    if operation[0] in ('open', 'write', 'fsync', 'rename', 'mkdir')
  ]
  count = share(60)
  chosen = harness.spread(found, count)

  def trial(item):
    number, (kind, pattern, ordinal) = item
    with harness.workdir(tmp_path, number) as workdir:
      fault = {
        'kind': kind,
        'pattern': f'{workdir}{pattern}',
        'ordinal': 1 if 'ocdbt' in pattern else ordinal,
        'action': 'fail',
        'errno': ERRNOS[number // 2 % len(ERRNOS)],
        'persistent': number % 2 == 1,
      }
      run_with_fault(servers, workdir, whole, fault)

  servers.map(trial, enumerate(chosen))


@pytest.mark.thorough
def test_faults_while_a_run_is_resumed(servers, whole, share, tmp_path):
  """Reading, too, is tried again; what stays is status 5, not damage."""
  half = tmp_path / 'half'
  harness.finish(servers, half, {'num_outer_steps': 12})

  def trial(number):
    with harness.workdir(tmp_path, number) as workdir:
      shutil.copytree(half, workdir)
      fault = {
        'kind': 'openread',
        'pattern': f'{workdir}/{"state/12/*" if number % 3 else "*"}',
        # All of the first: some files are read more than once.
        'ordinal': 1 + (number * 7 if number % 3 else number) // 3 % 24,
        'action': 'fail',
        'errno': ERRNOS[number // 2 % len(ERRNOS)],
        'persistent': number % 2 == 1,
      }
      run_with_fault(servers, workdir, whole, fault)

  servers.map(trial, range(share(60)))


@pytest.mark.thorough
@pytest.mark.parametrize(
  ('number', 'persistent'),
  [
    (errno.EIO, False),
    (errno.ENOSPC, True),
    pytest.param(errno.EROFS, True, marks=pytest.mark.full),
  ],
)
def test_a_fault_before_anything_is_imported(
  servers, whole, tmp_path, number, persistent
):
  """Whether the workdir can be written is asked again, too."""
  workdir = tmp_path / 'run'
  harness.finish(servers, workdir, {'num_outer_steps': 12})
  fault = {
    'kind': 'mkdir',
    'pattern': f'{workdir}/.probe*',
    'ordinal': 1,
    'action': 'fail',
    'errno': number,
    'persistent': persistent,
  }
  run_with_fault(servers, workdir, whole, fault)
  if persistent:  # where no run is yet, another folder is as good
    fault['pattern'] = f'{tmp_path}/.probe*'
    trial = servers.run(tmp_path / 'new', fault=fault)
    harness.assert_one_line(trial, 2, 'workdir=', 'choose another')


@pytest.fixture
def small_disk(tmp_path):
  """A real file system that holds two checkpoints and a half."""
  path = tmp_path / 'disk'
  path.mkdir()
  mounted = subprocess.run(
    ['mount', '-t', 'tmpfs', '-o', 'size=3800k', 'tmpfs', path],
    capture_output=True,
    check=False,
  )
  if mounted.returncode:
    pytest.skip(f'no tmpfs can be mounted: {mounted.stderr.decode().strip()}')
  yield path
  subprocess.run(['umount', path], check=True)


@pytest.mark.thorough
def test_a_full_disk(servers, whole, small_disk, tmp_path):
  workdir = small_disk / 'run'
  trial = servers.run(workdir)
  harness.assert_one_line(trial, 5, 'mend the storage')
  kept, _ = harness.digest(workdir, 4)
  assert kept == 4
  moved = tmp_path / 'moved'
  shutil.copytree(workdir, moved)
  trial = harness.finish(servers, moved)
  assert 'resuming from outer step' in trial.text
  harness.assert_same(moved, whole)


@pytest.mark.thorough
def test_a_disk_that_somebody_empties(servers, whole, small_disk, tmp_path):
  """Full while the run is on, and room again before it gives up."""
  ballast = small_disk / 'ballast'
  ballast.write_bytes(bytes(2_500_000))
  done = threading.Event()

  def make_room():
    """As soon as the run has said that it could not write."""
    while not done.wait(0.01):
      outputs = servers.folder.glob('*.out')
      if any('trying again' in output.read_text() for output in outputs):
        break
    ballast.unlink()
    subprocess.run(['mount', '-o', 'remount,size=20m', small_disk], check=True)

  room = threading.Thread(target=make_room)
  room.start()
  # However long the room takes to come on a slow machine.
  trial = servers.run(small_disk / 'run', retry_secs=[0.05] * 2000)
  done.set()
  room.join()
  assert trial.status == 0, trial
  assert 'trying again' in trial.text
  harness.assert_same(small_disk / 'run', whole)


@pytest.mark.thorough
def test_races_for_one_workdir(servers, whole, share, tmp_path):
  for number in range(share(20)):
    with harness.workdir(tmp_path, number) as workdir:
      with concurrent.futures.ThreadPoolExecutor(2) as pool:
        results = list(pool.map(servers.run, [workdir, workdir]))
      statuses = sorted(trial.status for trial in results)
      if statuses == [0, 0]:  # the second came when the first was done
        assert any('already finished' in trial.text for trial in results)
      else:
        assert statuses == [0, 3], results
        refused = next(trial for trial in results if trial.status == 3)
        harness.assert_one_line(refused, 3, 'in use by another run')
      harness.assert_same(workdir, whole)


@pytest.mark.thorough
def test_a_workdir_replaced_by_another_run_is_left_alone(
  servers, whole, tmp_path
):
  """Whoever removes a workdir and starts anew may have forgotten the old run."""
  workdir = tmp_path / 'run'
  fields = {**harness.FIELDS, 'num_outer_steps': 10**6}
  with runs.training(workdir, 'digits_mlp', **fields) as forgotten:
    while not list(workdir.glob('state/[0-9]*')):
      time.sleep(0.01)
      assert forgotten.poll() is None
    workdir.rename(tmp_path / 'away')
    harness.finish(servers, workdir)
    _, stderr = forgotten.communicate()
  assert forgotten.returncode == 5, stderr
  assert 'removed or replaced' in stderr.splitlines()[-1]
  # All it may leave is the save that it was at, which is no checkpoint.
  left = [p for p in (workdir / 'state').iterdir() if p.name.startswith('.')]
  assert len(left) <= 1
  for path in left:
    assert folder.UNFINISHED.match(path.name)
    shutil.rmtree(path)
  harness.assert_same(workdir, whole)


@pytest.mark.parametrize('kind', ['mkdir', 'rename'])
def test_a_workdir_replaced_during_a_save_is_left_alone(
  saved_state, tmp_path, monkeypatch, kind
):
  """At the save's beginning and at its end, where it takes its name."""
  workdir, away = tmp_path / 'run', tmp_path / 'away'
  state = workdir / folder.STATE
  state.mkdir(parents=True)

  def replace():
    monkeypatch.undo()
    workdir.rename(away)
    workdir.mkdir()

  seal = checkpoint.manifest.seal
  if kind == 'rename':
    monkeypatch.setattr(
      checkpoint.manifest, 'seal', lambda *a: (seal(*a), replace())
    )

  def save(check):
    with saving.opened(state, check) as checkpoints:
      if kind == 'mkdir':
        replace()
      checkpoints.save(saved_state, {})

  with folder.locked(workdir) as lock:
    with pytest.raises(errors.StorageError, match='removed or replaced'):
      save(lock.check)
    assert not list(workdir.iterdir())


@pytest.fixture(scope='module')
def saved_state():
  config = runs.flags.parse('m', runs.command('x'), '').config
  with runs.build.randomness(config):
    return runs.build.build(config).init_state()


@pytest.mark.thorough
def test_a_killed_runs_lock_does_not_block_and_readers_never_wait(
  servers, secs, tmp_path
):
  workdir = tmp_path / 'run'
  harness.finish(servers, workdir, {'num_outer_steps': 4})
  with folder.locked(workdir):
    model, _, _ = metalr_flax.load(workdir)  # a reader
    assert model is not None
    trial = servers.run(workdir)
    harness.assert_one_line(trial, 3, 'in use by another run')
  servers.run(workdir, after=0.8 * secs, signal=9)
  harness.finish(servers, workdir)


CHANGES = {
  'seed': 1,
  'task__batch_size': 9,
  'task__kwargs__split_seed': 5,
  'model__kwargs__features': '(64,256,10)',
  'inner__optimizer': 'adam',
  'inner__learning_rate': 2e-4,
  'meta__unroll_length': 3,
  'meta__estimator': 'reverse',
  'meta__remat': 'step',
  'meta__curvature': 'none',
  'meta__subsample': 0.5,
  'meta__discount': 0.8,
  'meta__objective': 'online',
  'meta__optimizer': 'sgd',
  'meta__learning_rate': 0.06,
  'threefry_partitionable': False,
  'meta__groups': 'per_leaf',
}
NEW = [
  ({'seed': 2, 'log_every': 1}, 'seed'),
  ({'inner__kwargs__decay': 0.8}, 'inner.kwargs.decay'),
  ({'inner__kwargs__eps': 1e-6}, 'inner.kwargs.eps'),
  ({'meta__learned__learning_rate': 'log'}, 'meta.learned.learning_rate'),
  ({'task__path': 'x.csv'}, 'task.path'),
]
ALLOWED = [
  {'num_outer_steps': 21},
  {'num_outer_steps': 19},
  {'log_every': 1},
  {'eval_every': 1},
  {'checkpoint_every': 1},
  {'log_every': 50, 'eval_every': 50, 'checkpoint_every': 50},
  {'num_outer_steps': 1000, 'log_every': 2},
  {},
]


def _check(workdir, fields):
  arguments = runs.flags.parse(
    'metalr_flax.main',
    runs.command(workdir, 'digits_mlp', **{**harness.FIELDS, **fields}),
    '',
  )
  folder.check_config(workdir, arguments.config, arguments.command)


@pytest.fixture(scope='module')
def used(uninterrupted):
  workdir, _ = uninterrupted
  return workdir


@pytest.mark.parametrize(
  ('fields', 'name'),
  [({k: v}, k.replace('__', '.')) for k, v in CHANGES.items()] + NEW,
)
def test_a_changed_config_is_refused(used, fields, name):
  field = next(iter(fields))
  base = {k: v for k, v in fields.items() if k == field}
  if 'meta__learned__learning_rate' in fields or 'inner__kwargs' in field:
    base = fields
  with pytest.raises(errors.MetalrError) as caught:
    _check(used, {**fields, **base})
  assert name in str(caught.value)
  if caught.value.status == 3:
    assert f'--workdir={used}-2' in str(caught.value)


@pytest.mark.parametrize('fields', ALLOWED)
def test_what_may_change(used, fields):
  _check(used, fields)


def test_a_run_of_this_release_loads_and_goes_on(tmp_path):
  """The fixture is never made anew: later releases must read it as it is."""
  workdir = tmp_path / 'run'
  shutil.copytree(RELEASE, workdir)
  model, config, schedule = metalr_flax.load(workdir)
  assert config.num_outer_steps == 40
  (theta,) = jax.tree.leaves(metalr_flax.split(model).params)
  last = runs.rows(RELEASE)[-1]
  np.testing.assert_allclose(np.ravel(theta), float(last['params/theta']))
  assert float(schedule(0)) == pytest.approx(0.1)
  runs.run_here(workdir, num_outer_steps=60)
  runs.run_here(tmp_path / 'whole', num_outer_steps=60)
  for one, other in zip(
    runs.rows(workdir), runs.rows(tmp_path / 'whole'), strict=True
  ):
    for key, value in one.items():
      if value:
        # Another machine's last bits are its own.
        np.testing.assert_allclose(float(value), float(other[key]), rtol=1e-4)


def test_nothing_outside_the_workdir_is_written(servers, uninterrupted):
  workdir, log = uninterrupted
  allowed = (
    *(str(workdir), '/dev/', '/proc/', str(servers.folder)),
    os.environ['JAX_COMPILATION_CACHE_DIR'],
  )
  kinds = ('open', 'rename', 'mkdir', 'unlink', 'truncate')
  outside = [
    line
    for line in log.read_text().splitlines()
    if line.split(' ')[0] in kinds
    and not line.split(' ', 1)[1].startswith(allowed)
    # Whether a workdir that is not there yet could be made.
    and '/.probe' not in line
    # Asked for and there already: made by whoever calls the run.
    and not os.path.isdir(line.split(' ', 1)[1])
  ]
  assert not outside
