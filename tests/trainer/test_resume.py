"""A run that was stopped and resumed is the run that was not."""

import json
import shutil
import time

import pytest
import runs
from tensorboard.backend.event_processing import event_accumulator
import tiers

import metalr_flax
from metalr_flax import errors
from metalr_flax import interrupts


@pytest.fixture(scope='module')
def once(tmp_path_factory):
  """A finished run of 20 steps, and the same of 300."""
  folder = tmp_path_factory.mktemp('once')
  runs.run_here(folder / '20', num_outer_steps=20, log_every=1)
  runs.run_here(folder / '300', num_outer_steps=300)
  return folder


@pytest.fixture
def finished(once, tmp_path):
  """The workdir of a finished run of 20 steps, a copy for each test."""
  shutil.copytree(once / '20', tmp_path / 'run')
  return tmp_path / 'run'


def go_on(workdir, num_outer_steps):
  runs.run_here(workdir, num_outer_steps=num_outer_steps, log_every=1)


def contents(workdir):
  return {p: p.read_bytes() for p in workdir.rglob('*') if p.is_file()}


@pytest.mark.thorough
def test_cadences_may_change_and_change_no_bit(once, tmp_path):
  fields = {'log_every': 1, 'checkpoint_every': 17}
  runs.run_here(tmp_path, num_outer_steps=120, **fields)
  fields = {'log_every': 90, 'checkpoint_every': 500}
  runs.run_here(tmp_path, num_outer_steps=300, **fields)
  runs.assert_same_run(tmp_path, once / '300')


def test_rows_after_the_checkpoint_are_written_again(once, tmp_path):
  """A killed run has rows that its checkpoint does not know of."""
  runs.run_here(tmp_path, num_outer_steps=100)
  with open(tmp_path / 'metrics.csv', 'a') as file:
    file.write('101,606,1.0,torn ro')
  (tmp_path / 'events.out.tfevents.1.other.1.0').write_bytes(b'torn')
  runs.run_here(tmp_path, num_outer_steps=300)
  runs.assert_same_run(tmp_path, once / '300')
  assert not (tmp_path / 'events.out.tfevents.1.other.1.0').exists()


@pytest.mark.full
def test_digits_resumed_off_every_cadence(tmp_path, monkeypatch):
  """In processes of their own, each of which compiles it anew."""
  monkeypatch.setenv('JAX_ENABLE_COMPILATION_CACHE', 'false')
  whole, cut = tmp_path / 'whole', tmp_path / 'cut'
  cadences = {'log_every': 7, 'eval_every': 20, 'checkpoint_every': 30}
  runs.run_here(whole, 'digits_mlp', num_outer_steps=100, **cadences)
  runs.run(cut, 'digits_mlp', num_outer_steps=43, **cadences)
  runs.run(cut, 'digits_mlp', num_outer_steps=100, **cadences)
  runs.assert_same_run(cut, whole)


@pytest.mark.thorough
def test_reference_run_resumed_in_a_new_process(
  reference, tmp_path, monkeypatch
):
  """Which compiles it anew."""
  monkeypatch.setenv('JAX_ENABLE_COMPILATION_CACHE', 'false')
  runs.run(tmp_path, num_outer_steps=1000)
  stdout, _ = runs.run(tmp_path)
  assert 'resuming from outer step 1000' in stdout
  assert len(runs.rows(tmp_path)) == 2000
  runs.assert_same_run(tmp_path, reference)


def test_sigterm_saves_and_the_same_command_goes_on(tmp_path):
  whole, cut = tmp_path / 'whole', tmp_path / 'cut'
  fields = {
    'num_outer_steps': 600,
    'log_every': 1,
    'eval_every': 100,
    'checkpoint_every': 500,
  }
  runs.run_here(whole, **fields)
  # Its lines fill the pipe before it is done, and it waits for the signal.
  with runs.training(cut, pipesize=4096, **fields) as process:
    stderr = runs.stop_at(process, 'step 100/')
  assert process.returncode == 75, stderr
  assert 'metalr_flax: interrupted: SIGTERM at outer step' in stderr
  assert 100 <= len(runs.rows(cut)) < 600
  stdout, _ = runs.run(cut, **fields)
  assert 'resuming from outer step' in stdout
  runs.assert_same_run(cut, whole)


