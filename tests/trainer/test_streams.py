"""Streams: the same batches and bits however a run is cut."""

import itertools
import sys

import numpy as np
import pytest
import runs
import streams_code
import tiers

from metalr_flax import errors
from metalr_flax.comparison import arena
from metalr_flax.config import flags
from metalr_flax.trainer import build
from metalr_flax.trainer import build_named
from metalr_flax.trainer import cursor
from metalr_flax.trainer import finite_difference
from metalr_flax.workdir import folder
from metalr_flax.workdir import manifest
from metalr_flax.workdir import metrics_csv

sys.path.append(str(runs.ROOT / 'benchmarks'))
import streaming

K = 4
FIELDS = {
  'model__name': 'vector',
  'model__kwargs': {'size': 2},
  'task__name': 'streams_code:Planes',
  'task__batch_size': 8,
  'task__kwargs': {},
  'inner__learning_rate': 0.003,
  'meta__unroll_length': K,
  'num_outer_steps': 30,
  'eval_every': 10,
  'checkpoint_every': 10,
}


def stream(name, **fields):
  return {**FIELDS, 'task__name': f'streams_code:{name}', **fields}


def resolved(**fields):
  argv = runs.command('unused', **{**FIELDS, **fields})
  return flags.parse('metalr_flax.audit', argv, '').config


def marks(task, count):
  """The mean mark of each of the first windows."""
  batches = itertools.islice(iter(task.batches('train', 0)), count * K)
  values = [batch['y'][0] for batch in batches]
  return np.mean(np.reshape(np.asarray(values, np.float32), (-1, K)), axis=1)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('whole')
  runs.run_here(workdir, **FIELDS)
  return workdir


def test_a_run_trains_on_the_streams_batches_in_order(whole):
  columns = metrics_csv.read(whole / folder.METRICS)
  expected = marks(streams_code.Planes(8), 30)
  np.testing.assert_allclose(columns['train/mark'], expected, rtol=1e-5)
  assert columns['train/loss'][-1] < columns['train/loss'][0]
  assert columns['eval/loss'][-1] > 0


def test_resumed_in_an_epoch_it_is_the_same_run(whole, tmp_path):
  """13 steps are 52 batches: 8 epochs of 6 batches, and a part of one."""
  runs.run_here(tmp_path, **{**FIELDS, 'num_outer_steps': 13})
  notes = manifest.verify(tmp_path / folder.STATE / '13')
  states = {k: v['state']['json'] for k, v in notes['record']['stream'].items()}
  assert states == {'train': {'next_index': 52}, 'meta': {'next_index': 13}}
  runs.run_here(tmp_path, **FIELDS)
  runs.assert_same_run(whole, tmp_path)


@pytest.mark.thorough
def test_a_buffer_too_small_for_two_outer_steps_changes_no_bit(whole, tmp_path):
  runs.run_here(tmp_path, **stream('Planes', task__kwargs={'buffer_bytes': 1}))
  runs.assert_same_run(whole, tmp_path)


@tiers.parametrize('name', ['Numbers', 'Counts'], [])
def test_iterators_of_other_kinds_resume(name, tmp_path, capsys):
  fields = stream(name, num_outer_steps=9, inner__learning_rate=1e-5)
  runs.run_here(tmp_path / 'whole', **fields)
  skips = f'{name} have no state to save: a resumed run reads them again'
  assert (skips in capsys.readouterr().out) == (name == 'Numbers')
  for count in (3, 9):
    runs.run_here(tmp_path / 'cut', **{**fields, 'num_outer_steps': count})
  runs.assert_same_run(tmp_path / 'whole', tmp_path / 'cut')


def _faulty(kind, monkeypatch):
  monkeypatch.setattr(streams_code.Faulty, 'kind', kind)
  return stream('Faulty', task__kwargs={'at': 30}, num_outer_steps=12)


@pytest.mark.parametrize(
  ('kind', 'part'),
  [
    ('end', 'they end after 30 more'),
    ('error', "KeyError: 'lost' (streams_code.py:"),
    ('shape', 'x is float32[7, 2] and was float32[8, 2]'),
    ('dtype', 'x is int32[8, 2] and was float32[8, 2]'),
    ('text', 'y holds text'),
    ('object', 'y holds objects (NoneType)'),
    ('more', 'a batch has other arrays'),
  ],
)
def test_a_batch_unlike_the_first_is_named(kind, part, monkeypatch):
  config = resolved(**_faulty(kind, monkeypatch))
  streams = build.build(config).streams
  with pytest.raises(errors.DataError) as caught:
    streams.first(12)
  assert caught.value.status == 5
  start = 'task.name=streams_code:Faulty: its train batches: '
  assert str(caught.value).startswith(f'{start}{part}')


@pytest.mark.thorough
def test_a_stream_that_ends_in_the_middle(tmp_path, monkeypatch):
  """All that was trained is saved; mended, the same command goes on."""
  with pytest.raises(
    errors.DataError, match='they end after 30 more'
  ) as caught:
    runs.run_here(tmp_path, **_faulty('end', monkeypatch))
  steps = [int(p.name) for p in (tmp_path / folder.STATE).iterdir()]
  assert 0 < max(steps) <= 30 // K
  saved = f'the state of outer step {max(steps)} is saved'
  assert saved in str(caught.value)
  assert len(runs.rows(tmp_path)) == max(steps)
  runs.run_here(tmp_path, **_faulty('fine', monkeypatch))
  runs.run_here(tmp_path / 'whole', **_faulty('fine', monkeypatch))
  runs.assert_same_run(tmp_path, tmp_path / 'whole')


def test_a_run_that_diverges_keeps_its_place_in_the_stream(
  tmp_path, monkeypatch
):
  """In the middle of a chunk, while later ones are read."""
  fields = _faulty('nan', monkeypatch)
  with pytest.raises(errors.DivergedError, match=f'outer step {30 // K + 1}:'):
    runs.run_here(tmp_path, **fields)
  notes = manifest.verify(tmp_path / folder.STATE / str(30 // K))
  task = streams_code.Faulty(8, at=30)
  for split, drawn in (('train', 28), ('meta', 7)):
    place = cursor.Cursor(task, split, 0)
    place.seek(notes['record']['stream'][split])
    (expected,) = itertools.islice(task.batches(split, 0), drawn, drawn + 1)
    found = place.next()['x']
    np.testing.assert_array_equal(found, expected['x'].astype(np.float32))


@pytest.mark.thorough
def test_an_audit_takes_the_streams_first_batches():
  config = resolved(task__name='streams_code:Numbers')
  assert all(row.agrees for row in finite_difference.audit(config, 2))


def test_a_comparison_refuses_a_stream():
  argv = [f'--config={runs.CONFIGS / "compare.py"}']
  config = runs.parse_comparison(*argv)
  name = next(iter(config['problems']))
  task = config['problems'][name]['task']
  task |= {'name': 'streams_code:Planes', 'kwargs': {}, 'path': ''}
  with pytest.raises(errors.ConfigError, match='is a stream; a comparison'):
    arena.build_arena(config, name)


def test_a_stream_has_no_next():
  task = streams_code.Planes(8)
  with pytest.raises(TypeError, match='take its batches from batches'):
    task.next(None)
  assert build_named.has_next_meta(task)


@pytest.mark.full
def test_killed_at_random_it_ends_in_the_same_bits(tmp_path):
  """The quick form of `benchmarks/streaming.py --only kills`, of 20 kills."""
  found = streaming.measure_kills(tmp_path, quick=True)
  assert found['kills'] == 3
  assert found['identical_runs'] == found['runs'] >= 1
