"""The harness in benchmarks/rule: its problems, its cells, its command."""

import functools
import sys

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
import runs
import tiers

sys.path.append(str(runs.ROOT / 'benchmarks/rule'))
import cells
import methods
import problem as problem_lib
import problems
import scores
import training

# A value of each loss that is known without it.
KNOWN = {
  'rosenbrock': ([-7.0, -4.0], 8.0**2 + 53.0**2),
  'beale': ([-3.0, -0.5], 1.5**2 + 2.25**2 + 2.625**2),
  'plateau_navigation': ([1.0, 0.0], 0.5 - 1 / (1 + np.exp(4))),
  'quadratic_varying_scale': (np.ones(512), 1.0),
  'layer_wise_scale': ([*np.ones((3, 256))], 1001.001 / 3),
  'powers_varying_target': (None, 0.0),
  'exploding_gradient': (np.full(256, -1.0), np.exp(2) - 1),
  'quadratic_outliers': (np.ones(128), 256.5),
  'scale_invariant': (np.full(512, 1e3), np.log1p(1e6)),
  'quadratic_sparse': ([*np.zeros(15), -3.0], 9.0),
  'ill_conditioned': (None, 0.0),
  'matrix_factorisation': (None, 0.0),
  'ridge': (None, 0.0),
}


# Those of whose objective the minimum is known.
MINIMA = [
  'adversarial_gradient', 'heavy_tails', 'plateau_navigation', 'rosenbrock',
  'beale', 'sparse_gradient', 'noisy_matmul', 'quadratic_outliers',
  'quadratic_varying_scale', 'layer_wise_scale', 'powers_varying_target',
  'exploding_gradient', 'scale_invariant', 'quadratic_sparse',
  'ill_conditioned', 'matrix_factorisation', 'ridge',
]  # fmt: skip


@pytest.fixture(autouse=True)
def _broadcasting():
  """Biases are broadcast as users do."""
  with jax.numpy_rank_promotion('allow'):
    yield


@functools.cache
def start(name):
  """A problem with params and a batch of the seed 0."""
  found = problems.build(name)
  init_key, draw_key = jax.random.split(jax.random.key(0))
  return found, found.init(init_key), found.draw(draw_key, jnp.int32(3))


def is_finite(tree):
  return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


# Both halves have a problem of each kind: one of them is enough here.
@tiers.parametrize(
  'name', problems.KINDS, ['rosenbrock'], full=problems.CONFIRM
)
def test_a_problem_can_be_trained_and_judged(name):
  found, params, batch = start(name)
  loss, grads = jax.jit(jax.value_and_grad(found.loss))(params, batch)
  assert is_finite((loss, grads))
  assert all(leaf.any() for leaf in jax.tree.leaves(grads))
  judged = jax.jit(found.objective)(params, batch)
  assert judged.shape == ()
  assert judged > 0
  assert not found.is_solved(params, judged)
  if found.unseen:
    unseen = jax.jit(found.unseen)(params)
    assert unseen.shape == ()
    assert judged / 3 < unseen < judged * 3
  size = 1e-3 * found.scale / norm(grads)
  stepped = jax.tree.map(lambda p, g: p - size * g, params, grads)
  assert jax.jit(found.loss)(stepped, batch) < loss


def norm(tree):
  return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)))


@tiers.parametrize('name', KNOWN, ['rosenbrock', 'beale', 'layer_wise_scale'])
def test_the_objective_is_what_is_known_of_it(name):
  found, _, batch = start(name)
  params, value = KNOWN[name]
  params = (
    found.minimum() if params is None else jax.tree.map(jnp.array, params)
  )
  if isinstance(params, list) and jax.tree.leaves(params)[0].ndim == 0:
    params = jnp.stack(params)
  judged = found.objective(params, batch)
  np.testing.assert_allclose(judged, value, rtol=1e-5, atol=1e-5)


