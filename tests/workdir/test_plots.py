"""The picture of a run: what stands above what, and the ends of a run."""

import numpy as np
import pytest

from metalr_flax.workdir import drawing
from metalr_flax.workdir import plots

K = 6


def columns(count, **more):
  ends = K * np.arange(1.0, count + 1)
  return {
    'inner_step': ends,
    'train/loss': 2.0 + np.arange(count),
    'eval/loss': np.where(ends % (2 * K), np.nan, 3.0),
    **more,
  }


def schedules(count, *names):
  steps = [K * i for i in range(count + 1)]
  values = [0.1 * (i + 1) for i in range(count + 1)]
  return {n: {'inner_step': steps, 'value': values} for n in names}


@pytest.mark.parametrize('count', [0, 1, 250])
@pytest.mark.parametrize(
  'names', [(), ('learning_rate',), tuple('abcdefghijklmn')]
)
def test_a_run_of_any_length_has_a_picture(tmp_path, monkeypatch, count, names):
  drawn, write = [], plots._write
  monkeypatch.setattr(
    plots, '_write', lambda *args: (drawn.append(args[1]), write(*args))[1]
  )
  pixels = plots.plot_run(
    tmp_path / 'plot.png',
    optimizer='Adam',
    schedules=schedules(count, *names),
    columns=columns(count, **{'params/theta': np.full(count, 9.9)}),
    evaluation={'eval/loss': 3.5},
    loss_label='half squared error',
    known_answers={'loss': 0.5, 'theta': 10.0, 'unseen': 1.0},
  )
  height = 1440 if len(names) > 5 else 720  # more panels need more room
  assert pixels.shape == (height, 960, 4)
  assert (tmp_path / 'plot.png').read_bytes().startswith(b'\x89PNG')
  *learned, losses, theta = drawn[0].figure.axes
  words = [name.replace('_', ' ') for name in names]
  assert [axes.get_ylabel() for axes in learned] == words
  assert losses.get_ylabel() == 'half squared error'
  assert theta.get_ylabel() == 'theta'
  if count:  # the final evaluation, with those of the cadence or alone
    ends = [
      line.get_ydata()[-1] for line in losses.lines if len(line.get_ydata())
    ]
    assert 3.5 in ends


def test_a_loss_stands_below_the_rate_that_made_it():
  upper, lower = drawing.figure.Figure().subplots(2, 1)
  plots._draw_learned(upper, 'learning_rate', schedules(3, 'learning_rate'))
  plots._draw_losses(lower, columns(3), 'loss', 0.0)
  rate, loss = upper.lines[0], lower.lines[0]
  assert rate.get_drawstyle() == loss.get_drawstyle() == 'steps-post'
  np.testing.assert_array_equal(rate.get_xdata(), loss.get_xdata())
  np.testing.assert_allclose(rate.get_ydata()[:3], [0.1, 0.2, 0.3])
  np.testing.assert_allclose(loss.get_ydata()[:3], [2, 3, 4])
  labels = [line.get_label() for line in lower.lines]
  assert not any('noise' in label for label in labels)  # 0 on a log scale


def test_final_values_are_said_in_words():
  words = plots._ends(
    schedules(4, 'learning_rate'),
    columns(4),
    {'eval/loss': 3.5, 'eval/accuracy': 0.75},
  )
  assert words == (
    'after 24 updates: learning rate 0.5, training loss 4.5, '
    'evaluation loss 3.5, accuracy 0.75'
  )


def test_the_final_evaluation_is_drawn_where_no_cadence_meets_it():
  axes = drawing.figure.Figure().subplots()
  with_last = plots._with_last(columns(3), {'eval/loss': 3.5})
  plots._draw_losses(axes, with_last, 'loss', None)
  np.testing.assert_allclose(axes.lines[-1].get_ydata(), [3, 3.5])


def test_each_hyperparameter_has_a_panel_and_each_group_a_line():
  axes = drawing.figure.Figure().subplots()
  names = ('decay/a', 'decay/b', 'learning_rate/a')
  plots._draw_learned(axes, 'decay', schedules(3, *names))
  assert [line.get_label() for line in axes.lines] == ['a', 'b']
  assert axes.get_ylabel() == 'decay'


def test_running_mean_is_of_what_there_is():
  np.testing.assert_allclose(plots._running_mean(np.full(555, 3.0)), 3.0)
  ramp = plots._running_mean(np.arange(301.0))  # means of 3
  np.testing.assert_allclose(ramp[1:-1], np.arange(1, 300))
  assert ramp[0] == 0.5
