"""Benchmarks run: their quick form, on what every machine has."""

import pytest
import runs

pytestmark = pytest.mark.thorough


@pytest.mark.parametrize('name', ['scaling', 'large_model'])
def test_compiled_programs_keep_the_rules(name):
  """The script's own status says so."""
  runs.script(f'benchmarks/{name}.py', '--quick')


def test_a_device_is_measured_with_each_estimator():
  """Time and memory over plain training are numbers."""
  printed = runs.script(
    'benchmarks/accelerator.py', '--quick', '--models', 'mlp'
  )
  device, head, row = (
    line for line in printed.splitlines() if line[:3] in ('cpu', '| m')
  )
  assert 'cpu, jax' in device
  names = [cell.strip() for cell in head.split('|')[5:-1]]
  assert names == ['forward', 'forward, no curvature', 'reverse', 'self_tuning']
  for cell in row.split('|')[5:-1]:
    time, memory = map(float, cell.split('/'))
    assert time > 0
    assert memory > 1


@pytest.mark.full
def test_members_are_compared_with_their_runs():
  printed = runs.script('benchmarks/population.py', '--quick')
  rows = [line for line in printed.splitlines() if '| 4 |' in line]
  assert [row.split('|')[1].strip() for row in rows] == [
    'default, the whole command',
    'default, the training loop',
  ]
