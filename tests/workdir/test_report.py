"""A run's page: one file, safe whatever it says, and fit to be looked at."""

import json

import numpy as np
import pages
import pytest
import runs

from metalr_flax.config import flags
from metalr_flax.trainer import run_page
from metalr_flax.workdir import drawing
from metalr_flax.workdir import inline_svg
from metalr_flax.workdir import page
from metalr_flax.workdir import plots
from metalr_flax.workdir import report
from metalr_flax.workdir import schedule

COUNT, K = 20_000, 6
HOSTILE = '<i>&"\'</td><script>alert(1)</script> $x$'
LEARNED = 'learning_rate/<b>encoder'


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  """The page of a long run whose texts are all hostile."""
  workdir = tmp_path_factory.mktemp('page') / '<i>&"run'
  arguments = flags.parse(
    'metalr_flax.main',
    runs.command(workdir, task__path=HOSTILE, inner__learning_rate=0.25),
    '',
  )
  rng, step = np.random.default_rng(0), np.arange(1.0, COUNT + 1)
  noise = np.exp(rng.normal(0, 0.3, COUNT))
  columns = {
    'outer_step': step,
    'inner_step': K * step,
    'train/loss': noise * (0.5 + 1e3 / step),
    'meta/loss': noise[::-1] * (0.6 + 1e3 / step),
    f'hyperparams/{LEARNED}': 0.1 / np.sqrt(step),
    'eval/loss': np.where(step % 500, np.nan, 0.55 + 1e3 / step),
  }
  schedules = schedule.make_schedules(
    {'learning_rate': {'<b>encoder': 0.1}}, columns, K
  )
  evaluation = {'eval/loss': 0.6125, 'eval/accuracy': 0.875}
  picture = plots.plot_run(
    workdir / 'plot.png',
    optimizer='RMSProp',
    schedules=schedules,
    columns=columns,
    evaluation=evaluation,
    loss_label=HOSTILE,
    known_answers={'loss': 0.5},
  )
  run_page.write(
    workdir,
    arguments.config,
    arguments.command,
    report.Learned(columns, schedules, picture),
    report.make_results(columns, evaluation),
  )
  return workdir / 'report.html'


def test_it_is_one_file_that_says_what_was_run_and_what_came_out(written):
  found = pages.parse(written)
  assert found.tags.keys().isdisjoint({'i', 'b', 'link', 'img', 'iframe'})
  assert found.text.count(' '.join(HOSTILE.split())) == 2  # field, picture
  assert 'Run <i>&"run' in found.text
  values = {row[0]: row[1] for row in found.tables['final'][1:]}
  assert values['eval/loss'] == '0.6125'
  assert values['inner_step'] == '120,000'
  assert float(values[f'hyperparams/{LEARNED}']) == pytest.approx(
    0.1 / np.sqrt(COUNT), rel=1e-3
  )
  config = {row[0]: row[1:3] for row in found.tables['config'][1:]}
  assert config['inner.learning_rate'][0] == '0.25'
  assert config['task.path'] == [HOSTILE, '""']
  assert 'meta.subsample' not in config  # it has its default
  head, rates, training, outer = found.tables['over_time']
  assert head[1:] == ['0', '30,000', '60,000', '90,000', '120,000']
  assert rates[:2] == [LEARNED, '0.1']
  assert (training[1], outer[1]) == ('-', '-')
  versions = {row[0]: row[1] for row in found.tables['versions'][1:]}
  assert {'metalr_flax', 'python', 'jax', 'flax', 'optax', 'orbax-checkpoint',
          'device'} <= versions.keys()  # fmt: skip
  assert '--config.inner.learning_rate=0.25' in found.text
  assert "--workdir='" in found.text


def test_a_run_of_no_step_and_one_without_anything_learned_have_pages(tmp_path):
  arguments = flags.parse('metalr_flax.main', runs.command(tmp_path), '')
  for steps in (0, 1):
    step = np.arange(1.0, steps + 1)
    columns = {'outer_step': step, 'inner_step': K * step, 'train/loss': step,
               'meta/loss': np.nan * step, 'eval/loss': np.nan * step}  # fmt: skip
    picture = plots.plot_run(
      tmp_path / 'plot.png',
      optimizer='SGD',
      schedules={},
      columns=columns,
      evaluation={'eval/loss': np.inf},
      loss_label='nats',
      known_answers={},
    )
    run_page.write(
      tmp_path,
      arguments.config,
      arguments.command,
      report.Learned(columns, {}, picture),
      report.make_results(columns, {'eval/loss': np.inf}),
    )
    found = pages.parse(tmp_path / 'report.html')
    values = {row[0]: row[1] for row in found.tables['final'][1:]}
    assert values['outer_step'] == str(steps)
    assert values['eval/loss'] == '-'


