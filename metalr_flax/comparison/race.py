"""Trains a cell: all its learning rates and seeds in one program.

Its runs are trained as the members of a population are: by one program, spread
over all devices. Where these do not divide the runs, the last run is trained
several times and counted once.

Shape legend: E evaluations, T of unseen data beside an objective, R learning
rates, S seeds, M >= R S runs.
"""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metalr_flax import errors
from metalr_flax import interrupts
from metalr_flax.comparison import arena as arena_lib
from metalr_flax.comparison import contestants
from metalr_flax.engine import population
from metalr_flax.engine import sharding
from metalr_flax.trainer import devices

PyTree = Any
DIVERGED = 10.0  # times the initial objective: a final above it
_SAME = 1e-4  # relative: two rates closer than this are one, but for rounding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Runs:
  """All runs of a cell.

  Attributes:
    steps: inner updates done at each evaluation, int [E].
    initial_objective: before the first update, float [S]; the first batch's
      loss where the batches are the objective.
    curves: the objective at each evaluation, float [E, R, S]; of unseen data
      the test loss.
    learned_rates: the learned learning rate there, NaN without one, [E, R, S].
    finals: mean of the last tenth of the curves, inf where not finite, [R, S];
      of unseen data the test loss where the held-out loss was least.
    diverged: whether a run's final is infinite or above ten times its initial
      objective, bool [R, S].
    repeats: of each learning rate the first one that its runs are the runs of,
      its own number where they are no other's, int [R].
    held_out: of unseen data the held-out loss at each evaluation, inf where not
      finite, [E, R, S].
    test_steps: inner updates done where the loss on unseen data is taken,
      beside a training objective, int [T].
    test_losses: that loss, [T, R, S]; None without such data.
  """

  steps: np.ndarray
  initial_objective: np.ndarray
  curves: np.ndarray
  learned_rates: np.ndarray
  finals: np.ndarray
  diverged: np.ndarray
  repeats: np.ndarray
  held_out: np.ndarray | None = None
  test_steps: np.ndarray | None = None
  test_losses: np.ndarray | None = None

  @property
  def stops(self) -> np.ndarray:
    """The evaluation where the held-out loss was least, int [R, S]."""
    assert self.held_out is not None
    return np.argmin(self.held_out, axis=0)


