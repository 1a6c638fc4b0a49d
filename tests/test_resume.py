"""A run that was stopped and resumed is the run that was not."""

import shutil
import signal

import runs


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
  before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*.*')}
  capsys.readouterr()
  runs.run_here(tmp_path, num_outer_steps=50)
  assert 'already finished at outer step 50' in capsys.readouterr().out
  after = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*.*')}
  before.pop(tmp_path / 'config.json')  # written again, the same
  after.pop(tmp_path / 'config.json')
  assert after == before


def test_missing_results_are_made_up_for(tmp_path):
  """Killed between the last checkpoint and the results."""
  runs.run_here(tmp_path, num_outer_steps=50)
  results = (tmp_path / 'results.json').read_text()
  (tmp_path / 'results.json').unlink()
  shutil.rmtree(tmp_path / 'plots')
  runs.run_here(tmp_path, num_outer_steps=50)
  assert (tmp_path / 'results.json').read_text() == results
  assert (tmp_path / 'plots/learning_rate.png').exists()
