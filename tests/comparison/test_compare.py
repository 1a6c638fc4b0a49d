"""The comparison command: its files agree, it resumes, and it is honest.

One tiny comparison is run once, by a real process; the tests look at it.
"""

import csv
import json
import os
import signal
import subprocess
import sys
import time

from flax import nnx
import jax
import numpy as np
import optax
import pages
import pytest
import runs
import tiers

from metalr_flax import compare
from metalr_flax import errors
from metalr_flax import interrupts
from metalr_flax import models
from metalr_flax import tasks
from metalr_flax.comparison import arena as arena_lib
from metalr_flax.comparison import cells
from metalr_flax.comparison import config as config_lib
from metalr_flax.comparison import contestants
from metalr_flax.comparison import methods as methods_lib
from metalr_flax.comparison import outcomes
from metalr_flax.comparison import plots
from metalr_flax.comparison import race
from metalr_flax.comparison import standings as standings_lib
from metalr_flax.comparison import table as table_lib
from metalr_flax.config import flags
from metalr_flax.trainer import build

ROOT = runs.ROOT
CONFIG = f'--config={runs.CONFIGS / "compare.py"}'
RATES, STARTS = (1e-3, 1e-2), (1e-3, 1e-2)
BASE = [
  CONFIG,
  '--config.num_seeds=2',
  '--config.num_evaluations=4',
  '--config.only=digits_mlp',
  '--config.problems.digits_mlp.num_steps=32',
  "--config.optimizers={'sgd': {'momentum': 0.9}, 'adam': {}}",
  '--config.learning_rates=1e-3,1e-2',
  '--config.initial_learning_rates=1e-3,1e-2',
]
TINY = [*BASE, '--config.problems.digits_mlp.model.kwargs.features=(64, 10)']
METHODS = ['constant', 'self_tuning', 'trainer', 'prodigy']
CELLS = 3 * 2 + 1  # of two inner optimizers, and prodigy


def methods(*names):
  return f'--config.methods={",".join(names)}'


