"""Comparing by the loss on unseen data: held-out data pick, test data report.

One tiny comparison is run once, by a real process; the tests look at it.
"""

import csv
import dataclasses
import json

import jax
import numpy as np
import optax
import pytest
import runs

import metalr_flax
from metalr_flax import errors
from metalr_flax import tasks
from metalr_flax.comparison import arena as arena_lib
from metalr_flax.comparison import cells
from metalr_flax.comparison import config as config_lib
from metalr_flax.comparison import contestants
from metalr_flax.comparison import outcomes
from metalr_flax.comparison import plots
from metalr_flax.comparison import race
from metalr_flax.comparison import standings as standings_lib
from metalr_flax.comparison import table as table_lib
from metalr_flax.comparison import unseen as unseen_lib
from metalr_flax.trainer import build as build_lib

PROBLEM = 'breast_cancer'
WHERE = f'--config.problems.{PROBLEM}'
METHODS = ['constant', 'self_tuning']
TINY = [
  f'--config={runs.CONFIGS / "compare_unseen.py"}',
  '--config.num_seeds=2',
  '--config.num_evaluations=4',
  f'--config.only={PROBLEM}',
  f'{WHERE}.num_steps=64',
  "--config.optimizers={'sgd': {'momentum': 0.9}, 'adamw': {}}",
  '--config.learning_rates=1e-2,1.0',
  '--config.weight_decays=0.0,0.1',
  '--config.initial_learning_rates=1e-2,1.0',
]


def parse(*argv):
  return runs.parse_comparison(*TINY, *argv)


def methods(*names):
  return f'--config.methods={",".join(names)}'


def build(optimizer, *argv):
  """The arena and self_tuning's contestant of an optimizer."""
  config = parse(methods('self_tuning'), *argv)
  (cell,) = [
    cell
    for cell in cells.list_cells(config, selected=True)
    if cell.optimizer == optimizer
  ]
  arena = arena_lib.build_arena(config, cell.problem)
  return arena, contestants.build_contestant(config, cell, arena)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A workdir with every cell of METHODS, and what was printed."""
  workdir = tmp_path_factory.mktemp('unseen') / 'run'
  argv = [*TINY, methods(*METHODS), f'--workdir={workdir}']
  with runs.started(['-m', 'metalr_flax.compare', *argv]) as process:
    stdout, stderr = process.communicate()
  assert process.returncode == 0, stderr
  return workdir, stdout


def read_cell(workdir, name):
  path = workdir / 'cells' / f'{PROBLEM}.{name}.json'
  return json.loads(path.read_text())


@pytest.mark.thorough
def test_a_run_is_scored_where_its_held_out_loss_was_least(finished):
  """One seed of each, so that the curves are of single runs."""
  config = parse('--config.num_seeds=1', methods('constant'))
  arena = arena_lib.build_arena(config, PROBLEM)
  cell = cells.list_cells(config, selected=True)[0]
  contestant = contestants.build_contestant(config, cell, arena)
  found = race.train_runs(
    contestant, arena, cell.learning_rates, None, cell.weight_decays
  )
  stops = np.argmin(found.held_out, axis=0)
  np.testing.assert_array_equal(found.stops, stops)
  expected = [found.curves[stops[r, 0], r, 0] for r in range(len(stops))]
  np.testing.assert_allclose(found.finals[:, 0], expected)
  # The process's first seed is the same run.
  values = read_cell(finished[0], f'{cell.optimizer}.constant')
  finals = np.array(values['finals'])[:, 0]
  np.testing.assert_allclose(finals, expected, rtol=1e-4)
  assert [row[0] for row in values['held_out']['stops']] == [
    int(found.steps[at]) for at in stops[:, 0]
  ]


@pytest.mark.thorough
def test_the_losses_are_those_of_the_model_in_evaluation_mode(finished):
  arena, _ = build('adamw')
  start = jax.tree.map(lambda x: x[0], arena.initial)
  task = tasks.BreastCancer(meta_fraction=0.3, test_fraction=0.4)
  loss_of = lambda batch: arena.loss_fn(start.params, start.model_state, batch)[
    0
  ]
  held_out, test = arena.objective(start)
  np.testing.assert_allclose(test, loss_of(task.test), rtol=1e-5)
  batches = unseen_lib._draw_held_out(task, seed=0)
  assert len(batches) == unseen_lib.NUM_HELD_OUT
  means = np.mean([loss_of(batch) for batch in batches])
  np.testing.assert_allclose(held_out, means, rtol=1e-5)
  rows = lambda part: {row.tobytes() for row in np.asarray(part['features'])}
  assert set.union(*map(rows, batches)) <= rows(task.meta)
  values = read_cell(finished[0], 'adamw.constant')
  assert values['held_out']['loss'] == 'cross-entropy (nats)'


def test_dropout_and_batch_statistics_are_left_out():
  """The test loss of a net with both is what the trainer's evaluation says."""
  task = {'name': 'users_code:Apart', 'kwargs': {'slopes': (1.0, 2.0)}}
  config = parse()
  config['problems'][PROBLEM] |= {
    'task': {**task, 'batch_size': 4, 'path': ''},
    'model': {'name': 'users_code:Net', 'kwargs': {'width': 3}},
  }
  arena = arena_lib.build_arena(config, PROBLEM)
  start = jax.tree.map(lambda x: x[0], arena.initial)
  experiment = build_lib.build(
    contestants.trainer_config(config, PROBLEM, 'sgd', 0)
  )
  expected = experiment.evaluate(start.params, start.model_state)['loss']
  measured = arena.objective(start)
  np.testing.assert_allclose(measured[1], expected, rtol=1e-5)
  np.testing.assert_array_equal(arena.objective(start), measured)


