"""Memory of the compiled outer step, exact figures; times are a benchmark's.

The full form, all estimators and models: python benchmarks/meta_gradient.py
"""

import pathlib
import sys

import pytest

pytestmark = pytest.mark.thorough
BENCHMARKS = pathlib.Path(__file__).parents[2] / 'benchmarks'


@pytest.fixture(scope='module')
def sizes():
  sys.path.insert(0, str(BENCHMARKS))
  try:
    import measured_models
    import meta_gradient
  finally:
    sys.path.remove(str(BENCHMARKS))
  model = measured_models.make_models()['mlp']
  found = {}
  for name in ('plain', 'forward', 'forward, no curvature', 'reverse'):
    for length in (8, 512):
      step, state = measured_models.make_step(
        model, *meta_gradient.ESTIMATORS[name], length
      )
      compiled, _ = meta_gradient.compile_step(step, state, model.data)
      found[name, length] = meta_gradient.memory(compiled, model.data)
  return found


@pytest.mark.parametrize('name', ['plain', 'forward', 'forward, no curvature'])
def test_memory_is_flat_in_the_windows_length(sizes, name):
  assert sizes[name, 512] <= 1.05 * sizes[name, 8]


def test_reverse_mode_needs_over_a_hundred_times_more(sizes):
  assert sizes['reverse', 512] > 100 * sizes['forward', 512]


def test_forward_mode_carries_one_more_copy_and_no_second(sizes):
  """State and gradient, with a tangent each, and temporaries."""
  assert sizes['forward', 8] < 3 * sizes['plain', 8]
  assert sizes['forward, no curvature', 8] < 1.6 * sizes['plain', 8]