def start(argv, cwd):
  return runs.started(['-m', 'metalr_flax.compare', *argv], cwd=cwd)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A workdir with every cell of METHODS, and what was printed."""
  workdir = tmp_path_factory.mktemp('compare') / 'run'
  argv = [*TINY, methods(*METHODS), f'--workdir={workdir}']
  with start(argv, workdir.parent) as process:
    stdout, stderr = process.communicate()
  assert process.returncode == 0, stderr
  return workdir, stdout


def parse(*argv):
  return runs.parse_comparison(*TINY, *argv)


def read_rows(workdir):
  with open(workdir / 'comparison.csv', newline='') as file:
    return list(csv.DictReader(file))


def read_cells(workdir):
  files = sorted((workdir / 'cells').glob('*.json'))
  return {file.stem: json.loads(file.read_text()) for file in files}


@pytest.mark.thorough
def test_every_run_has_a_row_as_its_cell_has_it(finished):
  workdir, _ = finished
  rows = read_rows(workdir)
  assert tuple(rows[0]) == table_lib.COLUMNS
  assert len(rows) == 3 * 2 * 2 * 2 + 2
  found = read_cells(workdir)
  assert len(found) == CELLS
  for row in rows:
    parts = row['problem'], row['optimizer'], row['method']
    cell = found['.'.join(filter(None, parts))]
    rates = cell['learning_rates'] or [None]
    rate = float(row['learning_rate']) if row['learning_rate'] else None
    seed = int(row['seed']) - cell['first_seed']
    assert float(row['final']) == cell['finals'][rates.index(rate)][seed]
    assert row['diverged'] == 'False'
    at = rates.index(rate), seed
    assert float(row['unseen']) == cell['test']['finals'][at[0]][at[1]]
    repeated = row['method'] == 'self_tuning' and rate == STARTS[1]
    assert row['repeats'] == (str(STARTS[0]) if repeated else '')
    gradients = 32 * (1 + 1.5) + 4 if row['method'] == 'trainer' else 32
    assert float(row['gradient_evaluations']) == gradients


@pytest.mark.thorough
def test_a_final_is_the_end_of_its_curve(finished):
  for cell in read_cells(finished[0]).values():
    assert cell['steps'] == cell['test']['steps'] == [8, 16, 24, 32]
    last = np.array(cell['test']['curves'])[:, -1]
    np.testing.assert_allclose(np.mean(cell['test']['finals'], 1), last, 1e-6)
    means = np.mean(cell['finals'], axis=1)
    np.testing.assert_allclose(means, np.array(cell['curves'])[:, -1], 1e-6)
    tuned = cell['method'] in methods_lib.of_kind(methods_lib.Kind.STARTS)
    assert np.all([tuned == (v is not None) for v in cell['learned'][0]])


@pytest.mark.thorough
def test_the_summary_follows_from_the_rows(finished):
  workdir, stdout = finished
  rows = read_rows(workdir)

  def score(method, optimizer, rate):
    chosen = [
      float(row['final'])
      for row in rows
      if (row['method'], row['optimizer']) == (method, optimizer)
      and float(row['learning_rate']) == rate
    ]
    assert len(chosen) == 2
    return np.mean(chosen)

  summary = json.loads((workdir / 'summary.json').read_text())
  assert len(summary['pairs']) == 2
  ratios = []
  for pair in summary['pairs']:
    name = pair['optimizer']
    best = min(score('constant', name, rate) for rate in RATES)
    assert pair['constant']['score'] == pytest.approx(best)
    ours = [score('self_tuning', name, rate) / best for rate in STARTS]
    assert pair['self_tuning']['ratios'] == pytest.approx(ours)
    assert pair['self_tuning']['worst'] == pytest.approx(max(ours))
    # Both starts are above 1e-5 and so the same run.
    assert pair['self_tuning']['distinct_starts'] == 1
    ratios.append(ours[0])
  overall = summary['overall']
  assert overall['worst_ratio'] == pytest.approx(max(ratios))
  assert overall['share_won'] == np.mean(np.array(ratios) <= 1.005)
  mean = np.exp(np.mean(np.log(np.clip(ratios, 0.01, 100))))
  against = overall['geometric_mean_against']
  assert against['constant'] == pytest.approx(mean)
  assert against['cosine'] is None  # not among these methods
  table = (workdir / 'table.md').read_text()
  assert table in stdout
  assert f'{overall["share_won"]:.0%} of 2' in table
  assert max(map(len, table.splitlines())) <= 100


@pytest.mark.thorough
def test_pictures_are_there(finished):
  for name in (
    'final_vs_initial_rate',
    'learned_schedules',
    'loss_curves',
    'loss_curves_by_cost',
  ):
    content = (finished[0] / 'plots' / f'{name}.png').read_bytes()
    assert content.startswith(b'\x89PNG')


@pytest.mark.thorough
def test_the_page_has_the_tables_the_pictures_and_the_command(finished):
  workdir, stdout = finished
  assert f'{workdir}/report.html in a browser' in stdout
  found = pages.parse(workdir / 'report.html')
  summary = json.loads((workdir / 'summary.json').read_text())
  head, *rows = found.tables['methods']
  rows = [dict(zip(head, row, strict=True)) for row in rows]
  assert len(rows) == CELLS
  constants = [row for row in rows if row['method'] == 'constant']
  for pair, row in zip(summary['pairs'], constants, strict=True):
    best = pair['constant']
    assert row['problem'] == pair['problem']
    assert row['optimizer'] == pair['optimizer']
    assert f'{best["learning_rate"]:g}' in row['rate']
    assert f'{best["score"]:.4g}' == row['loss']
  ranking = [row[0] for row in found.tables['ranking'][1:]]
  assert ranking == [row['method'] for row in summary['ranking']]
  assert found.tags['svg'] == 4
  assert found.text.count('inner updates') >= 4  # letters of the pictures
  assert '--config.num_seeds=2' in found.text
  assert f'--workdir={workdir}-2' in found.text
  assert f'{CELLS} of ' in found.text


@pytest.mark.thorough
@pages.needs_chromium
def test_the_page_in_a_browser(finished):
  path = finished[0] / 'report.html'
  found, beyond = pages.after(path, anchor='#sort=ranking.0')
  assert beyond <= 0
  names = [row[0] for row in found.tables['ranking'][1:]]
  assert names == sorted(names)
  before = pages.parse(path).tables['ranking'][1:]
  assert names != [row[0] for row in before]
  light = pages.look(path, dark=False, width=1000, height=2400)
  dark = pages.look(path, dark=True, width=1000, height=2400)
  assert np.mean(light.pixels) > 200
  assert np.mean(dark.pixels) < 60
  for seen, name in ((light, 'self_tuning'), (dark, 'self_tuning')):
    assert seen.near((255, 127, 14), 60) > 300, name


INLINE = 'module://matplotlib_inline.backend_inline'


@tiers.parametrize(
  'backend', [INLINE, 'pdf', ''], [INLINE], key=lambda name: name or 'none'
)
def test_pictures_do_not_depend_on_the_backend_that_jupyter_names(backend):
  """It does so for every process that it starts."""
  code = (
    'import os, sys\n'
    'from metalr_flax.comparison import plots\n'
    'from metalr_flax.workdir import drawing, plots\n'
    'drawing.FigureCanvasAgg(drawing.figure.Figure()).draw()\n'
    'print(os.environ["MPLBACKEND"], "matplotlib.pyplot" in sys.modules)'
  )
  process = subprocess.run(
    [sys.executable, '-c', code],
    cwd=ROOT,
    env={**os.environ, 'MPLBACKEND': backend},
    capture_output=True,
    text=True,
    check=False,
  )
  assert process.stdout == f'{backend} False\n', process.stderr


@pytest.mark.thorough
def test_again_it_trains_nothing_and_writes_the_same(
  finished, monkeypatch, capsys
):
  workdir, _ = finished
  names = ('comparison.csv', 'summary.json', 'table.md')
  before = [(workdir / name).read_bytes() for name in names]

  def never(*args):
    raise AssertionError('a finished cell is trained again')

  monkeypatch.setattr(race, 'train_runs', never)
  monkeypatch.setattr(plots, 'plot_all', lambda *args: {})
  argv = [*TINY, methods(*METHODS), f'--workdir={workdir}']
  assert run_here(argv) == 0
  # Fewer methods: what is finished stays in the results.
  argv[-2] = methods('constant')
  assert run_here(argv) == 0
  assert [(workdir / name).read_bytes() for name in names] == before
  assert 'cell ' not in capsys.readouterr().out


def run_here(argv):
  """The command in this process, its signal handlers put back."""
  numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
  handlers = [signal.getsignal(number) for number in numbers]
  try:
    return compare.main(argv)
  finally:
    for number, handler in zip(numbers, handlers, strict=True):
      signal.signal(number, handler)


@pytest.mark.thorough
def test_a_damaged_cell_and_one_of_another_config_are_done_again(finished):
  workdir, _ = finished
  cell = cells.list_cells(parse(), selected=True)[0]
  values = json.loads((workdir / 'cells' / f'{cell.id}.json').read_text())
  found = outcomes.from_json(cell, values)
  assert outcomes.to_json(found) == values
  for wrong in (
    None,
    [],
    {},
    {**values, 'digest': ''},
    {**values, 'finals': 0},
  ):
    broken = outcomes.from_json(cell, wrong)
    assert broken is None, wrong


@pytest.mark.thorough
def test_a_constant_is_a_plain_optax_loop(finished):
  """Not a line of the package's loop: nnx, optax and the task's own methods."""
  values = read_cells(finished[0])['digits_mlp.sgd.constant']
  task = tasks.Digits(batch_size=32)
  draw = jax.jit(task.next)
  tx = optax.sgd(1e-2, momentum=0.9)
  for seed in range(2):
    model = models.MLP(features=(64, 10), rngs=nnx.Rngs(seed))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def update(model, optimizer, batch):
      grads = nnx.grad(lambda m, b: task.loss(m, b)[0])(model, batch)
      optimizer.update(model, grads)

    data_state = task.init(jax.random.key(seed))
    for _ in range(32):
      data_state, batch = draw(data_state)
      update(model, optimizer, batch)
    expected = task.loss(model, task.train)[0]
    np.testing.assert_allclose(values['finals'][1][seed], expected, rtol=1e-4)
    unseen = task.loss(model, task.test)[0]
    found = values['test']['finals'][1][seed]
    np.testing.assert_allclose(found, unseen, rtol=1e-4)


@pytest.mark.thorough
def test_the_trainer_is_the_trainers_own_loop(finished):
  values = read_cells(finished[0])['digits_mlp.adam.trainer']
  config = contestants.trainer_config(parse(), 'digits_mlp', 'adam', 1)
  config['inner']['learning_rate'] = STARTS[1]
  experiment = build.build(config)
  state = experiment.init_state()
  step = jax.jit(experiment.step_fn)
  for _ in range(4):
    state, _ = step(state)
  model = experiment.make_model(state.params, state.model_state)
  task = tasks.Digits(batch_size=32)
  expected = task.loss(model, task.train)[0]
  np.testing.assert_allclose(values['finals'][1][1], expected, rtol=1e-4)
  # The rate beside the first window's objective is the one that made it.
  np.testing.assert_allclose(values['learned'][1][0], STARTS[1], rtol=1e-6)
  assert values['learned'][1][1] != values['learned'][1][0]


@pytest.mark.thorough
@pytest.mark.parametrize(
  'method',
  [
    *methods_lib.of_kind(methods_lib.Kind.WRAPPER, methods_lib.Kind.WHOLE),
    'cosine',
    'linear',
  ],
)
def test_every_method_trains(method):
  config = parse(methods(method))
  cell = cells.list_cells(config, selected=True)[0]
  arena = arena_lib.build_arena(config, cell.problem)
  contestant = contestants.build_contestant(config, cell, arena)
  state = contestant.init(1e-2, jax.tree.map(lambda x: x[0], arena.initial))
  state, loss = jax.jit(contestant.step)(state)
  state, _ = jax.jit(contestant.step)(state)
  snapshot, learned = contestant.view(state)
  assert np.isfinite(loss)
  assert np.isnan(learned)
  moved = jax.tree.map(
    lambda old, new: np.any(old[0] != new),
    arena.initial.params,
    snapshot.params,
  )
  assert any(jax.tree.leaves(moved))


def test_a_linear_decay_rises_and_falls():
  linear = contestants.make_linear(0.1, 100)
  rates = np.array([linear(count) for count in range(100)])
  np.testing.assert_allclose(rates[:2], [0.05, 0.1], rtol=1e-6)
  np.testing.assert_allclose(np.diff(rates[1:]), -0.1 / 99, rtol=1e-3)
  np.testing.assert_allclose(rates[-1], 0.1 / 99, rtol=1e-5)
  assert contestants.make_linear(0.1, 1)(0) == np.float32(0.1)
  drawn = methods_lib.METHODS['linear'].schedule
  shares = [drawn((count + 1) / 100) for count in range(100)]
  np.testing.assert_allclose(rates / 0.1, shares, atol=0.02)


@pytest.mark.thorough
def test_batches_are_the_objective_where_asked_for():
  config = parse(
    '--config.problems.digits_mlp.objective=batches',
    '--config.problems.digits_mlp.num_steps=16',
    '--config.num_evaluations=2',
  )
  cell = cells.list_cells(config, selected=True)[0]
  arena = arena_lib.build_arena(config, cell.problem)
  contestant = contestants.build_contestant(config, cell, arena)
  found = race.train_runs(
    contestant, arena, cell.learning_rates, interrupts.StopRequest()
  )
  step = jax.jit(contestant.step)
  state = contestant.init(1e-2, jax.tree.map(lambda x: x[1], arena.initial))
  losses = []
  for _ in range(16):
    state, loss = step(state)
    losses.append(loss)
  # A pass over unseen data is as dear as one over the others: few of them.
  assert found.test_steps.tolist() == [16]
  assert found.test_losses.shape == (1, 2, 2)
  expected = [np.mean(losses[:8]), np.mean(losses[8:])]
  np.testing.assert_allclose(found.curves[:, 1, 1], expected, rtol=1e-4)
  np.testing.assert_allclose(found.initial_objective[1], losses[0], rtol=1e-5)


@pytest.fixture
def figures(monkeypatch):
  """All figures that are drawn, in their order."""
  made = []
  real = plots.drawing.figure.Figure

  def figure(**kwargs):
    made.append(real(**kwargs))
    return made[-1]

  monkeypatch.setattr(plots.drawing.figure, 'Figure', figure)
  return made


def names_of(figure):
  """The methods in a figure's legend."""
  texts = [text.get_text() for text in figure.legends[0].get_texts()]
  return {text.removesuffix(' (no rate)') for text in texts}


