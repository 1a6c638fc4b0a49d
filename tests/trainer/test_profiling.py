"""A trace of a few outer steps, which never breaks a run or changes a bit."""

import gzip
import json

import jax
import pytest
import runs

FIELDS = {'num_outer_steps': 30, 'eval_every': 25}


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('plain') / 'run'
  runs.run_here(workdir, **FIELDS)
  return workdir


def traces(workdir):
  """The traces, as TensorBoard's profile page finds them."""
  return [*workdir.glob('profile/plugins/profile/*/*.trace.json.gz')]


@pytest.mark.thorough
def test_a_trace_of_some_steps_changes_no_bit(plain, tmp_path, capsys):
  runs.run_here(tmp_path, profile_steps=6, **FIELDS)
  assert f'profile of 6 outer steps: {tmp_path}/profile' in (
    capsys.readouterr().out
  )
  (path,) = traces(tmp_path)
  events = json.loads(gzip.decompress(path.read_bytes()))['traceEvents']
  names = ' '.join(event.get('name', '') for event in events)
  assert 'outer_steps' in names
  assert 'lower' not in names, 'it is compiled before'
  assert [*path.parent.glob('*.xplane.pb')]
  runs.assert_same_run(tmp_path, plain)
  assert not (plain / 'profile').exists()


def test_a_run_that_is_shorter_than_the_trace_has_what_there_was(
  tmp_path, capsys
):
  runs.run_here(tmp_path, profile_steps=100, num_outer_steps=10)
  assert 'profile of 9 outer steps' in capsys.readouterr().out
  assert len(traces(tmp_path)) == 1


@pytest.mark.thorough
def test_a_profiler_that_fails_is_a_warning(plain, tmp_path, caplog):
  runs.run_here(tmp_path, num_outer_steps=10)
  (tmp_path / 'profile').write_text('in the way of a folder')
  runs.run_here(tmp_path, profile_steps=3, num_outer_steps=20, eval_every=25)
  assert f'{tmp_path}/profile: no profile' in caplog.text
  jax.profiler.start_trace(tmp_path / 'elsewhere')
  try:
    runs.run_here(tmp_path, profile_steps=3, **FIELDS)
  finally:
    jax.profiler.stop_trace()
  assert caplog.text.count('the run goes on') == 2
  runs.assert_same_run(tmp_path, plain)


@pytest.mark.thorough
def test_it_may_change_when_a_run_is_resumed(plain, tmp_path):
  runs.run_here(tmp_path, num_outer_steps=10, profile_steps=3)
  runs.run_here(tmp_path, profile_steps=2, **FIELDS)
  assert len(traces(tmp_path)) == 2
  runs.assert_same_run(tmp_path, plain)
