"""What a run's TensorBoard shows: the real program over its HTTP API.

The run was killed after its last checkpoint but one, and went on from there: no
point may be missing, wrong, or there twice.
"""

import dataclasses
import functools
import html
import importlib.metadata
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
import tomllib
import urllib.parse
import urllib.request

import numpy as np
from PIL import Image
import pytest
import runs
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.backend.event_processing import plugin_event_accumulator

from metalr_flax.config import schema
from metalr_flax.trainer import build
from metalr_flax.workdir import folder
from metalr_flax.workdir import metrics_csv

RUN = 'reference'
LOG_EVERY, EVAL_EVERY = 10, 45  # neither divides the other
K = 6  # inner updates in an outer step: the axis of all that is served
PLOT = 'plots/learning_rate'
KEEP_ALL = {'tensors': 0}


@pytest.fixture(scope='module')
def watched(tmp_path_factory):
  """A run to step 120, set back to step 100 and continued to 200.

  Returns its workdir and a reader that had seen it at step 120.
  """
  path = tmp_path_factory.mktemp('runs') / RUN
  cadences = {
    'log_every': LOG_EVERY,
    'eval_every': EVAL_EVERY,
    'checkpoint_every': 50,
  }
  runs.run_here(path, num_outer_steps=120, **cadences)
  reader = plugin_event_accumulator.EventAccumulator(str(path), KEEP_ALL)
  reader.Reload()
  shutil.rmtree(path / 'state' / '120')
  runs.run_here(path, num_outer_steps=200, **cadences)
  return path, reader


@pytest.fixture(scope='module')
def workdir(watched):
  return watched[0]


@dataclasses.dataclass(frozen=True)
class Board:
  """A TensorBoard that serves the folder of a run's workdir."""

  workdir: pathlib.Path
  url: str

  def read(self, route, body=None, **query):
    """The bytes served under a route; with a body it is posted."""
    request = urllib.request.Request(
      f'{self.url}/data/plugin/{route}?{urllib.parse.urlencode(query)}',
      data=None if body is None else json.dumps(body).encode(),
      headers={'Content-Type': 'application/json'},
    )
    no_proxy = urllib.request.ProxyHandler({})
    with urllib.request.build_opener(no_proxy).open(
      request, timeout=runs.LIMIT
    ) as answer:
      return answer.read()

  def get(self, route, body=None, **query):
    return json.loads(self.read(route, body, **query))


@pytest.fixture(scope='module', params=['true', 'false'])
def board(request, workdir, tmp_path_factory):
  """TensorBoard with its fast loader in Rust, and with the one in Python."""
  log = tmp_path_factory.mktemp('log') / 'tensorboard.log'
  argv = [
    '-m',
    'tensorboard.main',
    f'--logdir={workdir.parent}',
    '--host=localhost',
    '--port=0',
    f'--load_fast={request.param}',
  ]
  environment = {k: v for k, v in os.environ.items() if k != 'PYTHONWARNINGS'}
  with (
    log.open('w') as file,
    runs.started(
      argv, stdout=file, stderr=subprocess.STDOUT, env=environment
    ) as process,
  ):
    address = _wait_for(
      lambda: re.search(r'http://localhost:\d+(?=/)', log.read_text()),
      process,
      log,
    )
    board = Board(workdir, address[0])
    # The plot is the last thing that a run writes.
    _wait_for(lambda: board.get('images/tags').get(RUN), process, log)
    yield board
    process.terminate()  # and with it the server in Rust
    process.wait()


def _wait_for(condition, process, log):
  deadline = time.monotonic() + runs.LIMIT
  while time.monotonic() < deadline and process.poll() is None:
    if found := condition():
      return found
    time.sleep(0.1)
  raise AssertionError(f'TensorBoard is not there:\n{log.read_text()}')


