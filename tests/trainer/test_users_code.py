"""The user's own modules and loops, by config alone and by hand."""

import functools
import json
import shutil
import signal

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import runs
import tiers
import users_code

import metalr_flax
from metalr_flax import audit
from metalr_flax import errors
from metalr_flax import main
from metalr_flax.workdir import metrics_csv

FIELDS = {
  'model__name': 'users_code:Net',
  'model__kwargs': {'width': 16, 'widths': (1, 2)},
  'task__name': 'users_code:Plane',
  'task__batch_size': 32,
  'task__kwargs': {'slopes': (2.0, -1.0)},
  'inner__learning_rate': 0.003,
  'num_outer_steps': 60,
  'eval_every': 30,
  'checkpoint_every': 30,
}


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('own')
  runs.run_here(workdir, **FIELDS)
  return workdir


def test_own_model_and_task_by_config_alone(trained):
  columns = metrics_csv.read(trained / 'metrics.csv')
  assert columns['train/loss'][-1] < 0.5 * columns['train/loss'][0]
  assert columns['eval/loss'][-1] < 1
  assert 'train/largest' in columns
  assert 'eval/largest' in columns
  assert not np.isnan(columns['meta/loss']).any()


def test_load_gives_the_trained_module_ready_to_call(trained):
  model, config, schedule = metalr_flax.load(trained)
  assert isinstance(model, users_code.Net)
  assert config.inner.learning_rate == 0.003
  # In evaluation mode: the same on every call, and the metrics agree.
  batches = users_code.Plane(1, slopes=(2.0, -1.0)).eval_batches()
  errors_ = [model(b['x']) - b['y'] for b in batches]
  again = [model(b['x']) - b['y'] for b in batches]
  for one, two in zip(errors_, again, strict=True):
    np.testing.assert_array_equal(one, two)
  results = json.loads((trained / 'results.json').read_text())
  loss = jnp.mean(jnp.concatenate(errors_) ** 2)
  np.testing.assert_allclose(results['eval/loss'], loss, rtol=1e-5)
  value = metrics_csv.read(trained / 'metrics.csv')['hyperparams/learning_rate']
  assert float(schedule(10**6)) == value[-1]


@pytest.mark.thorough
def test_resume_with_dropout_and_batch_norm_is_bit_exact(trained, tmp_path):
  runs.run_here(tmp_path, **{**FIELDS, 'num_outer_steps': 41})
  runs.run_here(tmp_path, **FIELDS)
  runs.assert_same_run(tmp_path, trained)


def test_batch_norm_averages_move_in_the_inner_loop_alone(trained):
  state = runs.newest_state(trained)
  calls = next(v for k, v in state.items() if 'calls' in k)
  assert calls == 60 * 6  # once for each inner update, not for the outer loss
  drawn = next(v for k, v in state.items() if 'drawn' in k)
  assert drawn == 60 * 7


@pytest.mark.thorough
def test_bfloat16_weights_train_save_and_resume(tmp_path):
  whole, cut = tmp_path / 'whole', tmp_path / 'cut'
  half = {
    **FIELDS,
    'model__name': 'users_code:Half',
    'model__kwargs': {},
    'inner__optimizer': 'adam',
    'num_outer_steps': 20,
  }
  runs.run_here(whole, **half)
  runs.run_here(cut, **{**half, 'num_outer_steps': 7})
  runs.run_here(cut, **half)
  runs.assert_same_run(cut, whole)


@pytest.mark.thorough
def test_load_of_a_run_that_is_not_finished(tmp_path):
  """Its schedule ends where its newest checkpoint does."""
  fields = {'num_outer_steps': 10**6, 'checkpoint_every': 1000}
  with runs.training(tmp_path, **fields) as process:
    stderr = runs.stop_at(process, 'step')
  assert process.returncode == 75, stderr
  rates = metrics_csv.read(tmp_path / 'metrics.csv')[
    'hyperparams/learning_rate'
  ]
  _, _, schedule = metalr_flax.load(tmp_path)
  assert float(schedule(0)) == pytest.approx(0.1)
  assert float(schedule(10**9)) == rates[-1]


@pytest.mark.thorough
def test_stopped_twice_before_the_first_step(tmp_path):
  """Both times the state is saved and the status says so."""
  stop = runs.interrupts.StopRequest()
  stop.name = 'SIGTERM'
  for _ in range(2):
    with pytest.raises(errors.Interrupted, match='at outer step 0'):
      runs.run_here(tmp_path, stop=stop, num_outer_steps=50)
  runs.run_here(tmp_path, num_outer_steps=50)
  assert len(runs.rows(tmp_path)) == 50


