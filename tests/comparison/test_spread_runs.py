"""A comparison on several devices is that on one, in processes of its own."""

import json
import os
import pathlib

import numpy as np
import pytest
import runs

SESSION = pathlib.Path(__file__).with_name('runs_on_eight_devices.py')


def flags(count):
  """The session's own flags of XLA, and so many devices."""
  devices = f'--xla_force_host_platform_device_count={count}'
  return f'{os.environ.get("XLA_FLAGS", "")} {devices}'


@pytest.mark.thorough
def test_the_session_on_eight_devices(request):
  option = request.config.option
  tier = ['--full'] * option.full or ['--thorough'] * option.thorough
  session = ['-m', 'pytest', '-q', '-x', str(SESSION), *tier]
  runs.script(*session, XLA_FLAGS=flags(8))


def read_cells(workdir):
  """What was found in each cell, numbers by name."""
  found = {}
  for path in sorted(workdir.glob('cells/*.json')):
    values = json.loads(path.read_text())
    del values['seconds']
    found[path.stem] = values
  return found


@pytest.mark.full
def test_the_command_on_eight_devices_writes_what_it_does_on_one(tmp_path):
  """Cells of 8, 12 and 4 runs, those of the trainer among them."""
  argv = [
    f'--config={runs.CONFIGS / "compare.py"}',
    '--config.num_seeds=4',
    '--config.num_evaluations=4',
    '--config.only=digits_mlp',
    '--config.methods=constant,self_tuning,trainer,prodigy',
    '--config.problems.digits_mlp.num_steps=32',
    '--config.problems.digits_mlp.model.kwargs.features=(64, 32, 10)',
    "--config.optimizers={'adam': {}}",
    '--config.learning_rates=1e-3,1e-2',
    '--config.initial_learning_rates=1e-4,1e-3,1e-2',
  ]
  cells, said = {}, {}
  for count in (1, 8):
    workdir = tmp_path / str(count)
    script = ['-m', 'metalr_flax.compare', *argv, f'--workdir={workdir}']
    said[count] = runs.script(*script, XLA_FLAGS=flags(count))
    cells[count] = read_cells(workdir)
  assert len(cells[1]) == 4
  assert 'devices:' not in said[1]
  assert 'devices: 8, for the runs of each cell' in said[8]
  assert cells[8].keys() == cells[1].keys()
  for name, one in cells[1].items():
    eight = cells[8][name]
    for key in ('start', 'finals', 'curves', 'learned'):
      numbers = [np.array(x.pop(key), float) for x in (eight, one)]
      np.testing.assert_allclose(*numbers, rtol=1e-5, err_msg=name)
    for key in ('finals', 'curves'):
      numbers = [np.array(x['test'].pop(key)) for x in (eight, one)]
      np.testing.assert_allclose(*numbers, rtol=1e-5, err_msg=name)
    assert eight == one