def _expected(workdir):
  """By metric key, the (step, value) points that TensorBoard has to show."""
  columns = metrics_csv.read(workdir / 'metrics.csv')
  steps = columns['outer_step'].astype(int)
  points = {}
  for key in columns.keys() - {'outer_step', 'inner_step'}:
    every = EVAL_EVERY if key.startswith('eval/') else LOG_EVERY
    shown = steps % every == 0
    values = columns[key][shown].astype(np.float32)
    points[key] = list(zip((K * steps[shown]).tolist(), values, strict=True))
  for key, value in _before_the_first_step(workdir).items():
    points[key].insert(0, (0, value))
  return points


@functools.cache
def _before_the_first_step(workdir):
  """The evaluation of the model as it was made."""
  config = folder.read_config(workdir)
  with build.randomness(config):
    experiment = build.build(config)
    state = experiment.init_state()
    values = experiment.evaluate(state.params, state.model_state)
  return {f'eval/{name}': np.float32(value) for name, value in values.items()}


def _finals(workdir):
  """The learned values and the evaluation at the run's end, its one point."""
  results = json.loads((workdir / 'results.json').read_text())
  return {
    f'final/{key}': [(200 * K, np.float32(value))]
    for key, value in results.items()
    if key.startswith(('hyperparams/', 'eval/'))
  }


def _points(served):
  return [(int(step), np.float32(value)) for _, step, value in served]


def test_the_run_is_as_long_as_it_should_be(workdir):
  points = _expected(workdir)
  assert [step for step, _ in points['train/loss']] == [*range(60, 1201, 60)]
  assert [step for step, _ in points['eval/loss']] == [0, 270, 540, 810, 1080]
  assert not np.isnan([v for key in points for _, v in points[key]]).any()


def test_every_metric_is_served_with_the_values_of_the_csv_file(board):
  expected = _expected(board.workdir) | _finals(board.workdir)
  served = board.get('scalars/tags')
  assert served.keys() == {RUN}
  assert served[RUN].keys() == expected.keys()
  for tag, points in expected.items():
    scalars = board.get('scalars/scalars', run=RUN, tag=tag)
    assert _points(scalars) == points, tag


def test_the_plot_is_served(board):
  assert board.get('images/tags')[RUN].keys() == {PLOT}
  query = {'run': RUN, 'tag': PLOT}
  (image,) = board.get('images/images', sample=0, **query)
  assert image['step'] == 200 * K
  query = dict(urllib.parse.parse_qsl(image['query']))
  served = Image.open(io.BytesIO(board.read('images/individualImage', **query)))
  with Image.open(board.workdir / f'{PLOT}.png') as written:
    assert served.format == 'PNG'
    assert served.size == written.size
    np.testing.assert_array_equal(np.asarray(served), np.asarray(written))


def test_the_config_is_served_as_a_block_of_code(board):
  assert board.get('text/tags') == {RUN: ['config']}
  texts = board.get('text/text', run=RUN, tag='config')
  assert [text['step'] for text in texts] == [0, 100 * K]  # one of each start
  code = r'<pre><code[^>]*>(.*)</code></pre>'
  configs = [
    json.loads(html.unescape(re.search(code, text['text'], re.DOTALL)[1]))
    for text in texts
  ]
  assert configs[0]['num_outer_steps'] == 120
  assert configs[1] == json.loads((board.workdir / 'config.json').read_text())


