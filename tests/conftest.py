"""A strict session: warnings are errors, and no silent broadcasting."""

import hypothesis
import jax
import pytest

jax.config.update('jax_numpy_rank_promotion', 'raise')


def pytest_addoption(parser):
  parser.addoption(
    '--full',
    action='store_true',
    help='all trials of tests/torture, not the tenth that CI does',
  )


def pytest_configure(config):
  count = 2000 if config.getoption('--full') else 200
  hypothesis.settings.register_profile(
    'ours',
    max_examples=count,
    derandomize=True,
    database=None,
    deadline=None,
  )
  hypothesis.settings.load_profile('ours')


@pytest.fixture
def x64():
  """Derivatives are checked in float64."""
  with jax.enable_x64(True):
    yield
