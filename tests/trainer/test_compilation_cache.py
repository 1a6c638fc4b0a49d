"""What one process compiles, the next one need not; and no bit changes."""

import os
import pathlib
import time
import warnings
import zlib

import jax
import pytest
import runs

from metalr_flax.trainer import compilation_cache

OURS = (
  'jax_compilation_cache_dir',
  'jax_persistent_cache_min_compile_time_secs',
  'jax_persistent_cache_min_entry_size_bytes',
)


@pytest.fixture
def undecided(monkeypatch, tmp_path):
  """JAX without a folder yet, and a user whose caches are in `tmp_path`."""
  before = {name: jax.config.values[name] for name in OURS}
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR', raising=False)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  jax.config.update('jax_compilation_cache_dir', None)
  with warnings.catch_warnings():
    yield tmp_path / 'metalr_flax/compiled'
  for name, value in before.items():
    jax.config.update(name, value)


def test_it_is_on_for_everybody_in_a_folder_of_the_users(undecided):
  folder = compilation_cache.enable()
  assert folder.parent == undecided
  assert jax.config.values['jax_compilation_cache_dir'] == str(folder)
  assert folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_given_to_jax_stays(undecided, monkeypatch, tmp_path):
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path / 'own'))
  assert compilation_cache.enable() is None
  assert jax.config.values['jax_compilation_cache_dir'] is None
  assert not undecided.exists()


def test_jaxs_own_switch_turns_it_off(undecided):
  jax.config.update('jax_enable_compilation_cache', False)
  try:
    assert compilation_cache.enable() is None
  finally:
    jax.config.update('jax_enable_compilation_cache', True)
  assert not undecided.exists()


def test_a_folder_that_cannot_be_made_is_no_error(undecided):
  undecided.parent.write_text('a file where the folder would be')
  assert compilation_cache.enable() is None


def test_no_home_is_no_error(undecided, monkeypatch):
  def fail(path):
    raise RuntimeError('Could not determine home directory.')

  monkeypatch.setenv('XDG_CACHE_HOME', 'not/absolute')
  monkeypatch.setattr(pathlib.Path, 'expanduser', fail)
  assert compilation_cache.enable() is None


def entry(folder, name, content, age):
  path = folder / f'{name}-cache'
  path.write_bytes(content)
  used = time.time() - age
  os.utime(path, (used, used))
  return path


def test_the_oldest_entries_go_where_they_are_too_many(tmp_path):
  whole = zlib.compress(os.urandom(1000))
  paths = [entry(tmp_path, str(i), whole, age=10 * i) for i in range(5)]
  compilation_cache.tidy(tmp_path, 3 * len(whole))
  assert [path.exists() for path in paths] == [True] * 3 + [False] * 2


def test_an_entry_that_a_kill_has_torn_goes(tmp_path):
  whole = zlib.compress(os.urandom(1000))
  torn = entry(tmp_path, 'torn', whole[:500], age=0)
  empty = entry(tmp_path, 'empty', b'', age=0)
  kept = entry(tmp_path, 'kept', whole, age=0)
  zstd = entry(tmp_path, 'zstd', b'\x28\xb5\x2f\xfd...', age=0)
  compilation_cache.tidy(tmp_path, 10**6)
  assert not torn.exists()
  assert not empty.exists()
  assert kept.exists()
  assert zstd.exists()


@pytest.mark.thorough
def test_a_warm_cache_changes_no_bit_and_a_broken_one_no_word(
  tmp_path, monkeypatch
):
  for name in (*OURS, 'jax_enable_compilation_cache'):
    monkeypatch.delenv(name.upper(), raising=False)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'caches'))
  names = ['cold', 'warm', 'torn']
  for name in names:
    folders = [*tmp_path.glob('caches/metalr_flax/compiled/*')]
    if name == 'torn':
      for path in folders[0].glob('*-cache'):
        path.write_bytes(path.read_bytes()[:100])
    found = {p: p.stat().st_mtime for d in folders for p in d.glob('*-cache')}
    _, stderr = runs.run(tmp_path / name, num_outer_steps=40, log_every=40)
    assert 'cache' not in stderr
    after = {p: p.stat().st_mtime for p in folders for p in p.glob('*-cache')}
    if name == 'warm':
      assert found
      assert after == found, 'something was compiled again'
    if name == 'torn':
      assert after.keys() == found.keys()
      assert after != found
  for name in names[1:]:
    runs.assert_same_run(tmp_path / name, tmp_path / names[0])
  assert not [p for n in names for p in (tmp_path / n).rglob('*-cache')]
