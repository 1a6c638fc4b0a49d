"""The training runs of held_out.py: ours, and all settings of the searches.

A setting is a rate, a decay and whether there is a cosine. Runs of one task
with one optimizer are trained side by side.

Shape legend: R settings, S seeds.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import held_out_tasks as tasks_lib
import jax
import jax.numpy as jnp
import numpy as np
import optax

import metalr_flax

BATCH = 32
EVALUATIONS = 40
HELD_OUT_EVERY = 4
DRAWS = 30
AT_ONCE = 10  # settings trained side by side; more do not fit the cache
COST = 1 + 1 / HELD_OUT_EVERY
STARTS = ((1e-3, 0.1), (1e-3, 1e-4))
RATES = {
  'adamw': (1e-4, 5e-4, 2e-3, 5e-3, 2e-2),
  'sgd': (1e-3, 5e-3, 2e-2, 1e-1, 5e-1),
  'rmsprop': (1e-4, 5e-4, 2e-3, 5e-3, 2e-2),
}
DECAYS = {
  'adamw': (0.0, 1e-3, 1e-2, 1e-1, 0.3, 1.0),
  'sgd': (0.0, 1e-4, 1e-3, 1e-2, 3e-2, 1e-1),
  'rmsprop': (0.0, 1e-3, 1e-2, 1e-1, 0.3, 1.0),
}


def inner(
  name: str,
) -> Callable[..., optax.GradientTransformation]:
  """The optimizer of a rate and a decay that is decoupled."""
  if name == 'adamw':
    return lambda learning_rate, weight_decay: optax.adamw(
      learning_rate, weight_decay=weight_decay
    )
  first = optax.trace(0.9) if name == 'sgd' else optax.scale_by_rms()
  return lambda learning_rate, weight_decay: optax.chain(
    first,
    optax.add_decayed_weights(weight_decay),
    optax.scale_by_learning_rate(learning_rate),
  )


def make_constant(
  name: str, steps: int
) -> Callable[[Any], optax.GradientTransformationExtraArgs]:
  """What a setting of a search is trained with."""

  def make(setting: Any) -> optax.GradientTransformationExtraArgs:
    rate, decay, is_cosine = setting

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
      falling = 0.5 * (1 + jnp.cos(jnp.pi * step / steps))
      return rate * jnp.where(is_cosine, falling, 1)

    return optax.with_extra_args_support(inner(name)(schedule, decay))

  return make


def make_tuned(
  name: str, learned: list[str]
) -> Callable[[Any], optax.GradientTransformationExtraArgs]:
  """What learns some hyperparameters from where a setting starts them."""

  def make(setting: Any) -> optax.GradientTransformationExtraArgs:
    rate, decay, _ = setting
    inject = optax.inject_hyperparams(inner(name))
    return optax.with_extra_args_support(
      metalr_flax.self_tuning(
        inject(learning_rate=rate, weight_decay=decay), learned=learned
      )
    )

  return make


@dataclasses.dataclass(frozen=True)
class Bench:
  """A task's data and first parameters, of each seed, [S, ...].

  Attributes:
    task: what is learned.
    seeds: how many.
    steps: updates of a run.
    sets: training, held-out and test examples.
    params: the first ones.
  """

  task: tasks_lib.Task
  seeds: int
  steps: int
  sets: Any
  params: Any


def build(task: tasks_lib.Task, seeds: int, steps: int) -> Bench:
  """A task's data and first parameters for the seeds 0, 1, ..."""
  stack = lambda *arrays: np.stack(arrays)
  sets = jax.tree.map(
    stack, *[tasks_lib.make_data(task, s) for s in range(seeds)]
  )
  params = jax.tree.map(
    stack, *[tasks_lib.init_params(task, s) for s in range(seeds)]
  )
  return Bench(task, seeds, steps, sets, params)


def simulate(
  bench: Bench,
  make: Callable[[Any], optax.GradientTransformationExtraArgs],
  settings: np.ndarray,
  *,
  held_out: bool = False,
) -> np.ndarray:
  """Trains with each setting from each seed.

  Args:
    bench: the task.
    make: the optimizer of a setting.
    settings: rate, decay and whether there is a cosine, [R, S, 3].
    held_out: whether the optimizer is given held-out gradients.

  Returns:
    Held-out and test losses along the runs, [R, S, EVALUATIONS, 2].
  """
  run = make_run(bench, make, held_out)
  seeds = jnp.arange(bench.seeds)
  of_seeds = lambda setting: jax.vmap(run)(
    setting, bench.sets, bench.params, seeds
  )
  mapped = lambda rows: jax.lax.map(
    of_seeds, rows, batch_size=min(AT_ONCE, len(settings))
  )
  return np.asarray(jax.jit(mapped)(jnp.asarray(settings)), np.float64)


