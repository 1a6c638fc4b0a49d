"""The reference run: the notebook's own samples and trajectory."""

import json

import jax
import numpy as np
import pytest
import runs
import tiers

import metalr_flax
from metalr_flax import tasks
from metalr_flax.tasks import reference_generator
from metalr_flax.workdir import metrics_csv

SEED_TRAJECTORY = runs.ROOT / 'tests/data/seed_trajectory.csv'
PRINTED = [
  (72.695, 7.184),
  (3.827, 0.367),
  (3.362, 0.327),
  (10.027, 0.973),
  (96.446, 9.739),
]


def test_five_printed_samples():
  with jax.threefry_partitionable(False):
    task = tasks.LinearRegression(batch_size=1)
    data_state = task.init(jax.random.key(0))
    for y, x in PRINTED:
      data_state, batch = task.next(data_state)
      assert round(float(batch['y'][0]), 3) == y
      assert round(float(batch['x'][0]), 3) == x


@tiers.parametrize('size', [1, 2, 3, 8], [1, 3])
def test_the_generator_has_jaxs_own_bits(size):
  with jax.threefry_partitionable(False):
    for seed in range(20):
      key = jax.random.key(seed)
      data = jax.random.key_data(key)
      np.testing.assert_array_equal(
        reference_generator.split(data, size),
        jax.random.key_data(jax.random.split(key, size)),
      )
      np.testing.assert_array_equal(
        reference_generator.uniform(data, size, 0.0, 10.0),
        jax.random.uniform(key, (size,), minval=0.0, maxval=10.0),
      )
      np.testing.assert_array_equal(
        reference_generator.normal(data, size), jax.random.normal(key, (size,))
      )


def test_skip_drops_the_printed_samples():
  whole, skipping = tasks.LinearRegression(), tasks.LinearRegression(skip=5)
  data_state = whole.init(jax.random.key(0))
  for _ in PRINTED:
    data_state, _ = whole.next(data_state)
  start = skipping.init(jax.random.key(0))
  assert jax.random.key_data(start).tolist() == (
    jax.random.key_data(data_state).tolist()
  )


def test_all_2000_steps_follow_the_notebook(reference):
  expected = np.genfromtxt(SEED_TRAJECTORY, delimiter=',', names=True)
  columns = metrics_csv.read(reference / 'metrics.csv')
  assert len(expected) == 2000
  np.testing.assert_array_equal(columns['outer_step'], expected['outer_step'])
  np.testing.assert_allclose(
    columns['hyperparams/learning_rate'],
    expected['learning_rate'],
    rtol=0,
    atol=1e-5,
  )
  np.testing.assert_allclose(
    columns['params/theta'], expected['theta'], rtol=0, atol=1e-4
  )


def _window(eta, samples, theta=0.02830461):
  """One window in plain NumPy, float64: losses before updates, and after."""
  nu, losses = 0.0, []
  rate = 1 / (1 + np.exp(-eta))
  for x, y in samples[:6]:
    losses.append((theta * x - y) ** 2 / 2)
    grad = (theta * x - y) * x
    nu = 0.9 * nu + 0.1 * grad**2
    theta -= rate * grad / np.sqrt(nu + 1e-8)
  x, y = samples[6]
  return np.mean(losses), (theta * x - y) ** 2 / 2, theta


def test_first_row_against_numpy(reference):
  """Every column of the first row, from the definition alone."""
  with jax.threefry_partitionable(False):
    theta = float(jax.random.normal(jax.random.PRNGKey(42)))
    task = tasks.LinearRegression(skip=5)
    data_state, samples = task.init(jax.random.key(0)), []
    for _ in range(7):
      data_state, batch = task.next(data_state)
      samples.append((float(batch['x'][0]), float(batch['y'][0])))
  eta, h = -np.log(1 / 0.1 - 1), 1e-5
  train_loss, meta_loss, theta_after = _window(eta, samples, theta)
  up, down = (_window(eta + d, samples, theta)[1] for d in (h, -h))
  row = {
    k: v[0] for k, v in metrics_csv.read(reference / 'metrics.csv').items()
  }
  assert list(row) == [
    'outer_step',
    'inner_step',
    'train/loss',
    'meta/loss',
    'meta/grad_norm',
    'hyperparams/learning_rate',
    'params/theta',
    'eval/loss',
    'perf/outer_steps_per_sec',
  ]
  assert (row['outer_step'], row['inner_step']) == (1, 6)
  assert row['train/loss'] == pytest.approx(train_loss, rel=1e-5)
  assert row['meta/loss'] == pytest.approx(meta_loss, rel=1e-5)
  assert row['meta/grad_norm'] == pytest.approx(
    abs(up - down) / (2 * h), rel=1e-4
  )
  assert row['params/theta'] == pytest.approx(theta_after, rel=1e-5)
  assert np.isnan(row['eval/loss'])


def test_losses_end_at_the_noise(reference):
  """Half of N(0, 1) squared, and a little for theta's own error."""
  columns = metrics_csv.read(reference / 'metrics.csv')
  assert 0.5 < columns['train/loss'][1000:].mean() < 0.65
  theta = columns['params/theta'][-200:]
  assert np.abs(theta - 10).mean() == pytest.approx(0.061, abs=0.001)


def test_evaluation_at_its_cadence_alone(reference):
  columns = metrics_csv.read(reference / 'metrics.csv')
  evaluated = columns['outer_step'][~np.isnan(columns['eval/loss'])]
  assert evaluated.tolist() == [500, 1000, 1500, 2000]


def test_results_are_the_last_row(reference):
  results = json.loads((reference / 'results.json').read_text())
  columns = metrics_csv.read(reference / 'metrics.csv')
  assert results['outer_step'] == 2000
  assert results['inner_step'] == 12000
  for key, value in results.items():
    assert value == columns[key][-1], key
  assert not any(key.startswith('perf/') for key in results)


def test_schedule_is_what_the_windows_used(reference):
  schedule = json.loads((reference / 'schedule.json').read_text())
  columns = metrics_csv.read(reference / 'metrics.csv')
  learned = schedule['learning_rate']
  assert learned['inner_step'] == list(range(0, 12001, 6))
  assert learned['value'][0] == 0.1
  assert learned['value'][1:] == columns['hyperparams/learning_rate'].tolist()
  rate = metalr_flax.load_schedule(reference / 'schedule.json')
  first, second = columns['hyperparams/learning_rate'][:2]
  for step, value in ((0, 0.1), (5, 0.1), (6, first), (11, first)):
    assert float(rate(step)) == pytest.approx(value, rel=1e-7), step
  assert float(rate(12)) == pytest.approx(second, rel=1e-7)
  assert float(jax.jit(rate)(10**6)) == learned['value'][-1]


def test_numbers_read_back_exactly(reference):
  """The same float32 whichever precision a reader parses them in."""
  text = (reference / 'metrics.csv').read_text().splitlines()[1].split(',')
  for cell in text[2:7]:
    assert float(np.float32(cell)) == float(cell)


def test_plot_is_a_picture(reference):
  from PIL import Image

  picture = Image.open(reference / 'plots/learning_rate.png')
  assert picture.size[0] == 960
  assert picture.size[1] >= 720
  assert len(picture.convert('RGB').getcolors(10**6)) > 50
