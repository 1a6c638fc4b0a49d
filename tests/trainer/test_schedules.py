"""A multiplier of the learned rate and clipped gradients, by config."""

import json

import numpy as np
import optax
import pytest
import references
import runs

import metalr_flax
from metalr_flax import errors
from metalr_flax.config import check
from metalr_flax.trainer import build
from metalr_flax.workdir import metrics_csv

WARM_UP = {
  'inner__schedule': 'warmup_cosine_decay_schedule',
  'inner__schedule_kwargs': {
    'init_value': 0.0,
    'peak_value': 1.0,
    'warmup_steps': 60,
    'decay_steps': 240,
    'end_value': 0.2,
  },
}
FIELDS = {**WARM_UP, 'inner__clip_norm': 0.5, 'checkpoint_every': 10}


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  path = tmp_path_factory.mktemp('surrounded')
  runs.run_here(path, num_outer_steps=40, **FIELDS)
  return path


@pytest.mark.thorough
def test_a_resumed_run_ends_in_the_same_bits(workdir, tmp_path):
  runs.run_here(tmp_path, num_outer_steps=17, **FIELDS)
  runs.run_here(tmp_path, num_outer_steps=40, **FIELDS)
  runs.assert_same_run(tmp_path, workdir)


@pytest.mark.thorough
def test_the_rate_that_load_gives_repeats_the_run(workdir):
  """Value times multiplier in a plain optax loop, clipped as the run was."""
  columns = metrics_csv.read(workdir / 'metrics.csv')
  _, config, rate = metalr_flax.load(workdir)
  config = check.resolve(config.to_dict())
  with build.randomness(config):
    experiment = build.build(config)
    start, problem = experiment.init_state(), experiment.problem

    def next_batch(data_state):
      return problem.next_batch(data_state)

    tx = optax.chain(optax.clip_by_global_norm(0.5), optax.rmsprop(rate))
    theta, done = start.params, (tx.init(start.params), start.data_state)
    thetas = []
    loop = references.plain_loop(
      tx,
      lambda params, batch: problem.loss_fn(params, {}, batch)[0],
      next_batch,
      steps=6,
    )
    for _ in range(40):
      (theta, opt_state, data_state), _ = loop(theta, *done)
      data_state, _ = problem.next_meta_batch(data_state)
      done = opt_state, data_state
      thetas.append(float(theta['theta']))
  np.testing.assert_allclose(thetas, columns['params/theta'], rtol=1e-5)


def test_files_have_the_learned_value_alone(workdir):
  columns = metrics_csv.read(workdir / 'metrics.csv')
  learned = columns['hyperparams/learning_rate']
  assert columns['params/theta'][0] != columns['params/theta'][1]
  schedule = json.loads((workdir / 'schedule.json').read_text())
  np.testing.assert_array_equal(
    schedule['learning_rate']['value'], [0.1, *learned]
  )
  multiplier = optax.warmup_cosine_decay_schedule(
    **WARM_UP['inner__schedule_kwargs']
  )
  value = metalr_flax.load_schedule(workdir / 'schedule.json')
  _, _, rate = metalr_flax.load(workdir)
  for update in (0, 1, 59, 60, 150, 10**6):
    assert float(rate(update)) == float(value(update) * multiplier(update))


def built(**fields):
  argv = runs.command('unused', 'default', **fields)
  return build.build(runs.flags.parse('m', argv, '').config)


def test_keys_that_are_numbers_reach_optax_as_numbers():
  tx = built(
    inner__schedule='piecewise_constant_schedule',
    inner__schedule_kwargs={
      'init_value': 1.0,
      'boundaries_and_scales': {'5': 0.5},
    },
  ).problem.tx
  params = {'theta': np.float32(1.0)}
  state, updates = tx.init(params), []
  for _ in range(7):
    update, state = tx.update(params, state, params)
    updates.append(float(update['theta']))
  assert updates[5] / updates[4] == pytest.approx(0.5, rel=0.2)


BAD = [
  ({'inner__schedule': 'warmup_cosine'}, r'inner\.schedule=warmup_cosine: must be .*; did you mean warmup_cosine_decay_schedule\?'),
  ({'inner__schedule': 'no_such_module:ramp'}, r'inner\.schedule=no_such_module:ramp: cannot be imported'),
  ({'inner__schedule_kwargs': {'value': 1.0}}, r'inner\.schedule_kwargs=.*: needs a schedule'),
  ({'inner__schedule': 'cosine_decay_schedule', 'inner__schedule_kwargs': {'init_value': 1.0}}, r"inner\.schedule_kwargs: cosine_decay_schedule: missing a required argument: 'decay_steps'"),
  ({'inner__schedule': 'cosine_decay_schedule', 'inner__schedule_kwargs': {'init_value': 1.0, 'steps': 9}}, r'inner\.schedule_kwargs: cosine_decay_schedule: '),
  ({'inner__schedule': 'cosine_decay_schedule', 'inner__schedule_kwargs': {'init_value': 1.0, 'decay_steps': 0}}, r'inner\.schedule_kwargs: cosine_decay_schedule refuses'),
  ({'inner__schedule': 'cosine_decay_schedule', 'inner__schedule_kwargs': {'init_value': 'x', 'decay_steps': 9}}, r'inner\.schedule=cosine_decay_schedule: cannot be traced'),
  ({'inner__schedule': 'constant_schedule', 'inner__schedule_kwargs': {'value': 'x'}}, r'inner\.schedule=constant_schedule: '),
  ({'inner__schedule': 'constant_schedule', 'inner__schedule_kwargs': {'value': -1.0}}, r'must be finite and >= 0, and is -1 at update 0'),
  ({'inner__schedule': 'users_code:no_schedule'}, r'must return a schedule, not float'),
  ({'inner__schedule': 'users_code:two_at_once'}, r'must give a number for each update, not .*2'),
  ({'inner__schedule': 'users_code:looks_at_its_count'}, r'cannot be traced'),
  ({'inner__schedule': 'users_code:steps_down'}, r'and is -0\.\d+ at update'),
  ({'inner__schedule': 'users_code:none_at_all'}, r"is 0 at all of the run's updates"),
  ({'inner__schedule': 'users_code:ramp', 'inner__schedule_kwargs': {'steps': 9}}, r"got an unexpected keyword argument 'steps'"),
  ({'inner__clip_norm': -1.0}, r'inner\.clip_norm=-1\.0: must be a number >= 0'),
  ({'inner__clip_norm': 'x'}, r'inner\.clip_norm=x: must be a number'),
]  # fmt: skip


@pytest.mark.parametrize('number', range(len(BAD)))
def test_what_is_no_multiplier_is_refused_in_one_line(number):
  fields, says = BAD[number]
  with pytest.raises(errors.ConfigError, match=says) as caught:
    built(num_outer_steps=10, **fields)
  assert len(str(caught.value).splitlines()) == 1


def test_a_schedule_of_the_users_own_is_taken():
  built(inner__schedule='users_code:ramp')
  # 1 - 59 / 59 is a little below 0 in float32, and no matter.
  length = {'inner__schedule_kwargs': {'length': 59}}
  built(num_outer_steps=10, inner__schedule='users_code:steps_down', **length)
