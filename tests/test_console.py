"""The lines that a person reads while a run goes on."""

import re

import runs

from metalr_flax import console


def test_a_line_has_the_rate_that_made_its_losses_and_the_answers(
  tmp_path, capsys
):
  """Also where it is of another chunk: the one before, or the start."""
  runs.run_here(tmp_path, num_outer_steps=6, eval_every=1)
  said = capsys.readouterr().out
  rates = [float(r['hyperparams/learning_rate']) for r in runs.rows(tmp_path)]
  shown = re.findall(r'learning_rate ([\d.]+)  meta', said)
  assert shown == [f'{rate:.4g}' for rate in (0.1, *rates[:-1])]
  assert 'loss 0.5 (the noise in the data), theta 10\n' in said
  assert len(re.findall(r'theta \S+ \(10\)', said)) == 6
  assert len(re.findall(r'eval/loss \S+ \(0.5\)', said)) == 6
  assert not re.findall(r'(train|meta)/loss \S+ \(', said)
  assert (
    f'learned at the end: hyperparams/learning_rate {rates[-1]:.6g}' in said
  )


def test_without_answers_there_are_no_brackets(capsys):
  line = console.Progress(0, 10, {})
  line.say_answers()
  line(5, {'train/loss': 1.0, 'params/theta': 2.0, 'eval/loss': 3.0})
  said = capsys.readouterr().out
  assert said.startswith('step  5/10 ( 50%)  train/loss 1  eval/loss 3  | ')
