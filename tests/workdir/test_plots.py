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


def said(axes):
  """What stands above a panel."""
  legend = axes.get_legend()
  return legend.get_title().get_text() if legend else axes.get_title(loc='left')


def labels(axes):
  return axes.get_legend_handles_labels()[1]


@pytest.mark.parametrize('count', [0, 1, 250])
@pytest.mark.parametrize('names', [(), ('learning_rate',), tuple('abcdef')])
def test_a_run_of_any_length_has_a_picture(tmp_path, monkeypatch, count, names):
  drawn, write = [], plots._write
  monkeypatch.setattr(
    plots, '_write', lambda *args: (drawn.append(args[1]), write(*args))[1]
  )
  picture = plots.plot_run(
    tmp_path / 'plot.png',
    optimizer='Adam',
    schedules=schedules(count, *names),
    columns=columns(count, **{'params/theta': np.full(count, 9.9)}),
    evaluation={'eval/loss': 3.5},
    loss_label='half squared error',
    known_answers={'loss': 0.5, 'theta': 10.0, 'unseen': 1.0},
  )
  panels = len(names) + 1 + 1  # more of them need more room
  assert picture.pixels.shape[0] >= max(720, 200 * panels)
  assert picture.pixels.shape[1:] == (960, 4)
  assert picture.svg.startswith('<svg viewBox=')
  assert (tmp_path / 'plot.png').read_bytes().startswith(b'\x89PNG')
  *learned, losses, theta = drawn[0].axes
  words = [name.replace('_', ' ') for name in names]
  last = f'{0.1 * (count + 1):.3g}'
  assert [said(axes) for axes in learned] == [
    f'{name}: 0.1 \N{RIGHTWARDS ARROW} {last}' for name in words
  ]
  assert said(losses).startswith('half squared error')
  assert said(theta).startswith('theta: ')
  assert said(theta).endswith('answer 10')
  lowest = drawn[0].axes[-1]
  assert lowest.get_xlabel() == 'inner updates'
  if count:  # the final evaluation, with those of the cadence or alone
    ends = [
      line.get_ydata()[-1] for line in losses.lines if len(line.get_ydata())
    ]
    assert 3.5 in ends


def test_a_loss_stands_below_the_rate_that_made_it():
  upper, lower = drawing.figure.Figure().subplots(2, 1)
  rates = schedules(3, 'learning_rate')
  plots._draw_learned(upper, 'learning_rate', rates, 'tab:blue')
  plots._draw_losses(lower, columns(3), {}, 'loss', 0.0)
  rate, loss = upper.lines[0], lower.lines[0]
  assert rate.get_drawstyle() == loss.get_drawstyle() == 'steps-post'
  np.testing.assert_array_equal(rate.get_xdata(), loss.get_xdata())
  np.testing.assert_allclose(rate.get_ydata()[:3], [0.1, 0.2, 0.3])
  np.testing.assert_allclose(loss.get_ydata()[:3], [2, 3, 4])
  assert not any(
    'noise' in label for label in labels(lower)
  )  # 0 on a log scale


def test_all_losses_share_a_panel_that_says_their_ends():
  axes = drawing.figure.Figure().subplots()
  losses = columns(4, **{'meta/loss': np.full(4, 7.25)})
  evaluation = {'eval/loss': 3.5, 'eval/accuracy': 0.75}
  plots._draw_losses(axes, losses, evaluation, 'nats', 0.5)
  assert labels(axes) == [
    'training 4.5',
    'outer 7.25',
    'evaluation 3.5, accuracy 0.75',
    'noise in the data 0.5',
  ]
  assert said(axes) == 'nats, mean of 2 windows'
  *_, evaluated, _ = axes.lines
  np.testing.assert_allclose(evaluated.get_xdata(), [2 * K, 4 * K])


@pytest.mark.parametrize('outer', [{}, {'meta/loss': np.full(3, np.nan)}])
def test_the_final_evaluation_is_drawn_where_no_cadence_meets_it(outer):
  axes = drawing.figure.Figure().subplots()
  plots._draw_losses(
    axes, columns(3, **outer), {'eval/loss': 3.5}, 'loss', None
  )
  np.testing.assert_allclose(axes.lines[-1].get_ydata(), [3, 3.5])
  assert labels(axes) == ['training 3.5', 'evaluation 3.5']  # no outer loss


def test_each_hyperparameter_has_a_colour_that_no_loss_has(
  tmp_path, monkeypatch
):
  drawn, write = [], plots._write
  monkeypatch.setattr(
    plots, '_write', lambda *args: (drawn.append(args[1]), write(*args))[1]
  )
  plots.plot_run(
    tmp_path / 'plot.png',
    optimizer='Adam',
    schedules=schedules(3, 'b1', 'b2', 'learning_rate'),
    columns=columns(3, **{'meta/loss': np.full(3, 7.0)}),
    evaluation={},
    loss_label='nats',
    known_answers={},
  )
  *learned, losses = drawn[0].axes
  colors = [axes.lines[0].get_color() for axes in learned]
  assert len({*colors}) == 3
  assert {*colors}.isdisjoint(line.get_color() for line in losses.lines)


def test_each_hyperparameter_has_a_panel_and_each_group_a_line():
  axes = drawing.figure.Figure().subplots()
  names = ('decay/a', 'decay/b', 'learning_rate/a')
  plots._draw_learned(axes, 'decay', schedules(3, *names), 'tab:blue')
  assert labels(axes) == ['a 0.4', 'b 0.4']
  assert len({line.get_color() for line in axes.lines}) == 2
  assert said(axes) == 'decay: 0.1 \N{RIGHTWARDS ARROW} 0.4'


def test_a_label_is_no_formula():
  axes = drawing.figure.Figure().subplots()
  plots._draw_losses(axes, columns(3), {}, r'$\nothing$', None)
  drawing.pixels_of(axes.figure)  # a formula it would fail to read


def testrunning_mean_is_of_what_there_is():
  np.testing.assert_allclose(plots.running_mean(np.full(555, 3.0)), 3.0)
  ramp = plots.running_mean(np.arange(301.0))  # means of 3
  np.testing.assert_allclose(ramp[1:-1], np.arange(1, 300))
  assert ramp[0] == 0.5