@pytest.mark.thorough
def test_a_method_of_ones_own_is_one_entry(tmp_path, monkeypatch, figures):
  """It is trained, ranked and drawn; no other file knows its name."""

  def make_linear(recipe):
    peak, steps = recipe.learning_rate, recipe.num_steps
    return recipe.inner(optax.linear_schedule(peak, 0.0, steps))

  linear = methods_lib.Method(kind=methods_lib.Kind.GRID, make_tx=make_linear)
  monkeypatch.setitem(methods_lib.METHODS, 'linear', linear)
  argv = [*TINY, methods('linear', 'constant'), f'--workdir={tmp_path / "run"}']
  assert run_here([*argv, "--config.optimizers={'sgd': {}}"]) == 0
  rows = read_rows(tmp_path / 'run')
  assert [row['method'] for row in rows] == ['constant'] * 4 + ['linear'] * 4
  assert len({row['final'] for row in rows}) == 8
  table = (tmp_path / 'run' / 'table.md').read_text()
  assert '\n| constant |' in table
  assert '\n| linear   |' in table
  assert '\n| linear sgd, best rate   | ' in table
  assert len(figures) == 4
  for drawn in figures:
    assert {'constant', 'linear'} <= names_of(drawn)


# --- Ratios.


def make_outcome(
  method,
  scores,
  optimizer='adam',
  diverged=None,
  repeats=None,
  problem='p',
  test=None,
):
  rates = tuple(10.0**-i for i in range(len(scores), 0, -1))
  cell = cells.Cell(
    problem=problem,
    optimizer=optimizer,
    method=method,
    learning_rates=rates,
    num_seeds=1,
    num_steps=8,
    digest='',
  )
  finals = np.array(scores)[:, None]
  return outcomes.Outcome(
    cell=cell,
    first_seed=0,
    initial_objective=1.0,
    finals=finals,
    diverged=np.isinf(finals) if diverged is None else diverged,
    steps=np.array([8]),
    curves=finals,
    learned_rates=finals,
    seconds=0.0,
    repeats=np.arange(len(scores)) if repeats is None else np.array(repeats),
    test=None if test is None else make_test(test),
  )