@pytest.mark.thorough
def test_every_run_has_a_row_with_what_was_picked(finished):
  workdir, stdout = finished
  with open(workdir / 'comparison.csv', newline='') as file:
    rows = list(csv.DictReader(file))
  names = (*table_lib.COLUMNS, *table_lib.UNSEEN_COLUMNS)
  assert tuple(rows[0]) == names
  count = lambda o, m: sum(
    (row['optimizer'], row['method']) == (o, m) for row in rows
  )
  assert count('adamw', 'constant') == 2 * 2 * 2  # rates, decays, seeds
  assert count('sgd', 'constant') == 2 * 2  # it has no weight decay
  assert all((row['weight_decay'] == '') == (row['method'] != 'constant' or row['optimizer'] == 'sgd') for row in rows)  # fmt: skip
  costs = {row['method']: float(row['gradient_evaluations']) for row in rows}
  assert costs == {
    'constant': 64,
    'self_tuning': 64 * 1.25,
  }
  assert ': unseen 0.' in stdout


@pytest.mark.thorough
def test_the_summary_and_the_table_say_what_was_picked_by_held_out(finished):
  workdir, stdout = finished
  summary = json.loads((workdir / 'summary.json').read_text())
  assert [*summary] == ['unseen']
  assert summary['unseen']['objective'] == 'loss on unseen data'
  for pair in summary['unseen']['pairs']:
    values = read_cell(workdir, f'{pair["optimizer"]}.constant')
    at = np.argmin(np.mean(values['held_out']['losses'], axis=1))
    picked = pair['constant']
    assert pair['loss'] == 'cross-entropy (nats)'
    assert picked['learning_rate'] == values['learning_rates'][at]
    assert picked['score'] == pytest.approx(np.mean(values['finals'][at]))
    assert ('weight_decay' in picked) == (pair['optimizer'] == 'adamw')
    if pair['optimizer'] == 'adamw':
      assert picked['weight_decay'] == values['weight_decays'][at]
  table = (workdir / 'table.md').read_text()
  assert table in stdout
  assert table.startswith('# Comparison by the loss on unseen data\n')
  words = ' '.join(table.split())
  assert 'loss on unseen data, cross-entropy (nats): the test loss' in words
  (line,) = [
    line
    for line in table.splitlines()
    if line.startswith('| constant adamw, picked ')
  ]
  assert [part.strip() for part in line.split('|')[2:5]] == ['1', '1', '1']
  assert max(map(len, table.splitlines())) <= 100


@pytest.mark.thorough
def test_pictures_are_of_the_loss_on_unseen_data(finished):
  names = {path.stem for path in (finished[0] / 'plots').glob('*.png')}
  assert names == {picture.file for picture in plots.UNSEEN_PICTURES}


