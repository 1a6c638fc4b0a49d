"""A strict session: warnings are errors, and no silent broadcasting."""

import jax
import pytest

jax.config.update('jax_numpy_rank_promotion', 'raise')


def pytest_addoption(parser):
  parser.addoption(
    '--full',
    action='store_true',
    help='all trials of tests/torture, not the tenth that CI does',
  )


@pytest.fixture
def x64():
  """Derivatives are checked in float64."""
  with jax.enable_x64(True):
    yield