def make_test(losses):
  losses = np.array(losses)[:, None]
  return outcomes.Test(
    finals=losses,
    steps=np.array([8]),
    curves=losses,
    loss_label='cross-entropy (nats)',
  )


def test_ratios_ties_and_diverged_runs():
  standings = standings_lib.Standings(
    [
      make_outcome('constant', [4.0, 2.0, np.inf]),
      make_outcome('self_tuning', [2.0, 2.01, 4.0, np.inf]),
      make_outcome('trainer', [4.0, np.inf, 4.0, np.inf]),
      make_outcome('prodigy', [1.0], optimizer=''),
    ]
  )
  ours = standings.ratios('p', 'adam', 'self_tuning')
  assert ours == pytest.approx([1.0, 1.005, 2.0, np.inf])
  assert standings_lib.share_won(ours) == 0.5
  assert standings.against('trainer') == pytest.approx([0.5, 0.0, 1.0, 1.0])
  assert standings.against('prodigy') == pytest.approx([2, 2.01, 4, np.inf])
  assert standings_lib.geometric_mean([1.0, np.inf]) == pytest.approx(10.0)
  assert standings.counts()['self_tuning'] == (4, 4, 1)
  best = standings.best('p', 'adam', 'constant')
  assert (best.score, best.at_the_edge) == (2.0, False)
  assert json.loads(json.dumps(standings_lib.summarize(standings)))


