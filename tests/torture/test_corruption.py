"""Corruption is seen, and the newest intact step is restored."""

import errno
import logging
import os
import random
import re
import shutil

import harness
import jax
import pytest

from metalr_flax import errors
from metalr_flax.trainer import build
from metalr_flax.workdir import checkpoint
from metalr_flax.workdir import files as files_lib
from metalr_flax.workdir import folder
from metalr_flax.workdir import manifest
from metalr_flax.workdir import saving

BLOCK = 256


def _bit_flip(draw, data):
  place = draw.randrange(len(data))
  flipped = data[place] ^ (1 << draw.randrange(8))
  return data[:place] + bytes([flipped]) + data[place + 1 :]


def _truncated(draw, data):
  return data[: draw.randrange(len(data))]


def _zeroed(draw, data):
  place = draw.choice([i for i, byte in enumerate(data[:65536]) if byte])
  start = max(0, place - draw.randrange(BLOCK))
  zeroed = bytes(len(data[start : place + 1]))
  return data[:start] + zeroed + data[place + 1 :]


def _swapped(draw, data):
  size = min(BLOCK, len(data) // 2)
  for _ in range(50):
    a = draw.randrange(len(data) - 2 * size + 1)
    b = draw.randrange(a + size, len(data) - size + 1)
    one, other = data[a : a + size], data[b : b + size]
    if one != other:
      return data[:a] + other + data[a + size : b] + one + data[b + size :]
  return _bit_flip(draw, data)


def _appended(draw, data):
  return data + draw.randbytes(draw.randint(1, 100))


CONTENT = {
  'bit flip': _bit_flip,
  'truncation': _truncated,
  'zeroed block': _zeroed,
  'swapped blocks': _swapped,
  'appended': _appended,
}
KINDS = [
  *CONTENT,
  'deleted',
  "another step's file",
  'empty step directory',
  'junk names',
  'manifest itself',
]


def _files(step):
  return sorted(p for p in step.rglob('*') if p.is_file() and p.stat().st_size)


def corrupt(draw, kind, state, step):
  """Damages one checkpoint; returns the name of the file concerned."""
  path = state / str(step)
  files = [p for p in _files(path) if p.name != manifest.NAME]
  if kind == 'manifest itself':
    files = [path / manifest.NAME]
    kind = draw.choice([*CONTENT, 'deleted', "another step's file"])
  chosen = draw.choice(files)
  if kind in CONTENT:
    chosen.write_bytes(CONTENT[kind](draw, chosen.read_bytes()))
  elif kind == 'deleted':
    chosen.unlink()
  elif kind == "another step's file":
    other = draw.choice([s for s in state.iterdir() if s != path])
    twin = other / chosen.relative_to(path)
    same = twin.exists() and twin.read_bytes() == chosen.read_bytes()
    if same or not twin.exists():
      twin = draw.choice([
        p for p in _files(other) if p.read_bytes() != chosen.read_bytes()
      ])  # fmt: skip
    shutil.copyfile(twin, chosen)
  elif kind == 'empty step directory':
    shutil.rmtree(path)
    path.mkdir()
    chosen = path / manifest.NAME
  elif kind == 'junk names':
    chosen = draw.choice([path, path / 'state']) / draw.choice(
      ['junk', '.hidden', '8', 'a b', '_METADATA2', 'core.1']
    )
    draw.choice([
      lambda: chosen.write_bytes(draw.randbytes(10)),
      chosen.mkdir,
      lambda: chosen.symlink_to(state),
      lambda: chosen.symlink_to(path / 'nowhere'),
    ])()  # fmt: skip
  return str(chosen.relative_to(path))


def _junk_beside(draw, state):
  """Names that are no checkpoints: no alarm for them."""
  for name in draw.sample(['x', '007', '-1', '1e3', '24.damaged1', '٣'], 2):
    (state / name).mkdir()


@pytest.fixture(scope='module')
def saved(uninterrupted):
  """A finished run's workdir, to be copied, and a state like its own."""
  workdir, _ = uninterrupted
  config = folder.read_config(workdir)
  with build.randomness(config):
    yield workdir, build.build(config).init_state()


@pytest.mark.thorough
def test_corruptions_of_ten_kinds(saved, share, tmp_path, caplog):
  workdir, template = saved
  steps = [20, 16, 12]
  digests = {s: harness.digest(workdir, s)[1] for s in steps}
  for number in range(share(1000)):
    draw = random.Random(number)
    state = tmp_path / 'state'
    shutil.copytree(workdir / 'state', state)
    kind = KINDS[number % len(KINDS)]
    bad = draw.choice([[20], [16], [20, 16], [12, 16], [20, 16, 12]])
    names = {s: corrupt(draw, kind, state, s) for s in bad}
    _junk_beside(draw, state)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
      good = [s for s in steps if s not in bad]
      if good:
        found = checkpoint.find_newest(state, template)
        assert found.step == good[0], (number, kind, bad, names)
        assert checkpoint.fingerprint.digest(found.state) == digests[good[0]]
      else:
        with pytest.raises(errors.NoCheckpointError, match='none intact'):
          checkpoint.find_newest(state, template)
    warned = [r.getMessage() for r in caplog.records]
    expected = [s for s in bad if not good or s > good[0]]
    assert len(warned) == len(expected), (number, kind, bad, warned)
    for step, line in zip(expected, warned, strict=True):
      assert f'state/{step}: damaged (' in line
      assert re.search(re.escape(names[step]), line), (kind, names, line)
    shutil.rmtree(state)


def test_a_pipe_in_a_files_place_is_seen_and_not_waited_for(saved, tmp_path):
  """Whoever opens it waits until somebody writes."""
  for name in ('_CHECKPOINT_METADATA', manifest.NAME):
    state = tmp_path / name
    shutil.copytree(saved[0] / 'state', state)
    (state / '20' / name).unlink()
    os.mkfifo(state / '20' / name)
    assert checkpoint.find_newest(state, saved[1]).step == 16


def test_what_a_run_removes_meanwhile_is_not_damaged(
  saved, tmp_path, monkeypatch, caplog
):
  """A reader lists three steps; before it reads, the run has moved on."""
  state = tmp_path / 'state'
  shutil.copytree(saved[0] / 'state', state)
  real = checkpoint._steps

  def steps(directory):
    monkeypatch.setattr(checkpoint, '_steps', real)
    listed = real(directory)
    with saving.opened(state) as checkpoints:
      for step in range(21, 24):
        new = saved[1].replace(step=jax.numpy.int32(step))
        checkpoints.save(new, {})
    assert not {*real(directory)} & {*listed}
    return listed

  monkeypatch.setattr(checkpoint, '_steps', steps)
  assert checkpoint.find_newest(state, saved[1]).step == 23
  warned = [r for r in caplog.records if r.levelno >= logging.WARNING]
  assert not warned


def test_storage_that_does_not_answer_is_not_taken_for_gone(
  saved, tmp_path, monkeypatch
):
  """Names can be listed and nothing else: no endless search."""
  state = tmp_path / 'state'
  shutil.copytree(saved[0] / 'state', state)
  monkeypatch.setattr(files_lib, 'RETRY_SECS', (0.0,))

  def fail(path, *args, **kwargs):
    raise OSError(errno.EIO, 'Input/output error')

  with monkeypatch.context() as broken:
    broken.setattr(os, 'stat', fail)
    broken.setattr(os, 'lstat', fail)
    with pytest.raises(errors.StorageError, match='state/20: cannot be read'):
      checkpoint.find_newest(state, saved[1])
  monkeypatch.setattr(checkpoint, '_steps', lambda directory: [24])
  with pytest.raises(errors.StorageError, match='that are not there'):
    checkpoint.find_newest(state, saved[1])


def test_a_step_of_another_run_is_not_taken_for_saved(saved, tmp_path):
  with saving.opened(tmp_path) as checkpoints:
    checkpoints.save(saved[1], {})
  other = saved[1].replace(eta=jax.tree.map(lambda e: e + 1, saved[1].eta))
  with (
    pytest.raises(errors.StorageError, match='another run saved this step'),
    saving.opened(tmp_path) as checkpoints,
  ):
    checkpoints.save(other, {})


def test_no_false_alarm(saved, share, caplog):
  workdir, template = saved
  for _ in range(share(100)):
    assert checkpoint.find_newest(workdir / 'state', template).step == 20
  warned = [r for r in caplog.records if r.levelno >= logging.WARNING]
  assert not warned


def test_a_run_goes_on_from_the_step_before_and_loses_nothing(
  servers, whole, saved, tmp_path
):
  path = tmp_path / 'run'
  shutil.copytree(saved[0], path)
  (path / 'results.json').unlink()
  file = max(_files(path / 'state/20'), key=lambda p: p.stat().st_size)
  file.write_bytes(_bit_flip(random.Random(0), file.read_bytes()))
  trial = harness.finish(servers, path)
  assert 'state/20: damaged (' in trial.text
  assert 'resuming from outer step 16' in trial.text
  assert (path / 'state/20.damaged1').is_dir()
  shutil.rmtree(path / 'state/20.damaged1')
  harness.assert_same(path, whole)


def test_none_intact_is_status_6_and_nothing_is_deleted(
  servers, saved, tmp_path
):
  path = tmp_path / 'run'
  shutil.copytree(saved[0], path)
  (path / 'results.json').unlink()
  for step in (path / 'state').iterdir():
    (step / manifest.NAME).unlink()
  before = sorted(path.rglob('*'))
  trial = servers.run(path)
  harness.assert_one_line(trial, 6, '3 checkpoints and none intact')
  assert sorted(path.rglob('*')) == before


def test_another_structure_is_refused_by_name(saved):
  workdir, template = saved
  cases = {
    'params/layers/0/bias is float32[256] there and absent': dict(
      params={**template.params, 'layers': {}}
    ),
    'step is int32[] there and int32[1]': dict(step=template.step[None]),
    'float32[] there and float16[]': dict(
      eta=jax.tree.map(lambda v: v.astype('float16'), template.eta)
    ),
    'more is absent there and float32[]': dict(
      params={**template.params, 'more': jax.numpy.zeros(())}
    ),
  }
  for line, changed in cases.items():
    with pytest.raises(errors.WorkdirError) as caught:
      checkpoint.find_newest(workdir / 'state', template.replace(**changed))
    assert line in str(caught.value)


@pytest.mark.thorough
def test_x64_is_refused_by_name(servers, saved, tmp_path):
  path = tmp_path / 'run'
  shutil.copytree(saved[0], path)
  trial = servers.run(path, {'num_outer_steps': 24}, x64=True)
  harness.assert_one_line(trial, 3, 'float32', 'float64', 'JAX_ENABLE_X64')
