"""Benchmarks run: their quick form, on what every machine has."""

import subprocess
import sys

import pytest
import runs

pytestmark = pytest.mark.thorough


def run(*argv):
  """What a benchmark prints."""
  done = subprocess.run(
    [sys.executable, *argv],
    env=runs.environment(),
    cwd=runs.ROOT,
    capture_output=True,
    text=True,
    timeout=runs.LIMIT,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


def test_a_device_is_measured_with_each_estimator():
  """Time and memory over plain training are numbers; plain is 1 by itself."""
  printed = run('benchmarks/accelerator.py', '--quick', '--models', 'mlp')
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