@pytest.mark.thorough
def test_again_it_trains_nothing_and_writes_the_same(finished):
  workdir, _ = finished
  names = ('comparison.csv', 'summary.json', 'table.md')
  before = [(workdir / name).read_bytes() for name in names]
  argv = [*TINY, methods(*METHODS), f'--workdir={workdir}']
  with runs.started(['-m', 'metalr_flax.compare', *argv]) as process:
    stdout, stderr = process.communicate()
  assert process.returncode == 0, stderr
  assert 'cell ' not in stdout
  assert [(workdir / name).read_bytes() for name in names] == before


@pytest.mark.thorough
@pytest.mark.parametrize('method', ['cosine', 'trainer', 'schedule_free_adamw'])
def test_other_methods_are_stopped_early_all_the_same(method):
  config = parse(methods(method))
  cell = cells.list_cells(config, selected=True)[0]
  arena = arena_lib.build_arena(config, PROBLEM)
  found = race.train_runs(
    contestants.build_contestant(config, cell, arena),
    arena,
    cell.learning_rates,
    None,
    cell.weight_decays,
  )
  least = np.take_along_axis(found.curves, found.stops[None], 0)[0]
  np.testing.assert_array_equal(found.finals, least)
  assert np.all(np.isfinite(found.finals))
  plain = 64 * (1 + 1.5) + 8 if method == 'trainer' else 64
  assert cell.gradient_evaluations == plain


# --- self_tuning's held-out gradients.


def reference_loop(arena, make_tx, updates, *, held_out):
  """As a user would write it: a held-out gradient at every fourth update."""
  run = jax.tree.map(lambda x: x[0], arena.initial)
  task = tasks.BreastCancer(meta_fraction=0.3, test_fraction=0.4)
  tx = make_tx()
  params, data_state = run.params, run.data_state
  grad = jax.jit(jax.grad(lambda p, b: arena.loss_fn(p, run.model_state, b)[0]))
  opt_state, update = tx.init(params), jax.jit(tx.update)
  for step in range(updates):
    given = {}
    if held_out and step % 4 == 0:
      data_state, batch = task.next_meta(data_state)
      given = {'meta_grads': grad(params, batch)}
    data_state, batch = task.next(data_state)
    moves, opt_state = update(grad(params, batch), opt_state, params, **given)
    params = optax.apply_updates(params, moves)
  return params, metalr_flax.hyperparams_of(opt_state)


@pytest.mark.parametrize(
  ('optimizer', 'learned'),
  [
    pytest.param(
      'adamw',
      ['learning_rate', 'weight_decay'],
      marks=pytest.mark.thorough,
    ),
    pytest.param('sgd', ['learning_rate'], marks=pytest.mark.full),
  ],
)
def test_self_tuning_is_given_held_out_gradients(optimizer, learned):
  """At every fourth update; with them it learns the decay where there is one."""
  fixed = {'weight_decay': 1e-3} if optimizer == 'adamw' else {'momentum': 0.9}

  def make_tx():
    inject = optax.inject_hyperparams(getattr(optax, optimizer))
    return metalr_flax.self_tuning(inject(1e-2, **fixed), learned=learned)

  arena, contestant = build(optimizer)
  assert contestant.updates == 4
  state = contestant.init(1e-2, jax.tree.map(lambda x: x[0], arena.initial))
  step = jax.jit(contestant.step)
  for _ in range(16):
    state, _ = step(state)
  snapshot, _ = contestant.view(state)
  found = metalr_flax.hyperparams_of(state[2])
  params, expected = reference_loop(arena, make_tx, 64, held_out=True)
  for name in learned:
    np.testing.assert_allclose(found[name], expected[name], rtol=1e-3)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-4),
    snapshot.params,
    params,
  )
  _, without = reference_loop(arena, make_tx, 64, held_out=False)
  assert any(
    not np.isclose(found[name], without[name], rtol=0.05) for name in learned
  )


def test_only_every_fourth_held_out_gradient_is_computed():
  """Side by side, too: the choice is of the place in the window, not of a run."""
  arena, contestant = build('sgd')
  state = jax.vmap(contestant.init, in_axes=(None, 0))(1e-2, arena.initial)
  text = str(jax.make_jaxpr(jax.vmap(contestant.step))(state))
  assert ' cond[' in text


