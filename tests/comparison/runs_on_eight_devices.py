"""A comparison's runs on eight devices; `test_spread_runs.py` starts this."""

import jax
import numpy as np
import runs
import tiers

from metalr_flax.comparison import arena as arena_lib
from metalr_flax.comparison import cells
from metalr_flax.comparison import contestants
from metalr_flax.comparison import race
from metalr_flax.engine import population

RATES, STEPS = (1e-3, 1e-2), 16


def build(seeds):
  """A cell of two rates, its problem and its method."""
  config = runs.parse_comparison(
    f'--config={runs.CONFIGS / "compare.py"}',
    f'--config.num_seeds={seeds}',
    '--config.num_evaluations=2',
    '--config.only=digits_mlp',
    '--config.methods=constant',
    f'--config.problems.digits_mlp.num_steps={STEPS}',
    '--config.problems.digits_mlp.model.kwargs.features=(64, 10)',
    "--config.optimizers={'adam': {}}",
    f'--config.learning_rates={",".join(map(str, RATES))}',
  )
  (cell,) = cells.list_cells(config, selected=True)
  arena = arena_lib.build_arena(config, cell.problem)
  return cell, arena, contestants.build_contestant(config, cell, arena)


def train_alone(contestant, arena, rate, seed):
  """The objective after the last step of a run by itself."""
  state = contestant.init(rate, population.pick(arena.initial, seed))
  step = jax.jit(contestant.step)
  for _ in range(STEPS):
    state, _ = step(state)
  snapshot, _ = contestant.view(state)
  return arena.objective(snapshot)


def most_devices():
  """Of how many devices each holds a part of an array of its own."""
  return max(
    len({repr(shard.index) for shard in array.addressable_shards})
    for array in jax.live_arrays()
  )


# Of 2 x 3 runs the last one is there three times.
@tiers.parametrize('seeds', [4, 3], [4])
def test_each_run_is_the_one_alone(seeds):
  with jax.threefry_partitionable(True):
    cell, arena, contestant = build(seeds)
    spread = []
    found = race.train_runs(
      contestant,
      arena,
      cell.learning_rates,
      None,
      note=lambda _: spread.append(most_devices()),
    )
    expected = train_alone(contestant, arena, RATES[1], seeds - 1)
  assert spread == [8, 8]
  assert found.curves.shape == (2, 2, seeds)
  np.testing.assert_allclose(found.curves[-1, 1, -1], expected, rtol=1e-5)
