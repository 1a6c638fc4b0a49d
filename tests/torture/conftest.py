"""The torture's own fixtures.

All trials with --full, a twentieth of them with --thorough.
"""

import harness
import pytest


@pytest.fixture(scope='session')
def full(request):
  return request.config.getoption('--full')


@pytest.fixture(scope='session')
def share(request, full):
  """How many of `n` trials to do: a hundredth, or a fortieth, unless all are asked for."""
  part = 40 if request.config.getoption('--thorough') else 100
  return lambda n: n if full else max(2, n // part)


@pytest.fixture(scope='session')
def servers(tmp_path_factory):
  folder = tmp_path_factory.mktemp('servers')
  found = harness.Servers(folder, harness.build_shim(folder))
  yield found
  found.close()


@pytest.fixture(scope='session')
def uninterrupted(servers, tmp_path_factory):
  """A run's workdir, to be looked at only, and the log of its operations."""
  folder = tmp_path_factory.mktemp('uninterrupted')
  workdir, log = folder / 'run', folder / 'log'
  trial = servers.run(workdir, fault={'log': str(log), 'pattern': '/*'})
  assert trial.status == 0, trial
  return workdir, log


@pytest.fixture(scope='session')
def whole(uninterrupted):
  """What an uninterrupted run leaves behind."""
  workdir, _ = uninterrupted
  return harness.remains(workdir)


@pytest.fixture(scope='session')
def secs(servers, whole, tmp_path_factory):
  """How long an uninterrupted run takes that compiles nothing any more."""
  return servers.run(tmp_path_factory.mktemp('timed')).secs