def test_hyperparameters_and_metrics_are_served_side_by_side(board):
  body = {'experimentName': '', 'includeMetrics': True}
  experiment = board.get('hparams/experiment', body)
  body = {
    'experimentName': '',
    'allowedStatuses': ['STATUS_UNKNOWN'],
    'colParams': [{'metric': m['name']} for m in experiment['metricInfos']],
    'startIndex': 0,
    'sliceSize': 10,
  }
  (group,) = board.get('hparams/session_groups', body)['sessionGroups']
  hparams = group['hparams']
  assert {info['name'] for info in experiment['hparamInfos']} == hparams.keys()
  assert (
    hparams.items()
    >= {
      'seed': 0,
      'task.name': 'linear_regression',
      'task.batch_size': 1,
      'task.kwargs.skip': 5,
      'model.name': 'linear',
      'model.kwargs.init_seed': 42,
      'inner.optimizer': 'rmsprop',
      'inner.learning_rate': 0.1,
      'meta.learned.learning_rate': 'sigmoid',
      'meta.unroll_length': 6,
      'meta.estimator': 'forward',
      'meta.optimizer': 'adam',
      'meta.learning_rate': 0.03,
      'threefry_partitionable': False,
    }.items()
  )
  # TensorBoard shows the first value: what may change must not be there.
  changing = {'num_outer_steps', *schema.MAY_CHANGE}
  assert not hparams.keys() & changing
  # Its row has the run's name and, as metrics, the last points.
  assert [s['name'] for s in group['sessions']] == [group['name']] == [RUN]
  metrics = {
    m['name']['tag']: (m['trainingStep'], np.float32(m['value']))
    for m in group['metricValues']
  }
  expected = _expected(board.workdir) | _finals(board.workdir)
  assert metrics == {tag: points[-1] for tag, points in expected.items()}
  # Beside the config's first rate stands the one that was learned.
  learned = metrics_csv.read(board.workdir / 'metrics.csv')
  assert metrics['final/hyperparams/learning_rate'] == (
    200 * K, np.float32(learned['hyperparams/learning_rate'][-1])
  )  # fmt: skip
  assert metrics['final/eval/loss'] != metrics['eval/loss']


@pytest.mark.parametrize('when', ['before', 'after'])
def test_no_reader_of_the_event_files_has_a_point_twice(watched, when):
  """One that had read the points that were taken back, and a new one."""
  workdir, reader = watched
  if when == 'after':
    reader = event_accumulator.EventAccumulator(str(workdir), KEEP_ALL)
  reader.Reload()
  assert len([*workdir.glob('events.out.tfevents.*')]) == 2
  steps = {
    tag: [event.step for event in reader.Tensors(tag)]
    for tag in reader.Tags()['tensors']
  }
  assert steps == {
    **{tag: [s for s, _ in rows] for tag, rows in _expected(workdir).items()},
    **{tag: [200 * K] for tag in _finals(workdir)},
    'config': [0, 100 * K],
    '_hparams_/session_start_info': [0],
    PLOT: [200 * K],
  }


@pytest.mark.thorough
def test_a_run_imports_no_tensorflow(tmp_path):
  """CLU and TensorBoard would wherever there is one, here a stand-in."""
  (tmp_path / 'tensorflow.py').touch()
  code = (
    'import sys; from metalr_flax import main; '
    'assert main.main(sys.argv[1:]) == 0; '
    'assert "clu.metric_writers" in sys.modules; '
    'print([m for m in sys.modules if m.startswith("tensorflow")])'
  )
  folder = tmp_path / 'checkpoints'
  arguments = runs.command(folder / 'run', num_outer_steps=20)
  environment = runs.environment()
  environment['PYTHONPATH'] += os.pathsep + str(tmp_path)
  done = subprocess.run(
    [sys.executable, '-c', code, *arguments],
    capture_output=True,
    text=True,
    cwd=runs.ROOT,
    env=environment,
  )
  assert done.returncode == 0, done.stderr
  *_, hint, imported = done.stdout.splitlines()
  assert imported == '[]'
  # There each run has its name, and metrics beside its hyperparameters.
  assert hint.endswith(f'tensorboard --logdir={folder} --host=localhost')


def test_no_package_that_is_needed_brings_tensorflow():
  """Whatever else is installed beside them."""
  with open(runs.ROOT / 'pyproject.toml', 'rb') as file:
    project = tomllib.load(file)['project']
  needed = set()
  new = {*project['dependencies'], *project['optional-dependencies']['test']}
  while new:
    names = {re.match(r'[\w.-]+', line)[0].lower() for line in new} - needed
    needed |= names
    new = {line for name in names for line in _requirements(name)}
  assert {'jax', 'clu', 'tensorboard', 'jaxlib'} <= needed
  assert not [name for name in needed if name.startswith('tensorflow')]


def _requirements(name):
  """What an installed package requires here, its extras left out."""
  try:
    lines = importlib.metadata.requires(name) or ()
  except importlib.metadata.PackageNotFoundError:
    return ()  # of another system
  return [line for line in lines if 'extra ==' not in line]