def test_starts_of_the_same_run_count_once():
  standings = standings_lib.Standings(
    [
      make_outcome('constant', [1.0]),
      make_outcome('self_tuning', [4.0, 1.0, 1.0, 1.0], repeats=[0, 1, 1, 1]),
      make_outcome('trainer', [2.0, 2.0, 4.0, 8.0]),
    ]
  )
  assert standings.distinct_ratios('p', 'adam', 'self_tuning') == [4.0, 1.0]
  assert standings.against('constant') == [4.0, 1.0]
  # From the same start as the trainer's, whose four runs all differ.
  assert standings.against('trainer') == [2.0, 0.5, 0.25, 0.125]
  rows = {row['method']: row for row in standings.ranking()}
  mean = rows['self_tuning adam, mean of starts']
  assert mean['geometric_mean'] == pytest.approx(2.0)
  assert (mean['distinct_runs'], mean['runs']) == (2, 4)
  summary = standings_lib.summarize(standings)
  assert summary['overall']['starts'] == 2
  assert summary['overall']['share_won'] == 0.5
  assert summary['pairs'][0]['self_tuning']['distinct_starts'] == 2
  (line,) = [
    line
    for line in table_lib.make_table(standings).splitlines()
    if line.startswith('| self_tuning ') and '4 starts' in line
  ]
  assert '|  2/4 |' in line


