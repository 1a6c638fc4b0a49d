"""How many held-out examples learned hyperparameters need.

  python benchmarks/held_out_size.py [--quick]

Hyperparameters that are learned on held-out data fit that data: with few
examples and many learned values the held-out loss falls, and the test loss does
not. `self_tuning` learns h values from the gradient of n held-out examples, at
every fourth of 1000 updates of AdamW: the rate (h = 1), rate and decay (h = 2),
or both for each of h / 2 blocks of features. Three tasks, ten seeds each. The
gradient is that of all n: a user who has 25 has no reason to take fewer, and a
batch of them would bring noise of its own.

A smaller held-out set is the beginning of the larger ones, so that what differs
is its size alone. The gap is test loss less held-out loss. Chance alone makes
that of 25 examples large, in either direction; so the gap of one constant
setting on the same examples, which they had no part in, is taken off. The
yardstick is the grid of held_out.py: 30 constant rates and decays of which n
examples pick one.

Writes benchmarks/results/held_out_size.json, .md and .png; `--quick` takes one
task, h up to 4, two seeds and 200 updates, and writes nothing.
"""

import argparse
from collections.abc import Callable
import json
import pathlib
import platform
import time
from typing import Any

import held_out_scores as scores_lib
import held_out_searches as searches
import held_out_size_report as report
import held_out_size_tasks as tasks_lib
import jax
import jax.numpy as jnp
import numpy as np
import optax

import metalr_flax

RESULTS = pathlib.Path(__file__).parent / 'results'
LEARNED = (1, 2, 4, 16, 64)
SIZES = np.array(tasks_lib.SIZES)
BATCH = 32
STEPS = 1000
EVALUATIONS = searches.EVALUATIONS
HELD_OUT_EVERY = 4
SEEDS = 10
AT_ONCE = 5
LIMIT = 10.0  # as in held_out.py: no test loss counts as more, over untrained
DOUBLED = 2.0  # its loss when stopped early: a run that ends above is lost


def make_tuned(count: int, params: Any) -> Any:
  """What learns `count` hyperparameters of some blocks."""
  names = ['learning_rate', 'weight_decay'][:count]
  labels = tasks_lib.label_blocks(params)
  start = {'learning_rate': 1e-3, 'weight_decay': 1e-3}
  grouped = metalr_flax.make_grouped('adamw', start, names, labels)
  return metalr_flax.self_tuning(grouped, learned=names, labels=labels)


def make_run(
  task: tasks_lib.Task, steps: int, helped: bool
) -> Callable[..., jax.Array]:
  """The run of one optimizer from one seed.

  Returns:
    A function of the optimizer, held-out examples, the sets, first parameters
    and the seed, to held-out losses of each size and the test loss along the
    run, [EVALUATIONS, sizes + 1].
  """
  losses, length = tasks_lib.make_losses(task), steps // EVALUATIONS

  def run(tx: Any, size: Any, sets: Any, params: Any, seed: Any) -> jax.Array:
    step = make_step(losses, tx, size, sets, jax.random.key(seed), helped)

    def measure(params: Any) -> jax.Array:
      held = jnp.cumsum(losses(params, sets[1]))[SIZES - 1] / SIZES
      return jnp.append(held, losses(params, sets[2]).mean())

    carry = params, tx.init(params)
    return searches.train_and_measure(step, measure, carry, length)

  return run


def make_step(
  losses: Callable[[Any, Any], jax.Array],
  tx: optax.GradientTransformationExtraArgs,
  size: Any,
  sets: Any,
  key: jax.Array,
  helped: bool,
) -> Callable[[Any, jax.Array], tuple[Any, None]]:
  """An update; every fourth has the gradient of the first held-out examples."""
  share = (jnp.arange(SIZES[-1]) < size) / size
  meta_loss = lambda params: share @ losses(params, sets[1])

  def step(carry: Any, number: jax.Array) -> tuple[Any, None]:
    params, state = carry
    batch = searches.draw(jax.random.fold_in(key, number), sets[0])
    grads = jax.grad(lambda p: losses(p, batch).mean())(params)
    plain = lambda: tx.update(grads, state, params)
    with_held_out = lambda: tx.update(
      grads, state, params, meta_grads=jax.grad(meta_loss)(params)
    )
    if helped:
      turn = number % HELD_OUT_EVERY == 0
      updates, state = jax.lax.cond(turn, with_held_out, plain)
    else:
      updates, state = plain()
    return (optax.apply_updates(params, updates), state), None

  return step


