"""Trains all runs of a cell side by side.

Shape legend: R rates, S seeds.
"""

from collections.abc import Callable
import functools
from typing import Any

import cells
import jax
import jax.numpy as jnp
import methods as methods_lib
import numpy as np
import optax
from problem import Problem
import problems as problems_lib

AT_ONCE = 65  # runs side by side; the next ones follow when these end
# Of small products XLA's full optimization makes long programs: three times as
# long to compile, and no faster.
COMPILER = {'xla_backend_optimization_level': 1}


def train(cell: cells.Cell, seeds: range) -> dict[str, np.ndarray]:
  """Trains with each rate from each seed.

  Args:
    cell: what to train.
    seeds: numbers of which params and batches are made, whatever the method.

  Returns:
    By the names of `cells.PER_SEED`, arrays [R, S]: the objective of the first
    params; that at the end, or in the mean over the second half of a run whose
    problem moves; the loss on unseen data at the end, NaN without any; and
    whether the published level was reached, 1 or 0.
  """
  method = methods_lib.METHODS[cell.method]
  runs = _runs(cell.problem, cell.optimizer, method.make)
  settings = [
    [rate] * bool(method.rates)
    + [method.schedule] * (method.schedule is not None)
    for rate in cell.rates
  ]
  return jax.device_get(
    runs(
      np.array(settings, np.float32),
      np.arange(seeds.start, seeds.stop),
      np.int32(cell.length),
    )
  )


@functools.lru_cache(maxsize=4)  # the methods of one problem and optimizer
def _runs(
  problem: str, optimizer: str, make: Callable[..., methods_lib.Made]
) -> Callable[..., Any]:
  """Compiles once for all rates, schedules, seeds and lengths."""
  inner = methods_lib.Inner(methods_lib.OPTIMIZERS[optimizer])
  run = make_run(problems_lib.build(problem), inner, make)

  def runs(settings: Any, seeds: Any, length: Any) -> dict[str, jax.Array]:
    of_seeds = jax.vmap(run, (None, 0, None))
    of_settings = lambda setting: of_seeds(setting, seeds, length)
    at_once = max(1, AT_ONCE // len(seeds))
    return jax.lax.map(of_settings, settings, batch_size=at_once)

  return jax.jit(runs, compiler_options=COMPILER)


def make_run(
  problem: Problem,
  inner: methods_lib.Inner,
  make: Callable[..., methods_lib.Made],
) -> Callable[..., dict[str, jax.Array]]:
  """The run of one setting from one seed, `(setting, seed, length)`."""

  def run(
    setting: jax.Array, seed: jax.Array, length: jax.Array
  ) -> dict[str, jax.Array]:
    init_key, draw_key = jax.random.split(jax.random.key(seed))
    first = problem.init(init_key)
    tx, to_evaluate = make(inner, length, *setting)
    tx = optax.with_extra_args_support(tx)

    def update(step: jax.Array, carry: Any) -> Any:
      params, opt_state, total = carry
      batch = problem.draw(draw_key, step)
      if problem.moving:
        ours = problem.objective(to_evaluate(opt_state, params), batch)
        total += jnp.where(step >= length - length // 2, ours, 0)
      value, grads = jax.value_and_grad(problem.loss)(params, batch)
      updates, opt_state = tx.update(grads, opt_state, params, value=value)
      return optax.apply_updates(params, updates), opt_state, total

    carry = first, tx.init(first), jnp.zeros(())
    params, opt_state, total = jax.lax.fori_loop(0, length, update, carry)
    return _judge(
      problem,
      first,
      to_evaluate(opt_state, params),
      problem.draw(draw_key, length),
      total / (length // 2) if problem.moving else None,
    )

  return run


def _judge(
  problem: Problem, first: Any, last: Any, batch: Any, mean: jax.Array | None
) -> dict[str, jax.Array]:
  """The numbers of a run, from its first and last params."""
  objective = problem.objective(last, batch) if mean is None else mean
  return {
    'initial': problem.objective(first, batch),
    'objective': objective,
    'unseen': problem.unseen(last) if problem.unseen else jnp.nan,
    'solved': problem.is_solved(last, objective).astype(jnp.float32),
  }