def test_unseen_loss_stands_beside_the_training_loss_and_picks_nothing():
  standings = standings_lib.Standings(
    [
      make_outcome('constant', [2.0, 1.0], test=[3.0, 4.0]),
      make_outcome('self_tuning', [1.0, 3.0, 1.0], test=[2.0, 8.0, 2.0]),
      make_outcome('dog', [np.inf], optimizer='', test=[1.0]),
      make_outcome('cocob', [2.0], optimizer=''),  # of before
    ]
  )
  rows = [
    [cell.strip() for cell in line.split('|')[1:-1]]
    for line in table_lib.make_table(standings).splitlines()
    if line.startswith('|')
  ]
  head, at = rows[0], rows[0].index('unseen')
  found = {row[0]: row[at] for row in rows if len(row) == len(head)}
  assert found['constant'] == '4'
  assert found['self_tuning'] == '2'
  assert found['dog'] == 'diverged'
  assert found['cocob'] == '-'
  ranked = {row['method']: row['unseen'] for row in standings.ranking()}
  assert ranked['constant adam, best rate'] == 1.0
  mean = ranked['self_tuning adam, mean of starts']
  assert mean == pytest.approx((0.5 * 2.0 * 0.5) ** (1 / 3))
  assert ranked['self_tuning adam, worst start'] == 2.0
  assert ranked['dog'] == pytest.approx(standings_lib.CAP)
  assert np.isnan(ranked['cocob'])
  (pair,) = json.loads(json.dumps(standings_lib.summarize(standings)))['pairs']
  assert pair['constant']['unseen'] == 4.0
  assert pair['self_tuning']['unseen'] == [2.0, 8.0, 2.0]
  for outcome in standings.outcomes.values():
    values = outcomes.to_json(outcome)
    again = outcomes.from_json(outcome.cell, values)
    assert outcomes.to_json(again) == values


def test_without_unseen_data_there_is_no_column_of_it():
  config = parse('--config.only=noisy_quadratic')
  assert arena_lib.build_arena(config, 'noisy_quadratic').test_loss is None
  table = table_lib.make_table(
    standings_lib.Standings([make_outcome('constant', [1.0])])
  )
  assert 'unseen' not in table


def test_rates_after_the_first_step_tell_which_runs_are_the_same():
  learned = np.array([[1e-6, 1e-6], [1e-5, 1.00001e-5], [1e-5, 1e-5]])
  assert race._find_repeats(learned).tolist() == [0, 1, 1]
  learned[2, 1] = 2e-5  # of one seed alone
  assert race._find_repeats(learned).tolist() == [0, 1, 2]
  assert race._find_repeats(learned * np.nan).tolist() == [0, 1, 2]


def test_the_worst_is_cut_as_the_mean_is_and_nothing_that_diverged_is_lost():
  standings = standings_lib.Standings(
    [
      make_outcome('constant', [1.0]),
      make_outcome('self_tuning', [1.0, np.inf]),
      make_outcome('prodigy', [1e17], optimizer=''),
      make_outcome('dog', [np.inf], optimizer=''),
    ]
  )
  rows = {row['method']: row for row in standings.ranking()}
  for name in ('prodigy', 'dog'):
    assert rows[name]['geometric_mean'] == pytest.approx(standings_lib.CAP)
    assert rows[name]['worst'] == standings_lib.CAP
  assert rows['dog']['diverged'] == 1
  found = rows['self_tuning adam, mean of starts']
  assert found['geometric_mean'] == pytest.approx(10.0)
  overall = standings_lib.summarize(standings)['overall']
  assert overall['worst_ratio'] == standings_lib.CAP
  table = table_lib.make_table(standings)
  assert '- worst ratio to it: >=100' in table
  assert '- diverged runs of dog: 1 of 1' in table
  (dog,) = [line for line in table.splitlines() if line[:11] == '| dog      '][
    :1
  ]
  assert '| diverged |' in dog
  assert '| >=100 |' in dog


def test_the_table_fits_a_terminal_of_100_columns():
  # With every method, long names, huge losses and diverged runs.
  optimizer, problem = 'optimistic_adam_v2', 'p' * 60
  scores = [1.2345e17, -1.2345e-17, 0.000123456, np.inf] * 10
  made = [
    make_outcome(
      name,
      scores,
      method_optimizer(name, optimizer),
      problem=problem,
      test=scores,
    )
    for name in methods_lib.METHODS
  ]
  table = table_lib.make_table(standings_lib.Standings(made))
  assert max(map(len, table.splitlines())) <= 100
  for name in methods_lib.METHODS:
    assert f'\n| {name} ' in table


def method_optimizer(name, optimizer):
  whole = methods_lib.METHODS[name].kind is methods_lib.Kind.WHOLE
  return '' if whole else optimizer


def colors_of_crosses(axes):
  return [
    line.get_color()
    for line in axes.lines
    if line.get_marker() == 'x' and len(line.get_xdata())
  ]


def test_every_method_is_in_every_picture_also_where_all_its_runs_diverged():
  lost = ('cosine', 'trainer', 'mechanize', 'prodigy')
  made = [
    make_outcome(
      name,
      [np.inf] * 2 if name in lost else [1.0, 2.0],
      method_optimizer(name, 'adam'),
      test=[3.0, 4.0],
    )
    for name in methods_lib.METHODS
  ]
  standings = standings_lib.Standings(made)
  for picture in plots.PICTURES:
    drawn = plots._draw(standings, picture)
    assert {*methods_lib.METHODS} <= names_of(drawn)
    titles = [axes.get_title() for axes in drawn.axes]
    beside = ['p, adam, unseen data'] if picture.of_loss else []
    assert titles == ['p, adam', *beside]
    for axes in drawn.axes:
      found = {line.get_color() for line in axes.lines}
      assert found >= {m.color for m in methods_lib.METHODS.values()}
      if picture.of_loss:
        assert colors_of_crosses(axes) == [
          methods_lib.METHODS[name].color for name in lost
        ]