def test_no_steps_at_all(tmp_path):
  runs.run_here(tmp_path, num_outer_steps=0)
  model, _, schedule = metalr_flax.load(tmp_path)
  assert float(schedule(5)) == pytest.approx(0.1)
  assert model(jnp.ones(3)).shape == (3,)
  assert (tmp_path / 'plots/learning_rate.png').exists()


@pytest.mark.thorough
def test_divergence_names_the_step_and_the_checkpoint(tmp_path):
  wild = {
    'inner__optimizer': 'sgd',
    'meta__learning_rate': 0.0,
    'checkpoint_every': 2,
    'num_outer_steps': 100,
  }
  with pytest.raises(errors.DivergedError) as caught:
    runs.run_here(tmp_path, **wild)
  step = int(str(caught.value).split(':')[0].removeprefix('outer step '))
  assert f'state/{step - 1};' in str(caught.value)
  assert len(runs.rows(tmp_path)) == step - 1


SLOW = pytest.mark.thorough


@pytest.mark.parametrize(
  ('task', 'objective', 'said'),
  [
    ('users_code:Plane', 'held_out', True),
    pytest.param('users_code:Bare', 'held_out', True, marks=SLOW),
    pytest.param('users_code:Plane', 'online', False, marks=SLOW),
    ('users_code:Apart', 'held_out', False),
  ],
)
def test_a_task_without_outer_batches_is_named(
  task, objective, said, tmp_path, capsys
):
  own = {'task__name': task, 'meta__objective': objective}
  if task == 'users_code:Bare':
    own['task__kwargs'] = {}
  runs.run_here(tmp_path, **{**FIELDS, **own, 'num_outer_steps': 2})
  line = f'held-out batches: {task} has no next_meta, so they are the next ones'
  assert (line in capsys.readouterr().out) == said


@pytest.mark.thorough
def test_duck_typed_task(tmp_path):
  own = {'task__name': 'users_code:Bare', 'task__kwargs': {}}
  runs.run_here(tmp_path, **{**FIELDS, **own, 'num_outer_steps': 5})
  columns = metrics_csv.read(tmp_path / 'metrics.csv')
  assert not any(key.startswith('eval/') for key in columns)


@pytest.mark.parametrize(
  ('fields', 'names'),
  [
    ({'model__name': 'users_code:Nope'}, 'model.name=users_code:Nope'),
    ({'model__name': 'nowhere:Net'}, 'model.name=nowhere:Net'),
    (
      {'model__name': 'users_code:NotAModule', 'model__kwargs': {}},
      'nnx.Module',
    ),
    ({'model__kwargs': {'widht': 16}}, 'model.kwargs'),
    ({'task__kwargs': {}}, 'task.kwargs'),
    ({'task__name': 'users_code:NotAModule'}, 'task'),
    ({'task__path': 'some.txt'}, 'path'),
  ],
)
def test_refusals_come_before_anything_is_written(tmp_path, fields, names):
  workdir = tmp_path / 'new'
  with pytest.raises(errors.ConfigError, match=names):
    runs.run_here(workdir, **{**FIELDS, **fields})
  assert not workdir.exists()


@pytest.mark.parametrize(
  ('fields', 'parts'),
  [
    ({'task__name': 'users_code:Exits'}, ['task.kwargs: Exits: ', 'SystemExit: 0']),
    ({'task__name': 'users_code:ExitsInLoss'}, ['task.name or model.name: ', 'SystemExit: 0']),
    ({'model__name': 'users_code:ExitingModel', 'model__kwargs': {}}, ['model.kwargs: ExitingModel: ', 'GeneratorExit']),
    ({'meta__groups': 'users_code:exiting_labels'}, ['task.name or model.name: ', 'SystemExit']),
    ({'model__name': 'users_code:Wordless', 'model__kwargs': {}}, ['model.kwargs: Wordless refuses', '(no message)']),
    ({'task__name': 'exits_at_once:Task'}, ['task.name=exits_at_once:Task: ', 'SystemExit: 3']),
  ],
)  # fmt: skip
@pytest.mark.parametrize('command', [main, audit], ids=['main', 'audit'])
def test_code_that_ends_the_program_is_an_error(
  command, fields, parts, tmp_path, monkeypatch, capsys
):
  """Not the command's end with status 0, as if all were done."""
  (tmp_path / 'exits_at_once.py').write_text('raise SystemExit(3)\n')
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.setattr(signal, 'signal', lambda *_: None)  # main's handlers
  if 'task__name' in fields:
    fields = {'task__kwargs': {}, **fields}
  workdir = tmp_path / 'run'
  argv = runs.command(workdir, **{**FIELDS, **fields})
  assert command.main(argv) == 2
  printed = capsys.readouterr()
  assert printed.out == ''
  assert printed.err.count('\n') == 1
  for part in ('metalr_flax: error: ', *parts):
    assert part in printed.err
  assert not workdir.exists()


