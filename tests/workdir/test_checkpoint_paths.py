"""Workdirs of all names: what is saved there can be read back."""

import os
import pathlib

import pytest
import runs

import metalr_flax
from metalr_flax import errors
from metalr_flax.workdir import arrays
from metalr_flax.workdir import checkpoint
from metalr_flax.workdir import fingerprint
from metalr_flax.workdir import folder as folder_lib
from metalr_flax.workdir import metrics_csv
from metalr_flax.workdir import saving

NAMES = [
  'lr[0.1]', '[!a]', 'a*b', '**', 'wh?at', 'new\nline', 'sp ace ', '%20', '#x',
  'ünï→', '{a}', '$HOME', '~', "quote'\"", 'a:', 'x.orbax-checkpoint-tmp',
  'commit_success.txt', '\x01',
]  # fmt: skip


@pytest.fixture(scope='module')
def state():
  config = runs.flags.parse('m', runs.command('x'), '').config
  with runs.build.randomness(config):
    return runs.build.build(config).init_state()


def assert_saved(directory, state):
  with saving.opened(directory) as checkpoints:
    checkpoints.save(state, {})
  found = checkpoint.find_newest(directory, state)
  assert fingerprint.digest(found.state) == fingerprint.digest(state)


@pytest.mark.parametrize('name', NAMES)
def test_a_checkpoint_in_a_folder_of_any_name(name, state, tmp_path):
  workdir = tmp_path / name
  folder_lib.check_writable(workdir)
  assert_saved(workdir / 'state', state)
  assert [p.name for p in tmp_path.iterdir()] == [name]


def test_in_a_folder_of_any_name_above_and_from_within(
  state, tmp_path, monkeypatch
):
  folder = tmp_path / 'runs[1]*' / 'a b'
  folder.mkdir(parents=True)
  monkeypatch.chdir(folder)
  assert_saved(pathlib.Path('state'), state)
  assert_saved(pathlib.Path('../[x]/state'), state)


def test_behind_a_link_and_beside_where_it_leads(state, tmp_path):
  """TensorStore takes `link/..` for the folder that the link is in."""
  (tmp_path / 'real' / 'deep').mkdir(parents=True)
  (tmp_path / 'link').symlink_to(tmp_path / 'real' / 'deep')
  assert_saved(tmp_path / 'link' / 'state', state)
  assert_saved(tmp_path / 'link' / '..' / 'x' / 'state', state)
  assert sorted(p.name for p in tmp_path.iterdir()) == ['link', 'real']


@pytest.mark.parametrize('root', ['gs', 's3', 'az', 'hf'])
def test_a_folder_called_as_a_cloud_is_local(root):
  """A bucket that is mounted there."""
  path = arrays._literal(pathlib.Path(f'/{root}/run'))
  assert os.path.realpath(os.fspath(path)) == f'/{root}/run'
  assert '://' not in os.fspath(path / 'state')


@pytest.mark.parametrize('name', ['back\\slash', 'logs:', 'x.__lock'])
def test_names_that_tensorstore_changes_are_refused(name, tmp_path):
  for path in (tmp_path / name, tmp_path / name / 'run'):
    with pytest.raises(errors.ConfigError, match='Orbax saves nothing below'):
      folder_lib.check_writable(path)
  (tmp_path / name).mkdir()
  (tmp_path / 'link').symlink_to(tmp_path / name)
  with pytest.raises(errors.ConfigError, match='Orbax saves nothing below'):
    folder_lib.check_writable(tmp_path / 'link' / 'run')


def test_a_path_too_long_for_a_checkpoint_is_refused(tmp_path):
  path = tmp_path / ('/a' * ((3950 - len(str(tmp_path))) // 2))[1:]
  with pytest.raises(errors.ConfigError, match='too long'):
    folder_lib.check_writable(path)


@pytest.mark.thorough
def test_stopped_resumed_and_loaded(tmp_path):
  """The real program, in such a folder and with such a workdir."""
  folder = tmp_path / 'runs[1]'
  folder.mkdir()
  argv = runs.command('lr[0.1]*?', num_outer_steps=10**6, checkpoint_every=500)
  command = ['-m', 'metalr_flax.main', *argv]
  with runs.started(command, cwd=folder) as process:
    stderr = runs.stop_at(process, 'step ')
  assert process.returncode == 75, stderr
  assert 'state saved in lr[0.1]*?' in stderr
  workdir = folder / 'lr[0.1]*?'
  rates = metrics_csv.read(workdir / 'metrics.csv')['hyperparams/learning_rate']
  _, _, schedule = metalr_flax.load(workdir)
  assert float(schedule(10**9)) == rates[-1]
  stop = runs.interrupts.StopRequest()
  stop.name = 'SIGTERM'  # resumes, and stops at once
  with pytest.raises(errors.Interrupted, match=f'at outer step {len(rates)}'):
    runs.run_here(
      workdir, stop=stop, num_outer_steps=10**6, checkpoint_every=500
    )