@tiers.parametrize('name', MINIMA, ['rosenbrock', 'ill_conditioned'])
def test_the_known_minimum_is_one(name):
  found, _, batch = start(name)
  least = found.minimum()
  at_least = found.objective(least, batch)
  np.testing.assert_allclose(at_least, 0, atol=1e-5)
  assert found.is_solved(least, at_least) or np.isnan(found.threshold)
  flat, unflatten = jax.flatten_util.ravel_pytree(least)
  for seed in range(3):
    near = flat + 0.01 * jax.random.normal(jax.random.key(seed), flat.shape)
    assert found.objective(unflatten(near), batch) > at_least


def test_noise_is_as_published():
  tails = problems.build('heavy_tails').draw(jax.random.key(0), 0)
  np.testing.assert_allclose(np.median(np.abs(tails)), 1 / 8, rtol=0.2)
  draw = functools.partial(
    problems.build('sparse_gradient').draw, jax.random.key(0)
  )
  masks = np.stack([draw(step) for step in range(3)])
  np.testing.assert_allclose(masks.mean(), 2**-5, rtol=0.2)
  assert (masks[0] & masks[1]).sum() > 4 * (masks[0] & masks[2]).sum()


def test_a_problem_moves_by_the_clock_alone():
  found, params, _ = start('dynamic_landscape')
  values = [found.loss(params, jnp.float32(step)) for step in (0, 1, 0)]
  assert values[0] == values[2] != values[1]


@pytest.mark.thorough
def test_what_is_said_of_problems_is_so():
  built = {name: problems.build(name) for name in problems.KINDS}
  assert sorted(MINIMA) == sorted(n for n, p in built.items() if p.minimum)
  moving = {problems.KINDS[n] for n, p in built.items() if p.moving}
  assert moving == {'moving target', 'moving function'}
  for found in built.values():
    if found.threshold_of == 'distance':
      assert found.minimum


def test_the_halves_have_each_kind_once():
  assert len(problems.CHOOSE) == len(problems.CONFIRM) >= 12
  assert not {*problems.CHOOSE} & {*problems.CONFIRM}
  for half in problems.HALVES.values():
    assert len({problems.KINDS[name] for name in half}) == len(half)


def test_batches_are_functions_of_key_and_step():
  draw = problem_lib.draw_from(jnp.arange(1000), 8)
  key = jax.random.key(0)
  np.testing.assert_array_equal(draw(key, 1), draw(key, 1))
  assert (draw(key, 1) != draw(key, 2)).any()


CELL = cells.Cell('rosenbrock', 'sgd', 'constant', 7)


@pytest.mark.thorough
def test_a_run_is_that_of_a_plain_loop():
  """One compilation for all lengths, rates and seeds changes no run."""
  numbers = training.train(CELL, range(1, 3))
  found = problems.build('rosenbrock')
  place, seed = 4, 2
  init_key, _ = jax.random.split(jax.random.key(seed))
  params = found.init(init_key)
  for _ in range(CELL.length):
    params = params - CELL.rates[place] * jax.grad(found.loss)(params, None)
  reached = numbers['objective'][place, seed - 1]
  np.testing.assert_allclose(reached, found.objective(params, None), rtol=1e-4)
  longer = training.train(CELL._replace(length=9), range(1, 3))
  assert (longer['objective'] != numbers['objective']).any()


def test_all_methods_begin_at_the_same_params():
  first = training.train(CELL, range(2))['initial']
  other = training.train(CELL._replace(method='today'), range(2))['initial']
  np.testing.assert_array_equal(first[:1], other)
  assert first[0, 0] != first[0, 1]


@pytest.mark.parametrize('shape', [0, 1, 2])
def test_schedules_rise_and_fall_as_they_say(shape):
  schedule = methods._of_shape(shape, 500)
  rates = np.array([schedule(jnp.array(count)) for count in (0, 9, 255, 499)])
  expected = [[1, 1, 1, 1], [0.1, 1, 0.5, 0], [0.1, 1, 0.5, 0]][shape]
  np.testing.assert_allclose(rates, expected, atol=3e-3)


@tiers.parametrize('name', methods.METHODS, ['dog'])
def test_a_method_trains(name):
  method = methods.METHODS[name]
  cell = cells.Cell('logistic_made', method.optimizers[-1], name, 400)
  numbers = training.train(cell, range(1))
  assert np.nanmin(numbers['objective']) < 0.9 * numbers['initial'][0, 0]


