"""No checkpoint is sealed that could not be read back."""

import logging
import shutil

from etils import epath
import jax
import pytest
import runs
import tiers

from metalr_flax import errors
from metalr_flax.workdir import arrays
from metalr_flax.workdir import checkpoint
from metalr_flax.workdir import files
from metalr_flax.workdir import fingerprint
from metalr_flax.workdir import saving

# Orbax's other reads are left behind when one has failed.
pytestmark = pytest.mark.filterwarnings(
  'ignore:Exception ignored in. (<coroutine object _read_array_index|None)'
  ':pytest.PytestUnraisableExceptionWarning'
)


@pytest.fixture(scope='module')
def state():
  """Arrays that Orbax puts into files of their own, a key and scalars."""
  fields = {'model__kwargs__features': '(64,64,10)'}
  argv = runs.command('x', 'digits_mlp', **fields)
  config = runs.flags.parse('m', argv, '').config
  with runs.build.randomness(config):
    return runs.build.build(config).init_state()


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
  monkeypatch.setattr(files, 'RETRY_SECS', (0.0,))


def refused(directory, state):
  """The error of a save that did not work; nothing has a name or a seal."""
  with (
    pytest.raises(errors.StorageError, match='cannot be saved') as caught,
    saving.opened(directory) as checkpoints,
  ):
    checkpoints.save(state, {})
  names = [p.name for p in directory.iterdir()]
  assert not [n for n in names if n.isdecimal()]
  assert not list(directory.rglob(checkpoint.manifest.NAME))
  line = str(caught.value)
  assert len(line.splitlines()) == 1
  assert 'Errno None' not in line
  return line


def damaged_after_writing(monkeypatch, damage):
  save = arrays.save
  monkeypatch.setattr(
    arrays, 'save', lambda folder, state: (save(folder, state), damage(folder))
  )


def _gone(path):
  path.unlink()


def _cut(path):
  path.write_bytes(path.read_bytes()[:-1])


def _restores(folder, state):
  try:
    return fingerprint.digest(arrays.restore(folder, state)) == (
      fingerprint.digest(state)
    )
  except OSError:
    return False


@tiers.parametrize(
  'damage', [_gone, _cut], ['_gone'], key=lambda damage: damage.__name__
)
def test_every_file_that_a_restore_needs_is_read(state, tmp_path, damage):
  """By the cheap look alone, which every checkpoint gets."""
  whole, folder = tmp_path / 'whole', tmp_path / 'damaged'
  arrays.save(whole, state)
  arrays.check_complete(whole, state)
  needed = []
  for name in files.walk(whole)[0]:
    shutil.copytree(whole, folder)
    damage(folder / name)
    if not _restores(folder, state):
      needed.append(name)
      with pytest.raises((OSError, ValueError)):
        arrays.check_complete(folder, state)
    shutil.rmtree(folder)
  assert 'state/manifest.ocdbt' in needed
  assert any(name.startswith('state/d/') for name in needed)


@pytest.mark.parametrize('pattern', ['state/manifest.ocdbt', 'state/d/*'])
def test_a_file_lost_between_writing_and_sealing(
  state, tmp_path, monkeypatch, pattern
):
  """Of a later checkpoint, whose bits are not compared."""
  later = state.replace(step=jax.numpy.int32(7))

  def damage(folder):
    for path in folder.glob(pattern):
      path.unlink()

  def save_both():
    with saving.opened(tmp_path) as checkpoints:
      checkpoints.save(state, {})
      checkpoints.wait()
      damaged_after_writing(monkeypatch, damage)
      checkpoints.save(later, {})

  with pytest.raises(errors.StorageError, match=r'state|arrays') as caught:
    save_both()
  assert 'Errno None' not in str(caught.value)
  assert not (tmp_path / '7').exists()
  assert checkpoint.find_newest(tmp_path, state).step == 0


def test_other_arrays_than_were_saved(state, tmp_path, monkeypatch):
  """What the cheap look does not see: the first save of a run is compared."""
  other, save = jax.tree.map(lambda e: e + 1, state.eta), arrays.save

  def save_other(folder, stored):
    save(folder, {**stored, 'eta': other})

  monkeypatch.setattr(arrays, 'save', save_other)
  line = refused(tmp_path, state)
  assert 'the arrays read back are not those that were saved' in line


def _glob_of_orbax(monkeypatch):
  base = type(epath.Path('/'))
  monkeypatch.setattr(arrays._LiteralPath, 'glob', base.glob)


def test_a_warning_of_orbax_is_an_error(state, tmp_path, monkeypatch):
  """It skips the merge of its files where it finds none."""
  _glob_of_orbax(monkeypatch)
  line = refused(tmp_path / 'lr[0.1]', state)
  assert 'Orbax warns: ' in line
  assert 'Skipping merge' in line


def test_without_the_warning_it_is_seen_as_well(
  state, tmp_path, monkeypatch, caplog
):
  _glob_of_orbax(monkeypatch)
  logger = logging.getLogger('absl')
  logger.addFilter(lambda record: 'Skipping merge' not in record.getMessage())
  try:
    line = refused(tmp_path / 'lr[0.1]', state)
  finally:
    logger.removeFilter(logger.filters[-1])
  assert 'only 0 of ' in line
  assert 'can be read back' in line


def test_a_warning_of_another_thread_is_none_of_orbax(
  state, tmp_path, monkeypatch, caplog
):
  damaged_after_writing(
    monkeypatch, lambda _: logging.getLogger('absl').warning('a word')
  )
  with saving.opened(tmp_path) as checkpoints:
    checkpoints.save(state, {})
  assert 'a word' in caplog.text
  assert checkpoint.find_newest(tmp_path, state)


def test_a_folder_that_cannot_be_listed_is_no_empty_one(
  state, tmp_path, monkeypatch
):
  """A fault that passes: Orbax's own search would take it for no files."""
  real, failed = files.list_directory, []

  def list_directory(path):
    if 'orbax-checkpoint-tmp' in str(path) and not failed:
      failed.append(path)
      raise OSError(24, 'Too many open files')
    return real(path)

  monkeypatch.setattr(files, 'list_directory', list_directory)
  with saving.opened(tmp_path) as checkpoints:
    checkpoints.save(state, {})
  assert failed
  assert checkpoint.find_newest(tmp_path, state)
