"""A run that was stopped and resumed is the run that was not."""

import shutil
import signal
import time

import pytest
import runs
from tensorboard.backend.event_processing import event_accumulator

import metalr_flax
from metalr_flax import errors


def test_reference_run_resumed_in_a_new_process(tmp_path):
  whole, cut = tmp_path / 'whole', tmp_path / 'cut'
  runs.run(whole)
  runs.run(cut, num_outer_steps=1000)
  stdout, _ = runs.run(cut)
  assert 'resuming from outer step 1000' in stdout
  assert len(runs.rows(cut)) == 2000
  runs.assert_same_run(cut, whole)


def test_digits_resumed_off_every_cadence(tmp_path):
  whole, cut = tmp_path / 'whole', tmp_path / 'cut'
  cadences = {'log_every': 7, 'eval_every': 20, 'checkpoint_every': 30}
  runs.run(whole, 'digits_mlp', num_outer_steps=100, **cadences)
  runs.run(cut, 'digits_mlp', num_outer_steps=43, **cadences)
  runs.run(cut, 'digits_mlp', num_outer_steps=100, **cadences)
  runs.assert_same_run(cut, whole)


def test_cadences_may_change_and_change_no_bit(tmp_path):
  one, other = tmp_path / 'one', tmp_path / 'other'
  runs.run_here(one, num_outer_steps=300)
  runs.run_here(other, num_outer_steps=120, log_every=1, checkpoint_every=17)
  runs.run_here(other, num_outer_steps=300, log_every=90, checkpoint_every=250)
  runs.assert_same_run(other, one)


def test_rows_after_the_checkpoint_are_written_again(tmp_path):
  """A killed run has rows that its checkpoint does not know of."""
  one, other = tmp_path / 'one', tmp_path / 'other'
  runs.run_here(one, num_outer_steps=200)
  runs.run_here(other, num_outer_steps=100)
  with open(other / 'metrics.csv', 'a') as file:
    file.write('101,606,1.0,torn ro')
  (other / 'events.out.tfevents.1.other.1.0').write_bytes(b'torn')
  runs.run_here(other, num_outer_steps=200)
  runs.assert_same_run(other, one)
  assert not (other / 'events.out.tfevents.1.other.1.0').exists()


def test_sigterm_saves_and_the_same_command_goes_on(tmp_path):
  whole, cut = tmp_path / 'whole', tmp_path / 'cut'
  fields = {'num_outer_steps': 600, 'eval_every': 100, 'checkpoint_every': 500}
  runs.run(whole, 'digits_mlp', **fields)
  process = runs.start(cut, 'digits_mlp', **fields)
  for line in process.stdout:
    if line.startswith('step 100/'):
      process.send_signal(signal.SIGTERM)
      break
  _, stderr = process.communicate(timeout=60)
  assert process.returncode == 75, stderr
  assert 'metalr_flax: interrupted: SIGTERM at outer step' in stderr
  assert 100 <= len(runs.rows(cut)) < 600
  stdout, _ = runs.run(cut, 'digits_mlp', **fields)
  assert 'resuming from outer step' in stdout
  runs.assert_same_run(cut, whole)


def test_a_finished_run_says_so_and_changes_nothing(tmp_path, capsys):
  runs.run_here(tmp_path, num_outer_steps=50)
  before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*')}
  capsys.readouterr()
  runs.run_here(tmp_path, num_outer_steps=50)
  assert 'already finished at outer step 50' in capsys.readouterr().out
  assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*')} == before


def test_missing_results_are_made_up_for(tmp_path):
  """Killed between the last checkpoint and the results."""
  runs.run_here(tmp_path, num_outer_steps=50)
  results = (tmp_path / 'results.json').read_text()
  (tmp_path / 'results.json').unlink()
  shutil.rmtree(tmp_path / 'plots')
  runs.run_here(tmp_path, num_outer_steps=50)
  assert (tmp_path / 'results.json').read_text() == results
  assert (tmp_path / 'plots/learning_rate.png').exists()


def _torn(path):
  path.write_bytes(path.read_bytes() + b'101,606,1.0,torn ro')


def _cut(path):
  path.write_bytes(path.read_bytes()[:-20])


def _flipped(path):
  text = path.read_bytes()
  path.write_bytes(text[:-30] + bytes([text[-30] ^ 1]) + text[-29:])


def _gone(path):
  path.unlink()


def test_what_a_kill_left_of_the_rows_can_be_loaded(tmp_path):
  runs.run_here(tmp_path, num_outer_steps=20)
  _, _, whole = metalr_flax.load(tmp_path)
  _torn(tmp_path / 'metrics.csv')
  _, _, schedule = metalr_flax.load(tmp_path)
  assert [schedule(i) for i in range(150)] == [whole(i) for i in range(150)]


@pytest.mark.parametrize('damage', [_cut, _flipped, _gone])
def test_damaged_rows_are_seen_and_nothing_is_changed(tmp_path, damage):
  runs.run_here(tmp_path, num_outer_steps=20)
  damage(tmp_path / 'metrics.csv')
  before = {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()}
  with pytest.raises(errors.WorkdirError, match=r'metrics\.csv: its first'):
    metalr_flax.load(tmp_path)
  with pytest.raises(errors.WorkdirError, match='put the file back'):
    runs.run_here(tmp_path, num_outer_steps=30)
  assert before == {
    p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()
  }


def test_a_clock_set_back_leaves_tensorboard_in_order(tmp_path, monkeypatch):
  """Readers take event files in the order of the seconds in their names."""
  runs.run_here(tmp_path, num_outer_steps=20, log_every=1)
  now = time.time()
  monkeypatch.setattr(time, 'time', lambda: now - 1e6)
  runs.run_here(tmp_path, num_outer_steps=40, log_every=1)
  reader = event_accumulator.EventAccumulator(
    str(tmp_path), {event_accumulator.TENSORS: 0}
  )
  reader.Reload()
  steps = [event.step for event in reader.Tensors('train/loss')]
  assert steps == list(range(1, 41))


def test_lost_events_are_told(tmp_path, caplog):
  runs.run_here(tmp_path, num_outer_steps=20)
  (events,) = tmp_path.glob('events.*')
  events.unlink()
  runs.run_here(tmp_path, num_outer_steps=30)
  assert f'{events}: not as the checkpoint recorded' in caplog.text


@pytest.mark.parametrize('text', ['[]', 'null', '{', '{"outer_step": "x"}'])
def test_results_that_are_none_are_made_anew(tmp_path, text):
  runs.run_here(tmp_path, num_outer_steps=20)
  results = (tmp_path / 'results.json').read_text()
  (tmp_path / 'results.json').write_text(text)
  runs.run_here(tmp_path, num_outer_steps=20)
  assert (tmp_path / 'results.json').read_text() == results


def test_leftovers_that_are_no_folders_do_not_block(tmp_path):
  runs.run_here(tmp_path, num_outer_steps=20)
  (tmp_path / 'state/.10.old').write_bytes(b'')
  (tmp_path / 'state/.30.saving').symlink_to(tmp_path / 'state/20')
  runs.run_here(tmp_path, num_outer_steps=30)
  assert {p.name for p in (tmp_path / 'state').iterdir()} == {'20', '30'}