def build(task: tasks_lib.Task, blocks: int, seeds: int) -> tuple[Any, Any]:
  """The sets and first parameters of the seeds 0, 1, ..., [S, ...]."""
  stack = lambda *arrays: np.stack(arrays)
  make = tasks_lib.make_data, lambda t, s: tasks_lib.init_params(t, blocks, s)
  sets, params = (
    jax.tree.map(stack, *[f(task, s) for s in range(seeds)]) for f in make
  )
  return sets, params


def run_tuned(
  task: tasks_lib.Task, count: int, seeds: int, steps: int
) -> np.ndarray:
  """Losses with `count` learned values, [sizes, S, EVALUATIONS, 2].

  The held-out loss is that of the examples which it learned from.
  """
  sets, params = build(task, max(1, count // 2), seeds)
  tx = make_tuned(count, jax.tree.map(lambda a: a[0], params))
  run = make_run(task, steps, helped=True)
  of_size = jax.vmap(lambda *args: run(tx, *args), (None, 0, 0, 0))
  of_all = jax.jit(jax.vmap(of_size, (0, None, None, None)))
  losses = np.asarray(of_all(SIZES, sets, params, jnp.arange(seeds)))
  own = [rows[..., k] for k, rows in enumerate(losses)]
  return np.stack([np.stack(own), losses[..., -1]], -1).astype(float)


def run_grid(task: tasks_lib.Task, seeds: int, steps: int) -> np.ndarray:
  """Losses of constants, [settings, S, EVALUATIONS, sizes + 1]."""
  sets, params = build(task, 1, seeds)
  make = searches.make_constant('adamw', steps)
  run = make_run(task, steps, helped=False)
  numbers = jnp.arange(seeds)
  of_setting = lambda setting: jax.vmap(
    lambda *args: run(make(setting), SIZES[-1], *args)
  )(sets, params, numbers)
  settings = searches.with_flag(searches.grid_of('adamw', 1), 0)[:, 0]
  mapped = lambda rows: jax.lax.map(of_setting, rows, batch_size=AT_ONCE)
  return np.asarray(jax.jit(mapped)(jnp.asarray(settings)), float)


def pick(grid: np.ndarray, mode: str) -> np.ndarray:
  """Held-out and test loss of what each size picks, [sizes, S, 2]."""
  found = []
  for k in range(len(SIZES)):
    scores = scores_lib.score(grid[..., [k, -1]], mode)
    best = scores[..., 0].argmin(0)
    found.append(scores[best, np.arange(len(best))])
  return np.stack(found)


def reference_gap(grid: np.ndarray) -> np.ndarray:
  """Test less held-out loss at the end of one constant setting, [sizes, S].

  The setting is the one of least test loss over all seeds.
  """
  ends = grid[:, :, -1]
  best = np.nan_to_num(ends[..., -1], nan=np.inf).mean(1).argmin()
  return (ends[best][:, -1:] - ends[best][:, :-1]).T


def summarise(
  scores: np.ndarray, reference: np.ndarray, limit: np.ndarray, lost: np.ndarray
) -> dict[str, Any]:
  """Figures by size of the held-out set.

  Args:
    scores: held-out and test loss, [sizes, S, 2].
    reference: the gap of a constant setting, [sizes, S].
    limit: the most that a test loss counts as, [S].
    lost: runs whose gap says nothing, [sizes, S].
  """
  held, test = np.moveaxis(scores, -1, 0)
  gaps = np.where(lost, 0, test) - np.where(lost, 0, held) - reference
  gaps = np.ma.masked_array(gaps, lost)
  test = np.fmin(test, limit)
  logs = np.log(test / test[-1])
  error = logs.std(1, ddof=1) / np.sqrt(logs.shape[1])
  return {
    'test_loss': scores_lib.geomean(test, 1).tolist(),
    'over_largest': np.exp(logs.mean(1)).tolist(),
    'over_largest_error': error.tolist(),
    'gap': gaps.mean(1).tolist(),  # None where all runs are lost
    'gap_error': _error_of(gaps).tolist(),
  }


def _error_of(gaps: np.ma.MaskedArray) -> np.ndarray:
  """The standard error of the mean over seeds, 0 for a single one."""
  return (gaps.std(1) / np.sqrt(np.maximum(gaps.count(1) - 1, 1))).filled(0)


def measure(
  task: tasks_lib.Task, counts: tuple[int, ...], seeds: int, steps: int
) -> dict[str, Any]:
  """A task: figures by h, and of the grid's picks."""
  grid = run_grid(task, seeds, steps)
  reference, limit = reference_gap(grid), LIMIT * untrained(task, seeds)
  none = np.zeros(reference.shape, bool)
  picks = {m: pick(grid, m) for m in scores_lib.MODES}
  rows = {
    'grid': {m: summarise(picks[m], reference, limit, none) for m in picks}
  }
  for count in counts:
    begin = time.monotonic()
    curves = run_tuned(task, count, seeds, steps)
    scores = {m: scores_lib.score(curves, m) for m in scores_lib.MODES}
    lost = ~(scores['end'][..., 1] < DOUBLED * scores['early'][..., 1])
    rows[str(count)] = {
      'doubled': lost.mean(1).tolist(),
      'end': summarise(scores['end'], reference, limit, lost),
      'early': summarise(scores['early'], reference, limit, none),
    }
    print(f'  h = {count}: {time.monotonic() - begin:.0f} s', flush=True)
  return rows


def untrained(task: tasks_lib.Task, seeds: int) -> np.ndarray:
  """The test loss before the first update, [S]."""
  sets, params = build(task, 1, seeds)
  losses = jax.vmap(tasks_lib.make_losses(task))(params, sets[2])
  return np.asarray(losses.mean(1), float)


def measure_all(
  names: list[str], counts: tuple[int, ...], seeds: int, steps: int
) -> dict[str, Any]:
  """All tasks, and what they come to."""
  tasks = {}
  for name in names:
    print(name, flush=True)
    tasks[name] = measure(tasks_lib.TASKS[name], counts, seeds, steps)
  found = describe(tasks, counts, seeds, steps)
  return {**found, 'overall': report.conclude(found)}


def describe(
  tasks: dict[str, Any], counts: tuple[int, ...], seeds: int, steps: int
) -> dict[str, Any]:
  """The figures with what they were measured with."""
  return {
    'versions': {
      'python': platform.python_version(),
      'jax': jax.__version__,
      'optax': optax.__version__,
      'metalr_flax': metalr_flax.__version__,
    },
    'seeds': seeds,
    'steps': steps,
    'batch': BATCH,
    'held_out_every': HELD_OUT_EVERY,
    'training': tasks_lib.TRAINING,
    'test': tasks_lib.TEST,
    'sizes': SIZES.tolist(),
    'learned': list(counts),
    'tasks': tasks,
  }


def main() -> None:
  """Measures, prints the table, writes the JSON, the Markdown and the plot."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--quick', action='store_true')
  names = list(tasks_lib.TASKS)
  if parser.parse_args().quick:
    found = measure_all(names[:1], LEARNED[:3], 2, 200)
    print(report.to_markdown(found), end='')
    return
  found = measure_all(names, LEARNED, SEEDS, STEPS)
  print(report.to_markdown(found), end='')
  path = RESULTS / 'held_out_size.json'
  path.write_text(json.dumps(found, indent=1) + '\n')
  path.with_suffix('.md').write_text(report.to_markdown(found))
  report.plot(found, path.with_suffix('.png'))


if __name__ == '__main__':
  main()