# --- What held-out losses pick, on made-up outcomes.


def make_outcome(method, held_out, finals, decays=(), optimizer='adamw'):
  cell = cells.Cell(
    problem='p',
    optimizer=optimizer,
    method=method,
    learning_rates=tuple(10.0**-i for i in range(len(finals), 0, -1)),
    num_seeds=1,
    num_steps=8,
    digest='',
    weight_decays=decays,
    unseen=True,
  )
  finals, held = np.array(finals)[:, None], np.array(held_out)[:, None]
  return outcomes.Outcome(
    cell=cell,
    first_seed=0,
    initial_objective=1.0,
    finals=finals,
    diverged=np.isinf(finals),
    steps=np.array([8]),
    curves=finals,
    learned_rates=finals,
    seconds=0.0,
    repeats=np.arange(len(finals)),
    held_out=outcomes.HeldOut(
      losses=held,
      stops=np.full(held.shape, 8),
      curves=held,
      loss_label='cross-entropy (nats)',
    ),
  )


def test_a_grid_is_picked_by_held_out_loss_and_reported_by_test_loss():
  standings = standings_lib.Standings(
    [
      make_outcome('constant', [0.3, 0.2, 0.4], [1.0, 2.0, 0.5]),
      make_outcome('cosine', [0.2, 0.1], [0.5, 4.0], decays=(0.0, 0.1)),
      make_outcome('self_tuning', [0.2, 0.3], [1.0, 3.0]),
    ]
  )
  best = standings.best('p', 'adamw', 'constant')
  assert (best.learning_rate, best.score, best.held_out) == (1e-2, 2.0, 0.2)
  assert not best.at_the_edge
  cosine = standings.best('p', 'adamw', 'cosine')
  assert (cosine.weight_decay, cosine.score) == (0.1, 4.0)
  assert cosine.at_the_edge
  assert standings.ratios('p', 'adamw', 'self_tuning') == [0.5, 1.5]
  assert standings.against('cosine') == [0.25, 0.75]
  means = {row['method']: row['geometric_mean'] for row in standings.ranking()}
  assert means['constant adamw, picked'] == 1.0
  assert means['cosine adamw, picked'] == pytest.approx(2.0)
  table = table_lib.make_table(standings)
  rows = [[c.strip() for c in line.split('|')] for line in table.splitlines()]
  settings = {row[1]: row[2:4] for row in rows if len(row) > 4}
  assert settings['constant'] == ['0.01', '2']
  assert settings['cosine'] == ['0.1, 0.1*', '4']


def test_a_weight_decay_of_0_is_no_edge_of_the_grid():
  outcome = make_outcome('constant', [3, 1, 2], [1, 1, 1], decays=(0.0,) * 3)
  best = standings_lib.Standings([outcome]).best('p', 'adamw', 'constant')
  assert (best.weight_decay, best.at_the_edge) == (0.0, False)


def test_a_picture_shows_for_each_rate_the_decay_that_was_picked():
  outcome = make_outcome('constant', [2, 1, 3, 4], [5, 6, 7, 8], (0, 1) * 2)
  rates = (0.1, 0.1, 1.0, 1.0)
  cell = dataclasses.replace(outcome.cell, learning_rates=rates)
  found = plots._by_rate(
    dataclasses.replace(outcome, cell=cell), outcome.scores
  )
  np.testing.assert_array_equal(found, [[0.1, 1.0], [6, 7]])


def test_a_run_is_stopped_before_it_diverges():
  losses = np.array([[3.0, 3.0], [1.0, 2.0], [2.0, 1.0], [np.nan, np.inf]])
  found = race._stop_early(
    np.array([8, 16, 24, 32]),
    np.array([[3.0, 3.0]]),
    losses[:, None, None],
    np.ones((4, 1, 1)),
    None,
  )
  assert (found.finals.item(), found.stops.item()) == (2.0, 1)
  assert not found.diverged.item()
  lost = race._stop_early(
    np.array([8]),
    np.array([[3.0, 3.0]]),
    np.full((1, 1, 1, 2), np.nan),
    np.ones((1, 1, 1)),
    None,
  )
  assert lost.diverged.item()
  assert lost.finals.item() == np.inf


