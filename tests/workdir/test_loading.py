"""Whatever is in a run's files, `load` and `load_schedule` refuse in one line."""

import json
import math
import shutil

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax
import numpy as np
import optax
import pytest
import runs

import metalr_flax
from metalr_flax import errors
from metalr_flax.workdir import checkpoint
from metalr_flax.workdir import folder as folder_lib
from metalr_flax.workdir import manifest

RELEASE = runs.ROOT / 'tests' / 'torture' / 'release_0_1'
DEEP = '[' * 100_000
NESTED = '{"a":' * 200 + '0' + '}' * 200
JSON = st.recursive(
  st.none()
  | st.booleans()
  | st.integers()
  | st.floats()
  | st.text(max_size=5)
  | st.sampled_from([10**30, 10**400, -1, 2**31, 1e39]),
  lambda inner: (
    st.lists(inner, max_size=4)
    | st.dictionaries(
      st.sampled_from(['learning_rate', 'inner_step', 'value', 'meta', 'task']),
      inner,
      max_size=4,
    )
  ),
  max_leaves=8,
)


def line_of(kinds, function, *args):
  """The line that one of the errors documented has."""
  with pytest.raises(kinds) as caught:
    function(*args)
  assert len(str(caught.value).splitlines()) == 1
  return str(caught.value)


# --- Schedules.

GOOD = {'inner_step': [0, 6, 12], 'value': [0.1, 0.2, 3]}
BAD_ENTRIES = {
  'null': None,
  'a list': [1, 2],
  'no value': {'inner_step': [0]},
  'nan': {**GOOD, 'value': [0.1, math.nan, 0.3]},
  'infinity': {**GOOD, 'value': [0.1, math.inf, 0.3]},
  'null value': {**GOOD, 'value': [0.1, None, 0.3]},
  'value a word': {**GOOD, 'value': [0.1, '0.2', 0.3]},
  'value a flag': {**GOOD, 'value': [0.1, True, 0.3]},
  'value a number': {**GOOD, 'value': 0.1},
  'nested values': {**GOOD, 'value': [[0.1], [0.2], [0.3]]},
  'infinite in float32': {**GOOD, 'value': [0.1, 1e39, 0.3]},
  'infinite in float64': {**GOOD, 'value': [0.1, 10**400, 0.3]},
  'fewer values': {**GOOD, 'value': [0.1, 0.2]},
  'more values': {**GOOD, 'value': [0.1, 0.2, 0.3, 0.4]},
  'unsorted': {**GOOD, 'inner_step': [0, 12, 6]},
  'twice': {**GOOD, 'inner_step': [0, 6, 6]},
  'not from 0': {**GOOD, 'inner_step': [1, 6, 12]},
  'negative': {**GOOD, 'inner_step': [-1, 6, 12]},
  'fraction': {**GOOD, 'inner_step': [0, 6.5, 12]},
  'float steps': {**GOOD, 'inner_step': [0.0, 6.0, 12.0]},
  'flags': {**GOOD, 'inner_step': [False, True, 2]},
  'null step': {**GOOD, 'inner_step': [0, None, 12]},
  'steps a mapping': {**GOOD, 'inner_step': {'0': 0}},
  'empty': {'inner_step': [], 'value': []},
}
BAD_FILES = ['', '{', '[]', 'null', '3', '"x"', '\ud800', DEEP, '9' * 5000]


@pytest.mark.parametrize('name', BAD_ENTRIES)
def test_what_is_no_schedule_is_refused(name, tmp_path):
  path = tmp_path / 'schedule.json'
  for content in ({'learning_rate': BAD_ENTRIES[name]},
                  {'learning_rate': GOOD, 'b1': BAD_ENTRIES[name]}):  # fmt: skip
    path.write_text(json.dumps(content))
    line = line_of(errors.ConfigError, metalr_flax.load_schedule, path)
    assert line.startswith(f'{path}: not a schedule (')
    assert '; give a schedule.json' in line


@pytest.mark.parametrize('number', range(len(BAD_FILES)))
def test_what_is_no_schedule_file_is_refused(number, tmp_path):
  path = tmp_path / 'schedule.json'
  path.write_bytes(BAD_FILES[number].encode('utf-8', 'surrogatepass'))
  line = line_of(errors.ConfigError, metalr_flax.load_schedule, path)
  assert 'not a schedule (' in line


