"""Runs on several devices, in a process that has eight of them.

JAX counts its devices once, so `on_eight_devices.py` is a session of its own.
"""

import os
import pathlib

import runs

SESSION = pathlib.Path(__file__).with_name('on_eight_devices.py')


def test_the_session_on_eight_devices(request):
  option = request.config.option
  tier = ['--full'] * option.full or ['--thorough'] * option.thorough
  devices = '--xla_force_host_platform_device_count=8'
  flags = f'{os.environ.get("XLA_FLAGS", "")} {devices}'
  session = ['-m', 'pytest', '-q', '-x', str(SESSION), *tier]
  runs.script(*session, XLA_FLAGS=flags)
