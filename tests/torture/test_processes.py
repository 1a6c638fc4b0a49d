"""Two processes on loopback: the same bits, and none is lost without a word.

All but the first test are for --full, which has 20 kills and 20 signals.
"""

import random
import shutil
import signal
import time

import harness
import loopback
import numpy as np
import pytest
import runs
import streams_code

from metalr_flax.workdir import folder
from metalr_flax.workdir import metrics_csv


def remains(workdir):
  """What must be the same however many processes there were, and cuts."""
  found = harness.remains(workdir)
  return {k: v for k, v in found.items() if k != 'kept'}


def assert_same(workdir, expected):
  got = remains(workdir)
  for name, value in expected.items():
    assert got[name] == value, f'{name} differ: {got[name]} {value}'


def assert_near(workdir, expected):
  """Within 1e-5 where sums were taken in another order."""
  rows = remains(workdir)['rows']
  for row, other in zip(rows, expected['rows'], strict=True):
    for name, cell in other.items():
      if cell:
        np.testing.assert_allclose(
          float(row[name]), float(cell), rtol=1e-5, atol=1e-7, err_msg=name
        )


def finish(servers, workdir, count=2, devices=2, **fields):
  """Trains to the end; every process ends well."""
  trials = loopback.together(servers, workdir, count, devices, fields=fields)
  assert [t.status for t in trials] == [0] * count, trials
  for trial in trials:
    assert 'Check failure' not in trial.text, 'JAX aborted it'
  for trial in trials[1:]:
    said = 'starting in' in trial.text or 'resuming from' in trial.text
    assert not said, 'process 0 speaks for all'
  return trials


@pytest.fixture(scope='module')
def four(servers, tmp_path_factory):
  """What one process on four devices leaves behind."""
  workdir = tmp_path_factory.mktemp('four') / 'run'
  finish(servers, workdir, count=1, devices=4)
  return remains(workdir)


@pytest.fixture(scope='module')
def two(servers, tmp_path_factory):
  """What two processes on a device each leave, and how long they take."""
  workdir = tmp_path_factory.mktemp('two') / 'run'
  finish(servers, workdir, devices=1)
  again = tmp_path_factory.mktemp('timed') / 'run'  # all is compiled
  secs = max(t.secs for t in finish(servers, again, devices=1))
  return remains(workdir), secs


def test_different_configs(tmp_path):
  """All end with one line, and nothing is written."""
  workdir, port = tmp_path / 'run', loopback.free_port()
  ended = loopback.wait(
    [
      loopback.start(
        [*runs.command(workdir, seed=index), *loopback.cluster(index, 2, port)]
      )
      for index in range(2)
    ]
  )
  for each in ended:
    assert each.status == 2, ended
    assert 'seed=0: is 1 in process 1' in loopback.line(each.err)
    assert each.err.count('\n') == 1, each
  assert not workdir.exists()


@pytest.mark.full
def test_processes_that_never_come(tmp_path):
  """A bounded wait, one line, status 2, nothing written."""
  workdir, port = tmp_path / 'run', loopback.free_port()
  for index in range(2):
    argv = [*runs.command(workdir), *loopback.cluster(index, 2, port)]
    [ended] = loopback.wait([loopback.start(argv, join_secs=3)])
    assert ended.status == 2, ended
    assert f'coordinator=127.0.0.1:{port}' in loopback.line(ended.err)
    assert ended.err.count('\n') == 1, ended
    assert not workdir.exists()


@pytest.mark.full
def test_without_a_cluster(tmp_path):
  argv = [*runs.command(tmp_path / 'run'), '--distributed']
  [ended] = loopback.wait([loopback.start(argv)])
  assert ended.status == 2, ended
  assert 'no cluster is found in the environment' in loopback.line(ended.err)
  assert not (tmp_path / 'run').exists()


@pytest.mark.full
@pytest.mark.parametrize('mesh', ['()', '(2,2)'])
def test_two_processes_are_one_with_as_many_devices(servers, tmp_path, mesh):
  finish(servers, tmp_path / 'one', count=1, devices=4, mesh=mesh)
  finish(servers, tmp_path / 'two', mesh=mesh)
  assert_same(tmp_path / 'two', remains(tmp_path / 'one'))


# (processes, devices of all of them)
SHAPES = [(1, 1), (1, 2), (1, 4), (2, 2), (2, 4)]