@given(content=JSON | st.fixed_dictionaries({'learning_rate': JSON}))
def test_no_schedule_ends_in_another_exception(content, tmp_path_factory):
  path = tmp_path_factory.getbasetemp() / 'fuzzed.json'
  path.write_text(json.dumps(content))
  lines = []
  try:
    schedule = metalr_flax.load_schedule(path)
  except errors.ConfigError as error:
    lines = str(error).splitlines()
  else:
    assert np.isfinite(schedule(0))
    assert np.isfinite(schedule(2**31 - 1))
  assert len(lines) <= 1


def test_steps_beyond_every_count_are_never_reached(tmp_path):
  path = tmp_path / 'schedule.json'
  entry = {'inner_step': [0, 2**31 - 2, 2**31, 10**30], 'value': [1, 2, 3, 4]}
  path.write_text(json.dumps({'learning_rate': entry}))
  schedule = metalr_flax.load_schedule(path)
  assert [float(schedule(s)) for s in (0, 5, 2**31 - 2)] == [1, 1, 2]


@pytest.mark.parametrize(
  ('values', 'every'),
  [
    ({}, 1),
    ({'learning_rate': []}, 1),
    ({'learning_rate': [0.1, math.nan]}, 1),
    ({'learning_rate': [0.1, 1e39]}, 1),
    ({'learning_rate': 0.1}, 1),
    ({'learning_rate': ['fast']}, 1),
    ({'learning_rate': [0.1]}, 0),
    ({'learning_rate': [0.1]}, 2.5),
    ({'learning_rate': [0.1]}, '2'),
  ],
)
def test_no_schedule_is_written_that_could_not_be_loaded(
  values, every, tmp_path
):
  with pytest.raises(ValueError, match='save_schedule: '):
    metalr_flax.save_schedule(tmp_path / 's.json', values, every=every)
  assert not list(tmp_path.iterdir())


def test_arrays_and_their_integers_make_a_schedule(tmp_path):
  path = tmp_path / 's.json'
  rates = jax.numpy.array([0.1, 0.2])
  metalr_flax.save_schedule(path, {'learning_rate': rates}, every=np.int64(3))
  schedule = metalr_flax.load_schedule(path)
  assert [float(schedule(s)) for s in (2, 3)] == [np.float32(0.1), rates[1]]
  optax.sgd(schedule).init({})


# --- Workdirs.


@pytest.fixture
def workdir(tmp_path):
  shutil.copytree(RELEASE, tmp_path / 'run')
  return tmp_path / 'run'


def write(path, text):
  path.write_bytes(text.encode('utf-8', 'surrogatepass'))


def changed(**values):
  config = json.loads((RELEASE / 'config.json').read_text())
  return json.dumps({**config, **values})


@pytest.mark.parametrize(
  'text',
  [
    *BAD_FILES,
    NESTED,
    '{}',
    '{"meta": null}',
    '{"a.b": 1}',
    changed(meta=None),
    changed(meta=[]),
    changed(task='digits'),
    changed(seed=math.nan),
    changed(seed=10**30),
    changed(seed=True),
    changed(model={'name': 'linear', 'kwargs': [1]}),
    changed(problems={}),
  ],
)
def test_a_config_that_is_none_is_refused(text, workdir):
  write(workdir / 'config.json', text)
  line = line_of(errors.WorkdirError, metalr_flax.load, workdir)
  assert line.startswith(f'{workdir / "config.json"}: not ')
  # The trainer says the same, or that the config is another one.
  arguments = runs.flags.parse('m', runs.command(workdir), '')
  line_of(
    errors.WorkdirError, folder_lib.check_config, workdir, arguments.config, ''
  )


@given(content=JSON)
def test_no_config_ends_in_another_exception(content, tmp_path_factory):
  folder = tmp_path_factory.getbasetemp() / 'fuzzed'
  folder.mkdir(exist_ok=True)
  write(folder / 'config.json', json.dumps(content))
  line_of(errors.WorkdirError, metalr_flax.load, folder)


def test_a_class_that_has_gone_is_told(workdir):
  model = {'name': 'no_such_module:Net', 'kwargs': {}}
  write(workdir / 'config.json', changed(model=model))
  line = line_of(errors.ConfigError, metalr_flax.load, workdir)
  assert 'model.name=no_such_module:Net' in line


