"""A dry run does all that a run does, and keeps nothing."""

import json
import pathlib
import re
import tempfile

import pytest
import runs

from metalr_flax import errors
from metalr_flax.tasks import linear_regression
from metalr_flax.trainer import rehearsal
from metalr_flax.workdir import arrays
from metalr_flax.workdir import folder


@pytest.fixture
def temporary(monkeypatch, tmp_path):
  """Where temporary folders go."""
  path = tmp_path / 'temporary'
  path.mkdir()
  monkeypatch.setattr(tempfile, 'tempdir', str(path))
  return path


def contents(path):
  return {p: p.stat().st_mtime_ns for p in path.rglob('*')}


def test_it_says_that_all_is_well_and_keeps_nothing(
  temporary, tmp_path, capsys, monkeypatch
):
  done = []

  def note(name, function):
    def call(*args, **kwargs):
      done.append(name)
      return function(*args, **kwargs)

    return call

  for name in ('save', 'restore'):
    monkeypatch.setattr(arrays, name, note(name, getattr(arrays, name)))
  workdir = tmp_path / 'run'
  capsys.readouterr()
  runs.run_here(workdir, dry_run=True, best_metric='eval/loss')
  (line,) = capsys.readouterr().out.splitlines()
  pattern = r'dry run: all is well, and nothing was kept\. An outer step takes '
  assert re.match(pattern, line)
  assert 'for 2000 and 5 of them' in line
  assert done.count('restore') >= 1
  assert done.count('save') >= 2
  assert not workdir.exists()
  assert not [*temporary.iterdir()]


@pytest.mark.thorough
def test_a_run_that_is_there_stays_as_it_is(temporary, tmp_path, capsys):
  workdir = tmp_path / 'run'
  runs.run_here(workdir, num_outer_steps=5)
  before = contents(workdir)
  runs.run_here(workdir, dry_run=True)
  assert contents(workdir) == before
  assert json.loads((workdir / folder.CONFIG).read_text())['dry_run'] is False
  assert 'all is well' in capsys.readouterr().out


@pytest.mark.thorough
def test_the_steps_are_those_of_the_run(temporary, tmp_path, monkeypatch):
  """In a folder that is looked at before it goes."""
  kept = {}

  def keep(config, step, evaluation):
    kept['secs'] = step, evaluation
    return ''

  class Kept(tempfile.TemporaryDirectory):
    def cleanup(self):
      kept['rows'] = runs.rows(pathlib.Path(self.name) / 'run')
      super().cleanup()

    def __exit__(self, *error):
      self.cleanup()

  monkeypatch.setattr(rehearsal, '_summary', keep)
  monkeypatch.setattr(tempfile, 'TemporaryDirectory', Kept)
  runs.run_here(tmp_path / 'run', dry_run=True)
  runs.run_here(tmp_path / 'whole', num_outer_steps=2, eval_every=1)
  assert kept['rows'] == runs.rows(tmp_path / 'whole')
  assert 0 < kept['secs'][0] < 1


class Overflowing(linear_regression.LinearRegression):
  """The reference task with a loss beyond every number."""

  def loss(self, model, batch):
    loss, metrics = super().loss(model, batch)
    return loss * float('inf'), metrics


@pytest.mark.thorough
def test_a_run_that_diverges_says_so_and_of_no_checkpoint(temporary, tmp_path):
  with pytest.raises(errors.DivergedError) as error:
    runs.run_here(
      tmp_path / 'run',
      dry_run=True,
      task__name='test_dry_run:Overflowing',
    )
  assert 'outer step 1: not finite in' in str(error.value)
  assert 'checkpoint' not in str(error.value)
  assert not [*temporary.iterdir()]


def test_a_signal_ends_it(temporary, tmp_path):
  class Stopped:
    name = 'SIGTERM'

    def __bool__(self):
      return True

  with pytest.raises(errors.Interrupted) as error:
    runs.run_here(tmp_path / 'run', dry_run=True, stop=Stopped())
  assert str(error.value) == 'SIGTERM in a dry run, of which nothing is kept'
  assert not [*temporary.iterdir()]