@pytest.mark.full
@pytest.mark.parametrize('first', SHAPES, ids=str)
def test_resumed_on_any_number(servers, four, tmp_path, first):
  """All pairs: 1e-5 beside four devices, bits where both had four."""
  saved = tmp_path / 'saved'
  count, devices = first
  finish(servers, saved, count, devices // count, num_outer_steps=8)
  for count, devices in SHAPES:
    workdir = tmp_path / f'{count}_{devices}'
    shutil.copytree(saved, workdir)
    finish(servers, workdir, count, devices // count)
    same = first[1] == devices == 4
    (assert_same if same else assert_near)(workdir, four)


def moments(number, secs, seed):
  """Moments from the start to the end of a run."""
  draw = random.Random(seed)
  return [secs * (i + draw.random()) / number for i in range(number)]


ORDERS = ('first', 'second')


@pytest.mark.full
def test_a_killed_process_ends_the_other(servers, two, share, tmp_path):
  """SIGKILL of one of two: a line says which, and the same command goes on."""
  expected, secs = two
  chosen = enumerate(moments(20, secs, 0))
  for number, after in harness.spread([*chosen], share(20)):
    workdir, victim = tmp_path / str(number), number // 2 % 2
    order = {ORDERS[victim]: {'after': after, 'signal': signal.SIGKILL}}
    trials = loopback.together(servers, workdir, devices=1, **order)
    killed, other = trials[victim], trials[1 - victim]
    assert killed.status in (0, -signal.SIGKILL), trials
    if killed.status:
      assert other.status in (0, 2, 7), trials  # 2: before they were together
      assert other.secs < after + 90, 'the other one hangs'
    if other.status == 7:
      assert f'process {victim} is gone' in loopback.line(other.text)
    finish(servers, workdir, devices=1)
    assert_same(workdir, expected)


@pytest.mark.full
@pytest.mark.parametrize('victim', [0, 1])
def test_one_that_dies_in_a_save_is_said_to_be_gone(
  servers, two, tmp_path, victim
):
  """Not that the storage failed: the other one sees Orbax fail."""
  workdir, other = tmp_path / 'run', 1 - victim
  fault = {
    'kind': 'write',
    'pattern': f'{workdir}/state/*ocdbt.process_{victim}*',
    'ordinal': 1,
    'action': 'kill',
  }
  trials = loopback.together(
    servers, workdir, devices=1, **{ORDERS[victim]: {'fault': fault}}
  )
  assert trials[victim].status == -signal.SIGKILL, trials
  assert trials[other].status == 7, trials[other].text
  assert f'process {victim} is gone' in loopback.line(trials[other].text)
  finish(servers, workdir, devices=1)
  assert_same(workdir, two[0])


@pytest.mark.full
def test_a_signal_at_one_process_stops_all(servers, two, share, tmp_path):
  """SIGTERM: all save the same step and end with status 75."""
  expected, secs = two
  chosen = enumerate(moments(20, secs, 1))
  stopped = []
  for number, after in harness.spread([*chosen], share(20)):
    workdir, told = tmp_path / str(number), number // 2 % 2
    order = {ORDERS[told]: {'after': after, 'signal': signal.SIGTERM}}
    trials = loopback.together(servers, workdir, devices=1, **order)
    statuses = [t.status for t in trials]
    if statuses == [75, 75]:
      lines = [loopback.line(t.text) for t in trials]
      assert lines[0] == lines[1]
      assert 'SIGTERM at outer step' in lines[0]
      stopped.append(number)
    else:  # before they were together, or when all was done
      assert statuses == [0, 0] or trials[told].status in (75, -15), trials
    finish(servers, workdir, devices=1)
    assert_same(workdir, expected)
  assert stopped


def flip(path):
  """One bit in the middle of a file."""
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


def cut(path):
  path.write_bytes(path.read_bytes()[:-1])


def remove(path):
  path.unlink()


@pytest.mark.full
def test_a_damaged_shard_makes_all_fall_back(servers, tmp_path):
  """Both go on from the step before, though one process's part is bad."""
  whole = tmp_path / 'whole'
  finish(servers, whole, devices=1, mesh='(1,2)')
  for damage in (flip, cut, remove):
    workdir = tmp_path / damage.__name__
    shutil.copytree(whole, workdir)
    parts = [*workdir.glob('state/20/state/ocdbt.process_1/d/*')]
    assert parts, 'process 1 wrote no part of it'
    damage(max(parts, key=lambda path: path.stat().st_size))
    first, _ = finish(servers, workdir, devices=1, mesh='(1,2)')
    assert 'state/20: damaged' in first.text
    assert 'resuming from outer step 16' in first.text
    assert (workdir / 'state/20.damaged1').is_dir()
    assert_same(workdir, remains(whole))


STREAM = {
  'model__name': 'vector',
  'model__kwargs': {'size': 2},
  'task__name': 'streams_code:Shared',
  'task__batch_size': 8,
  'task__kwargs': {},
  'inner__learning_rate': 0.003,
  'meta__unroll_length': 2,
  'num_outer_steps': 12,
  'eval_every': 5,
  'checkpoint_every': 5,
}


@pytest.mark.full
def test_a_stream_is_shared_and_resumed(servers, tmp_path):
  """Each process reads its half of a batch, in one run or in two."""

  def train(name, **fields):
    trials = loopback.together(
      servers,
      tmp_path / name,
      devices=1,
      config='default',
      fields={**STREAM, **fields},
    )
    assert [t.status for t in trials] == [0, 0], trials
    assert 'the same batches' not in trials[0].text

  train('whole')
  train('cut', num_outer_steps=7)
  train('cut')
  runs.assert_same_run(tmp_path / 'whole', tmp_path / 'cut')
  stream = streams_code.Shared(4)
  halves = [iter(stream.of('train', 0, index, 2)) for index in range(2)]
  means = [np.mean([next(half)['y'] for half in halves]) for _ in range(24)]
  found = metrics_csv.read(tmp_path / 'whole' / folder.METRICS)['train/mark']
  expected = np.reshape(means, (12, 2)).mean(1)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.full
def test_a_workdir_in_use_is_refused_by_all(servers, tmp_path):
  workdir = tmp_path / 'run'
  with runs.training(workdir, 'digits_mlp', num_outer_steps=100_000) as other:
    for text in other.stdout:
      if text.startswith('step'):
        break
    fields = {'num_outer_steps': 100_000}
    begun = time.monotonic()
    trials = loopback.together(servers, workdir, devices=1, fields=fields)
  assert time.monotonic() - begun < 60
  for trial in trials:
    assert trial.status == 3, trials