def test_a_finished_run_says_so_and_changes_nothing(finished, capsys):
  before = {p: p.stat().st_mtime_ns for p in finished.rglob('*')}
  capsys.readouterr()
  go_on(finished, 20)
  assert 'already finished at outer step 20' in capsys.readouterr().out
  assert {p: p.stat().st_mtime_ns for p in finished.rglob('*')} == before


def test_an_extended_run_goes_on_by_its_first_command(finished, capsys):
  """After an interrupt, and once it is done; a smaller number shortens none."""
  stop = interrupts.StopRequest()
  stop.name = 'SIGTERM'
  with pytest.raises(errors.Interrupted):
    runs.run_here(finished, stop=stop, num_outer_steps=30, log_every=1)
  for steps, said in [(20, 'resuming from outer step 20'), (7, 'already')]:
    capsys.readouterr()
    go_on(finished, steps)
    lines = capsys.readouterr().out
    assert f'num_outer_steps=30, as an earlier command had it in {finished}, ' \
      f'not {steps}; ' in lines  # fmt: skip
    assert said in lines
    assert len(runs.rows(finished)) == 30
  assert 'already finished at outer step 30' in lines
  config = json.loads((finished / 'config.json').read_text())
  results = json.loads((finished / 'results.json').read_text())
  assert config['num_outer_steps'] == results['outer_step'] == 30


def test_missing_results_are_made_up_for(finished):
  """Killed between the last checkpoint and the results."""
  results = (finished / 'results.json').read_text()
  (finished / 'results.json').unlink()
  shutil.rmtree(finished / 'plots')
  go_on(finished, 20)
  assert (finished / 'results.json').read_text() == results
  assert (finished / 'plots/learning_rate.png').exists()


def _torn(path):
  path.write_bytes(path.read_bytes() + b'21,126,1.0,torn ro')


def _cut(path):
  path.write_bytes(path.read_bytes()[:-20])


def _flipped(path):
  text = path.read_bytes()
  path.write_bytes(text[:-30] + bytes([text[-30] ^ 1]) + text[-29:])


def _gone(path):
  path.unlink()


def test_what_a_kill_left_of_the_rows_can_be_loaded(finished):
  _, _, whole = metalr_flax.load(finished)
  _torn(finished / 'metrics.csv')
  _, _, schedule = metalr_flax.load(finished)
  assert [schedule(i) for i in range(150)] == [whole(i) for i in range(150)]


@tiers.parametrize(
  'damage',
  [_cut, _flipped, _gone],
  ['_flipped'],
  key=lambda damage: damage.__name__,
)
def test_damaged_rows_are_seen_and_nothing_is_changed(finished, damage):
  damage(finished / 'metrics.csv')
  before = contents(finished)
  with pytest.raises(errors.WorkdirError, match=r'metrics\.csv: its first'):
    metalr_flax.load(finished)
  with pytest.raises(errors.WorkdirError, match='put the file back'):
    go_on(finished, 30)
  assert contents(finished) == before


@pytest.mark.thorough
def test_a_clock_set_back_leaves_tensorboard_in_order(finished, monkeypatch):
  """Readers take event files in the order of the seconds in their names."""
  now = time.time()
  monkeypatch.setattr(time, 'time', lambda: now - 1e6)
  go_on(finished, 40)
  reader = event_accumulator.EventAccumulator(
    str(finished), {event_accumulator.TENSORS: 0}
  )
  reader.Reload()
  steps = [event.step for event in reader.Tensors('train/loss')]
  assert steps == list(range(6, 241, 6))  # inner updates


def test_lost_events_are_told(finished, caplog):
  (events,) = finished.glob('events.*')
  events.unlink()
  go_on(finished, 30)
  assert f'{events}: not as the checkpoint recorded' in caplog.text


@tiers.parametrize('text', ['[]', 'null', '{', '{"outer_step": "x"}'], ['{'])
def test_results_that_are_none_are_made_anew(finished, text):
  results = (finished / 'results.json').read_text()
  (finished / 'results.json').write_text(text)
  go_on(finished, 20)
  assert (finished / 'results.json').read_text() == results


@pytest.mark.thorough
def test_leftovers_that_are_no_folders_do_not_block(finished):
  (finished / 'state/.10.old').write_bytes(b'')
  (finished / 'state/.30.saving').symlink_to(finished / 'state/20')
  go_on(finished, 30)
  assert {p.name for p in (finished / 'state').iterdir()} == {'20', '30'}