def rows(cell, code, seeds, values):
  numbers = {
    name: np.array(values)[:, None] * np.ones(len(seeds))
    for name in cells.PER_SEED
  }
  return cells.to_rows(cell, seeds.start, code, numbers)


def test_cells_are_read_back_as_they_were_written(tmp_path):
  path = tmp_path / 'cells.csv'
  values = np.arange(1.0, 14.0)
  cells.append(path, rows(CELL, 'old', range(5), values))
  cells.append(path, rows(CELL, 'new', range(2), values + 1))
  cells.append(path, rows(CELL, 'new', range(2, 3), values + 2))
  torn = rows(CELL._replace(length=8), 'new', range(2), values)
  cells.append(path, torn[: len(torn) // 2])
  found = cells.outcomes(cells.read(path))
  assert found[CELL].code == 'new'
  assert found[CELL].num_seeds == 3
  np.testing.assert_allclose(found[CELL].rates, CELL.rates, rtol=1e-5)
  np.testing.assert_array_equal(
    found[CELL].numbers['objective'], values[:, None] + [1, 1, 2]
  )
  assert len(found) <= 2


def outcome(method, objectives):
  numbers = {name: np.array(objectives, float) for name in cells.PER_SEED}
  numbers['initial'] = np.ones_like(numbers['initial'])
  return cells.Outcome('', tuple(range(len(objectives))), numbers)


def test_a_cell_without_all_its_rates_is_not_finished(tmp_path):
  path = tmp_path / 'cells.csv'
  text = rows(CELL, 'new', range(2), np.ones(13))
  for cut in (1, 3, 10, 30):
    path.unlink(missing_ok=True)
    cells.append(path, text[:-cut])
    assert (CELL in cells.outcomes(cells.read(path))) == (cut == 1)
    cells.append(path, text)
    assert CELL in cells.outcomes(cells.read(path))


def test_scores_are_those_of_the_best_rate_that_did_not_diverge():
  at = lambda method: CELL._replace(method=method, problem='logistic_made')
  found = {
    at('constant'): outcome('constant', [[0.1, 11.0], [0.4, 0.6]]),
    at('today'): outcome('today', [[0.75, 0.25]]),
    at('cosine'): outcome('cosine', [[np.nan, 0.1], [0.2, 0.3]]),
  }
  ratio = scores.ratios(found, 'cosine', 'constant', 7)[at('cosine')]
  np.testing.assert_allclose(ratio, 0.5)
  row = scores.summarise(scores.ratios(found, 'today', 'constant', 7).values())
  assert row == (1, 1.0, 1.0, 1.0)
  shares = scores.profile(
    found, ['constant', 'today', 'cosine'], 7, np.array([1.1, 2])
  )
  assert {m: s.tolist() for m, s in shares.items()} == {
    'constant': [0, 1], 'today': [0, 1], 'cosine': [1, 1]
  }  # fmt: skip


def test_a_cell_is_run_again_when_its_code_changes(monkeypatch):
  code, other = CELL.code, CELL._replace(method='today').code
  assert CELL.code == code != other
  monkeypatch.setattr(problem_lib, '__file__', __file__)
  assert CELL.code != code


@pytest.mark.thorough
def test_the_command_goes_on_where_it_was(tmp_path):
  path = tmp_path / 'quick.csv'

  def run(file, *arguments):
    script = f'benchmarks/rule/{file}.py'
    return runs.script(script, f'--csv={path}', *arguments)

  only = '--methods=constant,today', '--optimizers=sgd'
  assert run('run', '--quick', *only).startswith('8 cells to run')
  whole = path.read_text()
  path.write_text(whole[:-40])  # the last row is torn
  assert run('run', '--quick', *only).startswith('1 cells to run')
  assert len(cells.outcomes(cells.read(path))) == 8
  assert run('run', '--quick', '--seeds=3').startswith('24 cells to run')
  table = run('report')
  assert '| today | 40 | 4 |' in table
  assert 'Incomplete' in table
  assert path.with_suffix('.md').read_text() == table
  assert path.with_suffix('.png').stat().st_size > 10_000