def test_methods_are_told_apart_in_pictures():
  drawn = [(m.color, m.line) for m in methods_lib.METHODS.values()]
  assert len({*drawn}) == len(drawn)


def test_methods_without_an_inner_optimizer_have_pictures_alone():
  made = [make_outcome('dog', [1.0], optimizer='')]
  standings = standings_lib.Standings(made)
  for picture in plots.PICTURES:
    drawn = plots._draw(standings, picture)
    assert [axes.get_title() for axes in drawn.axes] == ['p']
    assert names_of(drawn) == {'dog'}
  assert '\n| dog ' in table_lib.make_table(standings)


def test_cells_of_before_count_all_their_runs():
  outcome = make_outcome('constant', [1.0, 2.0])
  values = outcomes.to_json(outcome)
  assert outcomes.from_json(outcome.cell, values).num_distinct == 2
  values['repeats'] = [0, 0]
  assert outcomes.from_json(outcome.cell, values).num_distinct == 1
  del values['repeats']
  assert outcomes.from_json(outcome.cell, values).num_distinct == 2


def test_ten_times_the_start_is_diverged():
  curves = np.ones((10, 1, 3))
  curves[-1] = [[9.9, 10.1, np.nan]]
  found = race._make_runs(np.arange(10), np.ones(3), curves, curves, None)
  assert found.diverged.tolist() == [[False, True, True]]
  assert found.finals[0, 2] == np.inf


def test_a_config_names_what_differs_from_the_defaults(tmp_path):
  """A resolved config is what it was: cells of before stay valid."""
  short = tmp_path / 'short.py'
  short.write_text(
    'import runpy\n'
    'from ml_collections import config_dict\n'
    'def get_config():\n'
    f"  whole = runpy.run_path('{runs.CONFIGS / 'compare.py'}')\n"
    "  problems = whole['get_config']().problems\n"
    "  return config_dict.ConfigDict({'problems': problems})\n"
  )
  whole = runs.parse_comparison(f'--config={runs.CONFIGS / "compare.py"}')
  assert runs.parse_comparison(f'--config={short}') == whole
  assert 'weight_decays' not in whole
  changed = runs.parse_comparison(f'--config={short}', '--config.num_seeds=2')
  assert changed['num_seeds'] == 2


def test_help_lists_every_field(capsys):
  with pytest.raises(SystemExit):
    compare.main(['--help'])
  said = capsys.readouterr().out
  for name, field in config_lib.FIELDS.items():
    assert f'\n  {name} ' in said
    assert field.meaning.split()[0] in said
  assert '[1e-06, 1e-05, 0.0001, 0.001,' in said
  assert max(map(len, said.splitlines())) <= 80


def test_the_repositorys_config_has_every_cell():
  config = flags.parse(
    'metalr_flax.compare',
    [CONFIG],
    '',
    check_name=config_lib.check_name,
    resolve=config_lib.resolve,
  ).config
  assert config_lib.resolve(config) == config
  listed = cells.list_cells(config, selected=True)
  assert len(listed) == 7 * (7 * 3 + 9)
  assert len({cell.id for cell in listed}) == len(listed)
  assert listed == cells.list_cells(config, selected=False)
  assert tuple(config['methods']) == tuple(methods_lib.METHODS)


# --- Refusals: one line, and nothing written.

