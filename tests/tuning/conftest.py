"""Compiles fast: derivatives are the same, whatever machine code they take."""

import jax
import pytest


@pytest.fixture(scope='module', autouse=True)
def _quick_compilation(request):
  """Not where the compiled program itself is looked at."""
  if request.module.__name__ in ('test_memory', 'test_sharded'):
    yield
    return
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)