def make_run(
  bench: Bench,
  make: Callable[[Any], optax.GradientTransformationExtraArgs],
  held_out: bool,
) -> Callable[..., jax.Array]:
  """The run of one setting from one seed."""
  loss = tasks_lib.make_loss(bench.task)
  length = bench.steps // EVALUATIONS

  def run(setting: Any, sets: Any, params: Any, seed: Any) -> jax.Array:
    tx = make(setting)
    step = make_step(loss, tx, sets, jax.random.key(seed), held_out)

    def measure(params: Any) -> jax.Array:
      return jnp.stack([loss(params, examples) for examples in sets[1:]])

    return train_and_measure(step, measure, (params, tx.init(params)), length)

  return run


def train_and_measure(
  step: Callable[[Any, jax.Array], tuple[Any, None]],
  measure: Callable[[Any], jax.Array],
  carry: Any,
  length: int,
) -> jax.Array:
  """What is measured of the parameters after every `length` updates, [E, ...].

  Args:
    step: `((params, opt_state), number) -> ` the same after an update.
    measure: of parameters.
    carry: before the first update.
    length: updates between two measurements.
  """

  def block(carry: Any, number: jax.Array) -> tuple[Any, jax.Array]:
    numbers = number * length + jnp.arange(length)
    carry, _ = jax.lax.scan(step, carry, numbers)
    return carry, measure(carry[0])

  return jax.lax.scan(block, carry, jnp.arange(EVALUATIONS))[1]


def make_step(
  loss: Callable[[Any, Any], jax.Array],
  tx: optax.GradientTransformationExtraArgs,
  sets: Any,
  key: jax.Array,
  held_out: bool,
) -> Callable[[Any, jax.Array], tuple[Any, None]]:
  """An update, as a user would write it.

  Args:
    loss: of parameters on a batch.
    tx: the optimizer.
    sets: training, held-out and test examples.
    key: of the run's batches.
    held_out: whether every fourth update is given a held-out gradient.
  """

  def step(carry: Any, number: jax.Array) -> tuple[Any, None]:
    params, state = carry
    keys = jax.random.split(jax.random.fold_in(key, number))
    grads = jax.grad(loss)(params, draw(keys[0], sets[0]))
    plain = lambda: tx.update(grads, state, params)

    def helped() -> tuple[Any, Any]:
      meta_grads = jax.grad(loss)(params, draw(keys[1], sets[1]))
      return tx.update(grads, state, params, meta_grads=meta_grads)

    if held_out:
      turn = number % HELD_OUT_EVERY == 0
      updates, state = jax.lax.cond(turn, helped, plain)
    else:
      updates, state = plain()
    return (optax.apply_updates(params, updates), state), None

  return step


def draw(key: jax.Array, examples: Any) -> Any:
  """A batch, drawn with replacement."""
  rows = jax.random.randint(key, (BATCH,), 0, len(examples[1]))
  return jax.tree.map(lambda a: a[rows], examples)


def grid_of(name: str, seeds: int) -> np.ndarray:
  """The grid's rates and decays, the same for each seed, [30, S, 2]."""
  pairs = [[r, d] for r in RATES[name] for d in DECAYS[name]]
  return np.repeat(np.array(pairs)[:, None], seeds, 1)


def draws_of(cell: str, name: str, seeds: int) -> np.ndarray:
  """Rates and decays, log-uniform over the grid's box, [30, S, 2].

  The box begins at the least decay above 0. Each seed of each cell has draws
  of its own.
  """
  rng = np.random.default_rng(list(cell.encode()))
  axes = RATES[name], [d for d in DECAYS[name] if d > 0]
  low, high = (np.log([f(axis) for axis in axes]) for f in (min, max))
  return np.exp(rng.uniform(low, high, (DRAWS, seeds, 2)))


def with_flag(pairs: np.ndarray, flag: float) -> np.ndarray:
  """Settings: pairs with or without a cosine."""
  return np.concatenate([pairs, np.full_like(pairs[..., :1], flag)], -1)


def train_all(bench: Bench, name: str, cell: str) -> dict[str, np.ndarray]:
  """The losses of all runs by method, each [R, S, EVALUATIONS, 2]."""
  grid = grid_of(name, bench.seeds)
  draws = draws_of(cell, name, bench.seeds)
  flags = zip((grid, grid, draws), (0, 1, 0), strict=True)
  settings = np.concatenate([with_flag(p, f) for p, f in flags])
  losses = simulate(bench, make_constant(name, bench.steps), settings)
  starts = np.repeat(np.array(STARTS)[:, None], bench.seeds, 1)
  begin = with_flag(starts, 0)
  both = ['learning_rate', 'weight_decay']
  return {
    **dict(zip(('grid', 'cosine', 'random'), np.split(losses, 3), strict=True)),
    'ours': simulate(bench, make_tuned(name, both), begin, held_out=True),
    'training': simulate(bench, make_tuned(name, both[:1]), begin),
  }