WRONG = {
  'unknown field': (['--config.num_sed=2'], 'num_sed', 'num_seeds'),
  'method': ([methods('constnat')], 'methods=constnat', 'constant'),
  'problem': (['--config.only=digit_mlp'], 'only=digit_mlp', 'digits_mlp'),
  'new problem': (['--config.problems.mine.num_steps=8'], 'problems.mine.num_steps', 'not in'),
  'field of a problem': (['--config.problems.text.num_step=8'], 'problems.text.num_step', 'num_steps'),
  'field of a task': (['--config.problems.text.task.nam=x'], 'problems.text.task.nam', 'task.name'),
  'task': (['--config.problems.text.task.name=txt'], 'problems.text.task.name=txt', 'text'),
  'steps': (['--config.problems.text.num_steps=20'], 'problems.text.num_steps=20', 'num_steps=24'),
  'evaluations': (['--config.num_evaluations=99'], 'num_evaluations=99', 'at most'),
  'objective': (['--config.problems.text.objective=batch'], 'problems.text.objective=batch', 'batches'),
  'rates': (['--config.learning_rates=0.1,-1.0'], 'learning_rates=-1.0', '> 0'),
  'order': (['--config.learning_rates=0.1,0.01'], 'learning_rates=', 'ascend'),
  'model argument': (["--config.problems.digits_mlp.model.kwargs={'width': 3}"], 'problems.digits_mlp.model.kwargs: MLP', 'features'),
  'fit': (['--config.problems.digits_mlp.model.kwargs.features=(3, 10)'], 'problems.digits_mlp.model.name=mlp', 'does not fit'),
  'config of the trainer': ([f'--config={ROOT / "configs" / "default.py"}'], 'default.py: is for a training run; run python -m metalr_flax.main --config='),
  'loss': (['--config.problems.digits_mlp.task.name=users_code:BadLoss', "--config.problems.digits_mlp.task.kwargs={'kind': 'alone'}", '--config.problems.digits_mlp.model.name=users_code:Net', "--config.problems.digits_mlp.model.kwargs={'width': 3}"], 'problems.digits_mlp.task.name=users_code:BadLoss: returned no metrics'),
  'loss argument': (["--config.problems.digits_mlp.task={'name': 'digits', 'batch_size': 32, 'path': '', 'kwargs': {}, 'loss_kwargs': {'smoothing': 0.1}}"], 'problems.digits_mlp.task.loss_kwargs', 'smoothing'),
  'optimizer argument': (['--config.optimizers.sgd={"momentun": 0.9}'], 'optimizers.sgd', 'momentun'),
}  # fmt: skip


@pytest.mark.parametrize('name', WRONG)
def test_a_mistake_is_one_line_with_status_2(name, tmp_path, capsys):
  argv, *parts = WRONG[name]
  status = run_here([*BASE, *argv, f'--workdir={tmp_path / "run"}'])
  printed = capsys.readouterr()
  assert (status, printed.out) == (2, '')
  assert printed.err.startswith('metalr_flax: error: ')
  assert printed.err.count('\n') == 1
  for part in ('; ', *parts):
    assert part in printed.err
  assert not list(tmp_path.iterdir())


def test_a_task_that_ends_the_program_is_status_2(tmp_path, capsys):
  for name in ('Exits', 'ExitsInLoss'):
    problem = '--config.problems.digits_mlp'
    argv = [
      f"{problem}.task={{'name': 'users_code:{name}', 'batch_size': 2, 'path': '', 'kwargs': {{}}}}"
    ]
    assert run_here([*BASE, *argv, f'--workdir={tmp_path / "run"}']) == 2
    printed = capsys.readouterr()
    assert printed.out == ''
    assert 'problems' in printed.err
    assert 'ends the program (SystemExit: 0); ' in printed.err
    assert printed.err.count('\n') == 1
  assert not list(tmp_path.iterdir())


@pytest.mark.thorough
def test_the_workdir_of_another_comparison_is_refused(finished, capsys):
  workdir, _ = finished
  argv = [*TINY, methods('constant'), f'--workdir={workdir}']
  for override, part in [
    ('--config.seed=1', 'seed=0 (here 1)'),
    ('--config.problems.digits_mlp.num_steps=40', ' (here 40)'),
    ('--config.optimizers.sgd.momentum=0.5', ' (here 0.5)'),
  ]:
    assert run_here([*argv, override]) == 3
    line = capsys.readouterr().err
    assert line.count('\n') == 1
    assert part in line
    assert f'--workdir={workdir}-2' in line


@pytest.mark.thorough
def test_a_signal_ends_it_with_75_and_every_finished_cell(tmp_path):
  workdir = tmp_path / 'run'
  argv = [*TINY, methods(*METHODS, 'dog'), f'--workdir={workdir}']
  with start(argv, tmp_path) as process:
    while not list(workdir.glob('cells/*.json')):
      assert process.poll() is None, process.communicate()
      time.sleep(0.05)
    process.terminate()
    _, stderr = process.communicate()
  assert process.returncode == errors.Interrupted.status, stderr
  assert stderr.startswith('metalr_flax: interrupted: SIGTERM; ')
  assert stderr.count('\n') == 1
  saved = read_cells(workdir)
  assert 0 < len(saved) < CELLS
  assert not (workdir / 'comparison.csv').exists()