def train_runs(
  contestant: contestants.Contestant,
  arena: arena_lib.Arena,
  learning_rates: tuple[float, ...],
  stop: interrupts.StopRequest,
  weight_decays: tuple[float, ...] = (),
  *,
  note: Callable[[int], None] = lambda done: None,
) -> Runs:
  """Trains a contestant from every learning rate with every seed.

  Args:
    contestant: the method on the problem.
    arena: the problem.
    learning_rates: R of them; a contestant without one has one run a seed.
    stop: true once a signal asked to stop, looked at between evaluations.
    weight_decays: one beside each learning rate, or none.
    note: told after each evaluation how many updates are done.

  Raises:
    Interrupted: where it did.
  """
  initial = jax.jit(jax.vmap(_make_measure(arena)))(arena.initial)
  grid = max(1, len(learning_rates)), len(initial)
  count, numbers = math.prod(grid), _number_runs(grid)
  state = _begin(contestant, arena, learning_rates, weight_decays, numbers)
  layout = devices.lay_out_members((), len(numbers[0]))
  state = layout.place(state) if layout else state
  advance = jax.jit(
    _make_advance(contestant, arena), **sharding.options(layout, state)
  )
  measure = _make_test_measure(contestant, arena)
  done, rows, tests = 0, [], {}

  def gather(row: PyTree) -> list[np.ndarray]:
    return [x[:count].reshape(*grid, *x.shape[1:]) for x in jax.device_get(row)]

  _, first = advance(state, np.int32(1))
  repeats = _find_repeats(gather(first)[1])
  # A step of several updates ends at the last one that is due.
  ends = [point // contestant.updates for point in arena.points]
  for point, end in zip(arena.points, ends, strict=True):
    if stop:
      raise errors.Interrupted(f'{stop.name}')
    state, row = advance(state, np.int32(end - done))
    rows.append(gather(row))
    done = end
    if measure and point in arena.test_points:
      (tests[done * contestant.updates],) = gather([measure(state)])
    note(done * contestant.updates)
  curves, learned = map(np.stack, zip(*rows, strict=True))
  steps = np.array(ends) * contestant.updates
  make = _make_runs if arena.unseen is None else _stop_early
  runs = make(steps, jax.device_get(initial), curves, learned, repeats)
  if not tests:
    return runs
  return dataclasses.replace(
    runs,
    test_steps=np.array(list(tests)),
    test_losses=np.stack(list(tests.values())),
  )


def _find_repeats(learned: np.ndarray) -> np.ndarray:
  """Which starts a method makes the same run of, as `Runs` has them.

  A method that learns its rate may begin at one of its own, whatever it is
  given; so the rates after the first step tell, where later ones may be apart
  by what has become of a last bit. A method that learns none has NaN there,
  which is nothing else's.

  Args:
    learned: the learned learning rate after one step, [R, S].
  """
  same = np.all(np.isclose(learned[:, None], learned, _SAME, 0.0), axis=-1)
  np.fill_diagonal(same, True)
  return np.argmax(same, axis=1)


def _number_runs(grid: tuple[int, int]) -> tuple[np.ndarray, ...]:
  """Of each run the numbers of its rate and its seed, int [M] each."""
  count = math.prod(grid)
  spread = count + -count % jax.device_count()
  return np.unravel_index(np.minimum(np.arange(spread), count - 1), grid)


def _begin(
  contestant: contestants.Contestant,
  arena: arena_lib.Arena,
  learning_rates: tuple[float, ...],
  weight_decays: tuple[float, ...],
  numbers: tuple[np.ndarray, ...],
) -> PyTree:
  """The state of all runs before the first update, [M, ...].

  Args:
    contestant: the method.
    arena: the problem.
    learning_rates: R of them; () for a method without.
    weight_decays: the same of the decay.
    numbers: of each run, those of its rate and its seed, int [M] each.
  """
  rate, seed = numbers
  rates = jnp.asarray(learning_rates or (jnp.nan,), jnp.float32)
  decays = jnp.asarray(weight_decays, jnp.float32) if weight_decays else None

  @jax.jit
  def begin(settings: PyTree, initial: arena_lib.Snapshot) -> PyTree:
    rates, decays = population.pick(settings, rate)
    own = population.pick(initial, seed)
    return jax.vmap(contestant.init)(rates, own, decays)

  return begin((rates, decays), arena.initial)


def final_of(curves: np.ndarray) -> np.ndarray:
  """The mean of the last tenth of [E, R, S], inf where not finite, [R, S]."""
  last = curves[-max(1, len(curves) // 10) :]
  finals = np.mean(last, axis=0, dtype=np.float64)
  return np.where(np.isfinite(finals), finals, np.inf)


def _make_runs(
  steps: np.ndarray,
  initial: np.ndarray,
  curves: np.ndarray,
  learned: np.ndarray,
  repeats: np.ndarray,
) -> Runs:
  finals = final_of(curves)
  return Runs(
    steps=steps,
    initial_objective=initial,
    curves=curves,
    learned_rates=learned,
    finals=finals,
    diverged=~(finals <= DIVERGED * initial),
    repeats=repeats,
  )


def _stop_early(
  steps: np.ndarray,
  initial: np.ndarray,
  losses: np.ndarray,
  learned: np.ndarray,
  repeats: np.ndarray,
) -> Runs:
  """Runs on unseen data, each scored where its held-out loss was least.

  Args:
    steps: as `Runs` has them.
    initial: held-out and test loss before the first update, [S, 2].
    losses: the same at each evaluation, [E, R, S, 2].
    learned: as `Runs` has them.
    repeats: as `Runs` has them.
  """
  held_out, test = np.moveaxis(losses.astype(np.float64), -1, 0)
  held_out = np.where(np.isfinite(held_out), held_out, np.inf)
  runs = _make_runs(steps, initial[:, 1], test, learned, repeats)
  at = np.argmin(held_out, axis=0)
  finals = np.take_along_axis(test, at[None], 0)[0]
  finals = np.where(np.isfinite(finals), finals, np.inf)
  return dataclasses.replace(
    runs,
    finals=finals,
    diverged=~(finals <= DIVERGED * initial[:, 1]),
    held_out=held_out,
  )


def _make_measure(
  arena: arena_lib.Arena,
) -> Callable[[arena_lib.Snapshot], jax.Array]:
  """The objective of a snapshot: the next batch's loss where there is none."""

  def measure_batch(snapshot: arena_lib.Snapshot) -> jax.Array:
    _, batch = arena.next_batch(snapshot.data_state)
    return arena.loss_fn(snapshot.params, snapshot.model_state, batch)[0]

  return arena.objective or measure_batch


def _make_advance(
  contestant: contestants.Contestant, arena: arena_lib.Arena
) -> Callable:
  """`(state, count) -> (state, (objective, learning_rate))` of all runs.

  The count is traced: stretches of all lengths are one executable.
  """

  def advance(state: PyTree, count: jax.Array) -> tuple[PyTree, Any]:
    def body(_: Any, carry: tuple[PyTree, jax.Array]) -> Any:
      state, total = carry
      state, loss = jax.vmap(contestant.step)(state)
      return state, total + loss

    shape = jax.eval_shape(jax.vmap(contestant.step), state)[1].shape
    zeros = jnp.zeros(shape)
    state, total = jax.lax.fori_loop(0, count, body, (state, zeros))
    snapshot, learned = jax.vmap(contestant.view)(state)
    if arena.objective is None:
      return state, (total / count, learned)
    return state, (jax.vmap(arena.objective)(snapshot), learned)

  return advance


def _make_test_measure(
  contestant: contestants.Contestant, arena: arena_lib.Arena
) -> Callable[[PyTree], jax.Array] | None:
  """`state -> losses on unseen data` of all runs; None without such data.

  A program of its own: fewer evaluations need it than the objective.
  """
  test_loss = arena.test_loss
  if test_loss is None:
    return None
  return jax.jit(jax.vmap(lambda state: test_loss(contestant.view(state)[0])))