def sign(step, content):
  (step / manifest.NAME).write_bytes(manifest._encode(content))


def signed(step):
  content = json.loads((step / manifest.NAME).read_text())
  del content['sha256']
  return content


FIELDS = ['name', 'files', 'notes']
NOTES = ['step', 'record', 'sha256', 'leaves', 'environment']


@pytest.mark.parametrize('name', FIELDS + NOTES)
def test_a_manifest_without_a_field_is_a_damaged_one(name, workdir):
  (step,) = (workdir / 'state').iterdir()
  content = signed(step)
  holder = content['notes'] if name in NOTES else content
  for value in (None, 3, 'x', [], {}):
    if isinstance(value, type(holder[name])):
      continue
    sign(step, {**content, name: value} if name in FIELDS else
         {**content, 'notes': {**holder, name: value}})  # fmt: skip
    line_of(errors.NoCheckpointError, metalr_flax.load, workdir)
  del holder[name]
  sign(step, content)
  line_of(errors.NoCheckpointError, metalr_flax.load, workdir)


@pytest.fixture(scope='module')
def template():
  config = folder_lib.read_config(RELEASE)
  with runs.build.randomness(config):
    return runs.build.build(config).init_state()


# Orbax's other reads are left behind when one has failed.
@settings(max_examples=100)
@given(
  name=st.sampled_from([*FIELDS, 'directories', 'files.', *NOTES]), value=JSON
)
def test_no_manifest_ends_in_another_exception(
  name, value, template, tmp_path_factory
):
  folder = tmp_path_factory.getbasetemp() / 'manifests'
  if not folder.exists():
    shutil.copytree(RELEASE / 'state', folder)
  (step,) = folder.iterdir()
  (before,) = (RELEASE / 'state').iterdir()
  content = signed(before)
  if name == 'files.':
    content['files']['_CHECKPOINT_METADATA'] = value
  elif name in NOTES:
    content['notes'][name] = value
  else:
    content[name] = value
  sign(step, content)
  try:
    found = checkpoint.find_newest(folder, template)
  except (errors.NoCheckpointError, errors.WorkdirError) as error:
    lines = str(error).splitlines()
  else:
    lines = []
    assert found.step == 40
  assert len(lines) <= 1


@pytest.mark.thorough
def test_a_record_without_its_sizes_is_refused(workdir):
  (step,) = (workdir / 'state').iterdir()
  content = signed(step)
  for record in ({}, {'metrics_size': None}, {'metrics_size': -1}):
    content['notes']['record'] = record
    sign(step, content)
    line = line_of(errors.WorkdirError, metalr_flax.load, workdir)
    assert 'metrics.csv: the checkpoint does not say' in line
  size = (workdir / 'metrics.csv').stat().st_size
  for sizes in (None, {'events': 'x'}):
    record = {'metrics_size': size, 'event_sizes': sizes}
    content['notes']['record'] = record
    sign(step, content)
    before = {p: p.read_bytes() for p in workdir.rglob('*') if p.is_file()}
    with pytest.raises(errors.WorkdirError, match='sizes of the event files'):
      runs.run_here(workdir, num_outer_steps=50)
    for path, data in before.items():
      assert path.read_bytes() == data


@pytest.mark.parametrize(
  'text',
  ['', 'a,b\n1\n', 'a\nx\n', 'a\n1\n', 'a\n\x00\n', 'a\n"' + 'x' * 200000],
)
def test_metrics_of_something_else_are_refused(text, workdir):
  """The first checkpoints of release 0.1 have their size alone."""
  (step,) = (workdir / 'state').iterdir()
  content = signed(step)
  record = {'metrics_size': len(text), 'event_sizes': {}}
  content['notes']['record'] = record
  sign(step, content)
  (workdir / 'metrics.csv').write_text(text)
  line = line_of(errors.WorkdirError, metalr_flax.load, workdir)
  assert 'metrics.csv: ' in line


def test_results_and_cells_nested_too_deeply_are_made_anew(workdir):
  write(workdir / 'results.json', DEEP)
  runs.run_here(workdir, num_outer_steps=40)
  assert json.loads((workdir / 'results.json').read_text())['outer_step'] == 40