def test_its_picture_says_the_ends_and_a_long_run_makes_no_large_file(written):
  text = written.read_text()
  for words in ('accuracy 0.875', 'evaluation 0.613', 'noise in the data 0.5'):
    assert words in text
  assert len(text) < 400_000
  assert max(path.count(' L ') for path in text.split(' d="')[1:]) < 4000


def test_thinning_keeps_ends_and_extremes():
  x, y = np.arange(1e5), np.sin(np.arange(1e5))
  y[12_345], y[54_321], y[777] = 9.0, -9.0, np.nan
  kept_x, kept_y = plots.thin(x, y)
  assert len(kept_x) <= plots.MOST_POINTS
  assert {0.0, 12_345.0, 54_321.0, 99_999.0} <= {*kept_x}
  np.testing.assert_array_equal(kept_y, y[kept_x.astype(int)])
  assert plots.thin(x[:9], y[:9])[0] is not None
  assert len(plots.thin(x, np.full(100_000, np.nan))[0]) == 2


def test_every_colour_of_a_picture_has_one_for_a_dark_ground():
  fig = drawing.figure.Figure()
  axes = fig.subplots()
  axes.plot([1, 2], color='#123456', label='#654321 is no colour')
  axes.legend()
  svg = inline_svg.draw(fig, 'a "line"')
  assert 'var(--c123456)' in svg
  assert '#654321 is no colour' in svg
  assert 'aria-label="a &quot;line&quot;"' in svg
  light = inline_svg.variables(svg, dark=False)
  dark = inline_svg.variables(svg, dark=True)
  assert '--c123456:#123456;' in light
  assert light.count(':') == dark.count(':')
  assert '--c000000:#ebebeb;' in dark


def test_cells_are_sorted_by_their_numbers():
  table = page.table('t', ['a', 'b'], [['x', page.number(None)],
                                       ['y', page.number(0.25)],
                                       ['z', page.number(7)]])  # fmt: skip
  assert 'data-value="Infinity">-<' in table
  assert 'data-value="0.25">0.25<' in table
  assert 'data-value="7">7<' in table


@pages.needs_chromium
def test_in_a_browser_a_click_sorts_and_a_phone_shows_all(written):
  click = "document.querySelector('#final th:nth-child(2)').click()"
  found, beyond = pages.after(written, click)
  assert beyond <= 0
  before = pages.parse(written).tables['final'][1:]
  rows = found.tables['final'][1:]
  assert rows != before
  assert sorted(rows) == sorted(before)
  values = [float(row[1].replace(',', '')) for row in rows]
  assert values == sorted(values)


@pages.needs_chromium
@pytest.mark.thorough
def test_in_a_browser_an_address_can_ask_for_an_order(written):
  found, beyond = pages.after(written, anchor='#sort=final.0', width=1200)
  assert beyond <= 0
  names = [row[0] for row in found.tables['final'][1:]]
  assert names == sorted(names)
  assert 'evaluation 0.613' in found.text


@pages.needs_chromium
def test_in_a_browser_it_is_light_or_dark_and_its_curves_are_seen(written):
  light = pages.look(written, dark=False)
  dark = pages.look(written, dark=True)
  for seen, training, outer in (
    (light, (255, 127, 14), (148, 103, 189)),
    (dark, (255, 152, 61), (160, 120, 196)),
  ):
    assert seen.pixels.shape == (1600, 390, 3)
    assert seen.near(training, 70) > 60
    assert seen.near(outer) > 30
  assert np.mean(light.pixels) > 200
  assert np.mean(dark.pixels) < 60
  # Letters and axes, too: nothing is dark on dark.
  assert light.near((27, 31, 36)) > 500
  assert dark.near((227, 232, 238)) > 500
  assert dark.near((0, 0, 0), 10) < 20


def test_a_config_field_that_is_json_reads_as_such():
  assert run_page._text({'a': [1]}) == json.dumps({'a': [1]})
  assert run_page._text('') == '""'
  assert run_page._text('adam') == 'adam'
