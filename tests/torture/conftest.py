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
  """How many of `n` trials to do: a hundredth, unless more were asked for."""
  part = 20 if request.config.getoption('--thorough') else 100
  return lambda n: n if full else max(2, n // part)


@pytest.fixture(scope='session')
def servers(tmp_path_factory):
  folder = tmp_path_factory.mktemp('servers')
  found = harness.Servers(folder, harness.build_shim(folder))
  yield found
  found.close()


@pytest.fixture(scope='session')
def whole(servers, tmp_path_factory):
  """What an uninterrupted run leaves behind, and how long it takes."""
  workdir = tmp_path_factory.mktemp('whole')
  trial = servers.run(workdir)
  assert trial.status == 0, trial
  return {**harness.remains(workdir)}


@pytest.fixture(scope='session')
def secs(servers, tmp_path_factory):
  """How long an uninterrupted run takes."""
  return servers.run(tmp_path_factory.mktemp('timed')).secs