def test_results_by_training_objective_stay_beside_those_on_unseen_data():
  unseen = make_outcome('constant', [0.2], [1.0])
  cell = cells.Cell(
    problem='q',
    optimizer='adamw',
    method='constant',
    learning_rates=(0.1,),
    num_seeds=1,
    num_steps=8,
    digest='',
  )
  plain = dataclasses.replace(unseen, cell=cell, held_out=None)
  summary = standings_lib.summarize_all(
    standings_lib.by_objective([unseen, plain])
  )
  assert [p['problem'] for p in summary['pairs']] == ['q']
  assert [p['problem'] for p in summary['unseen']['pairs']] == ['p']
  alone = standings_lib.summarize_all(standings_lib.by_objective([plain]))
  assert alone == {k: v for k, v in summary.items() if k != 'unseen'}
  assert table_lib.make_csv([plain]).startswith(
    ','.join(table_lib.COLUMNS) + '\n'
  )


# --- The config.


def test_the_repositorys_config_has_every_cell():
  config = runs.parse_comparison(TINY[0])
  assert config_lib.resolve(config) == config
  listed = cells.list_cells(config, selected=True)
  assert len(listed) == 4 * (4 * 3 + 2)
  assert {cell.unseen for cell in listed} == {True}
  sizes = {
    (c.optimizer, c.method): len(c.learning_rates)
    for c in listed
    if c.optimizer
  }
  rates = len(config['learning_rates'])
  assert sizes['adamw', 'cosine'] == rates * len(config['weight_decays'])
  assert sizes['sgd', 'cosine'] == sizes['rmsprop', 'constant'] == rates


def test_a_grid_without_decays_is_one_of_rates():
  config = parse()
  del config['weight_decays'], config['problems'][PROBLEM]['weight_decays']
  resolved = config_lib.resolve(config)
  assert resolved['problems'][PROBLEM]['weight_decays'] == []
  listed = cells.list_cells(resolved, selected=True)
  assert {cell.weight_decays for cell in listed} == {()}


WRONG = {
  'negative decay': (['--config.weight_decays=-0.1,0.1'], 'weight_decays=-0.1', '>= 0'),
  'order of decays': (['--config.weight_decays=0.1,0.0'], 'weight_decays=', 'ascend'),
  'decay of an optimizer': (["--config.optimizers={'adamw': {'weight_decay': 0.1}}"], 'optimizers.adamw.weight_decay: comes from weight_decays', 'leave it out'),
  'objective': ([f'{WHERE}.objective=unsen'], f'problems.{PROBLEM}.objective=unsen', 'unseen'),
}  # fmt: skip


@pytest.mark.parametrize('name', WRONG)
def test_a_mistake_is_one_line(name):
  argv, *parts = WRONG[name]
  with pytest.raises(errors.ConfigError) as caught:
    parse(*argv)
  for part in ('; ', *parts):
    assert part in str(caught.value)
  assert '\n' not in str(caught.value)


def test_decays_of_a_training_objective_are_refused():
  config = parse()
  config['problems'][PROBLEM]['objective'] = 'task'
  with pytest.raises(errors.ConfigError, match='; leave them out'):
    config_lib.resolve(config)


@pytest.mark.parametrize(
  ('task', 'model', 'reason'),
  [
    (
      {'name': 'users_code:Plane', 'kwargs': {'slopes': (1.0, 2.0)}},
      {'name': 'users_code:Net', 'kwargs': {'width': 3}},
      'the task users_code:Plane has no next_meta; give it',
    ),
    (
      {'name': 'noisy_quadratic', 'kwargs': {'size': 4}},
      {'name': 'vector', 'kwargs': {'size': 4}},
      'eval_batches of the task noisy_quadratic gives none; give it some',
    ),
  ],
)
def test_a_task_without_data_to_hold_out_or_to_test_on_is_refused(
  task, model, reason
):
  section = {**task, 'batch_size': 4, 'path': ''}
  config = parse()
  config['problems'][PROBLEM] |= {'task': section, 'model': model}
  with pytest.raises(errors.ConfigError) as caught:
    arena_lib.build_arena(config_lib.resolve(config), PROBLEM)
  line = str(caught.value)
  assert line.startswith(f'problems.{PROBLEM}.objective=unseen: needs ')
  assert reason in line
  assert '\n' not in line
