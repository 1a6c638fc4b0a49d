"""Runs on several devices, in a process that has eight of them.

JAX counts its devices once, so `on_eight_devices.py` is a session of its own.
"""

import pathlib
import subprocess
import sys

import pytest
import runs

SESSION = pathlib.Path(__file__).with_name('on_eight_devices.py')


def test_the_session_on_eight_devices(request):
  option = request.config.option
  tier = ['--full'] * option.full or ['--thorough'] * option.thorough
  devices = '--xla_force_host_platform_device_count=8'
  done = subprocess.run(
    [sys.executable, '-m', 'pytest', '-q', '-x', str(SESSION), *tier],
    env={**runs.environment(), 'XLA_FLAGS': devices},
    cwd=runs.ROOT,
    capture_output=True,
    text=True,
    timeout=runs.LIMIT,
    check=False,
  )
  assert done.returncode == 0, done.stdout[-6000:]


@pytest.mark.thorough
@pytest.mark.parametrize('benchmark', ['scaling', 'large_model'])
def test_a_benchmark_of_compiled_programs_keeps_its_rules(benchmark):
  done = subprocess.run(
    [sys.executable, f'benchmarks/{benchmark}.py', '--quick'],
    env=runs.environment(),
    cwd=runs.ROOT,
    capture_output=True,
    text=True,
    timeout=runs.LIMIT,
    check=False,
  )
  assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