@pytest.mark.thorough
def test_own_loop_over_the_pure_functions():
  """As docs/own_loop.md has it, which tests/test_docs.py runs."""
  task = users_code.Plane(32, slopes=(2.0, -1.0))
  parts = metalr_flax.split(users_code.Net(16, rngs=nnx.Rngs(0)))
  problem = metalr_flax.Problem(
    loss_fn=metalr_flax.make_loss_fn(parts.train, task.loss),
    meta_loss_fn=metalr_flax.make_loss_fn(parts.meta, task.loss),
    next_batch=task.next,
    next_meta_batch=task.next_meta,
    tx=metalr_flax.make_injected(
      'rmsprop', {'learning_rate': 1e-3}, ['learning_rate']
    ),
    bijections={'learning_rate': 'sigmoid'},
    unroll_length=5,
  )
  meta_tx = optax.adam(0.05)
  state = metalr_flax.init_state(
    problem,
    params=parts.params,
    model_state=parts.model_state,
    data_state=task.init(jax.random.key(0)),
    hyperparams={'learning_rate': 1e-3},
    meta_tx=meta_tx,
  )
  step = jax.jit(
    functools.partial(metalr_flax.outer_step, problem=problem, meta_tx=meta_tx)
  )
  first = None
  for _ in range(40):
    state, metrics = step(state)
    first = metrics if first is None else first
  assert step._cache_size() == 1
  assert metrics['train/loss'] < 0.5 * first['train/loss']
  assert metrics['hyperparams/learning_rate'] > 2e-3  # it had begun too low
  model = parts.eval.merge(state.params, state.model_state)
  assert model(jnp.ones((4, 2))).shape == (4,)


def test_load_refuses_what_is_no_run(tmp_path):
  with pytest.raises(errors.WorkdirError, match=r'config\.json'):
    metalr_flax.load(tmp_path)


@pytest.mark.thorough
def test_weak_types_masks_and_small_integers_resume_bit_exactly(tmp_path):
  whole, cut = tmp_path / 'whole', tmp_path / 'cut'
  fields = {**FIELDS, 'model__name': 'users_code:Weak', 'model__kwargs': {}}
  runs.run_here(whole, **fields)
  shutil.copytree(whole, cut)
  shutil.rmtree(cut / 'state/60')
  for path in (cut, whole):
    (path / 'results.json').rename(path / 'first')
    runs.run_here(path, **fields)
    assert (path / 'results.json').read_text() == (path / 'first').read_text()
  runs.assert_same_run(cut, whole)


@pytest.mark.parametrize(
  ('kwargs', 'rule'),
  [
    (
      {'name': 'a.b'},
      'two of its variables would be saved as params.parts.a.b',
    ),
    (
      {'name': 'a/b'},
      'two of its variables would be saved as params/parts/a/b',
    ),
    ({'name': 'c', 'shape': (0, 3)}, 'params/parts/c has no elements'),
  ],
)
def test_what_could_not_be_saved_is_refused_before_the_run(
  tmp_path, kwargs, rule
):
  fields = {
    **FIELDS,
    'model__name': 'users_code:Named',
    'model__kwargs': kwargs,
  }
  with pytest.raises(errors.ConfigError, match=rule):
    runs.run_here(tmp_path, **fields)
  assert not list(tmp_path.iterdir())


@pytest.mark.thorough
def test_a_name_with_dots_resumes(tmp_path):
  kwargs = {'name': 'c.d/e'}
  fields = {
    **FIELDS,
    'model__name': 'users_code:Named',
    'model__kwargs': kwargs,
  }
  runs.run_here(tmp_path, **{**fields, 'num_outer_steps': 10})
  runs.run_here(tmp_path, **{**fields, 'num_outer_steps': 20})
  assert not list(tmp_path.glob('state/*damaged*'))


@tiers.parametrize(
  'name',
  ['noisy_sgd', 'optimistic_adam_v2', 'optimistic_gradient_descent'],
  [],
  full=['optimistic_gradient_descent'],
)
@pytest.mark.filterwarnings('ignore:Specifying a key')  # optax, of its default
def test_optimizers_with_keys_and_flags_in_their_state_resume(tmp_path, name):
  whole, cut = tmp_path / 'whole', tmp_path / 'cut'
  fields = {**FIELDS, 'inner__optimizer': name, 'inner__learning_rate': 1e-3}
  runs.run_here(whole, **fields)
  runs.run_here(cut, **{**fields, 'num_outer_steps': 25})
  runs.run_here(cut, **fields)
  runs.assert_same_run(cut, whole)
