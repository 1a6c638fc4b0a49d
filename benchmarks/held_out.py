"""Learning rate and weight decay from held-out data, against a search.

  python benchmarks/held_out.py [--quick]

`self_tuning` learns both in one run: at every fourth update it is given the
gradient of a held-out batch besides. Searches pick constants by held-out loss:
a grid of 30, the same with a cosine schedule, 30 random draws, and successive
halving of those. Nine tasks, three optimizers, five random splits each into
training, held-out and test examples, the same for all methods. The rule was
chosen on other tasks; of these it was seen that a decay starting at 1e-2 may
bring SGD's weights to 0. Compared is the test loss, at the end of a run (the
mean over its last tenth) and where the held-out loss was least (early
stopping).

A cost is in gradient evaluations, of a training or a held-out batch alike; T
is the number of updates of a run. That everyone computes the held-out loss 40
times in a run is not counted. Writes benchmarks/results/held_out.json, .md and
.png; `--quick` takes two tasks, one optimizer, two seeds and 200 updates, and
writes nothing.
"""

import argparse
from collections.abc import Callable
import dataclasses
import json
import math
import pathlib
import platform
import time
from typing import Any

import held_out_tasks as tasks_lib
import jax
import jax.numpy as jnp
from matplotlib import figure
import numpy as np
import optax
import sklearn

import metalr_flax

RESULTS = pathlib.Path(__file__).parent / 'results'
BATCH = 32
STEPS = 1000
EVALUATIONS = 40
HELD_OUT_EVERY = 4
SEEDS = 5
DRAWS = 30
AT_ONCE = 10  # settings trained side by side; more do not fit the cache
RUNGS = (1 / 8, 1 / 4, 1 / 2, 1)
COST = 1 + 1 / HELD_OUT_EVERY
LEVEL = 1.005
# A test loss counts as this many times the untrained model's at most, so that
# a run that diverged has a loss.
LIMIT = 10.0
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
MODES = {'end': 'end of the run', 'early': 'early stopping'}
SEARCHES = {
  'grid': 'grid',
  'cosine': 'grid with cosine',
  'random': 'random search',
  'halving': 'successive halving',
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

    def block(carry: Any, number: jax.Array) -> tuple[Any, jax.Array]:
      numbers = number * length + jnp.arange(length)
      carry, _ = jax.lax.scan(step, carry, numbers)
      losses = [loss(carry[0], examples) for examples in sets[1:]]
      return carry, jnp.stack(losses)

    carry = params, tx.init(params)
    return jax.lax.scan(block, carry, jnp.arange(EVALUATIONS))[1]

  return run


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


def score(curves: np.ndarray, mode: str, upto: int = EVALUATIONS) -> np.ndarray:
  """Held-out and test loss of runs, [R, S, 2].

  Args:
    curves: [R, S, EVALUATIONS, 2].
    mode: 'end' or 'early'.
    upto: evaluations that are seen.
  """
  curves = np.where(np.isfinite(curves), curves, np.inf)[:, :, :upto]
  if mode == 'end':
    return curves[:, :, -max(1, upto // 10) :].mean(2)
  at = curves[..., 0].argmin(2)
  return np.take_along_axis(curves, at[:, :, None, None], 2)[:, :, 0]


def expected(scores: np.ndarray) -> np.ndarray:
  """The log test loss of the best of n runs by held-out loss, [R].

  The mean over all orders of the runs, and over the seeds; n = 1 ... R.

  Args:
    scores: [R, S, 2].
  """
  count = len(scores)
  order = scores[..., 0].argsort(0)
  logs = np.log(np.take_along_axis(scores[..., 1], order, 0)).mean(1)
  # The k-th best of all is the best of n: the others are of those after it.
  share = lambda n, k: math.comb(count - 1 - k, n - 1) / math.comb(count, n)
  shares = [[share(n, k) for k in range(count)] for n in range(1, count + 1)]
  return np.array(shares) @ logs


def halve(curves: np.ndarray, mode: str) -> tuple[float, float]:
  """Successive halving: the log test loss, mean over the seeds, and the cost.

  At each rung the better half by held-out loss goes on.

  Args:
    curves: [R, S, EVALUATIONS, 2].
    mode: 'end' or 'early'.

  Returns:
    The log test loss, and the cost in runs.
  """
  seeds = np.arange(curves.shape[1])
  alive = np.repeat(np.arange(len(curves))[:, None], len(seeds), 1)
  cost, before = 0.0, 0.0
  for rung in RUNGS:
    cost += len(alive) * (rung - before)
    before = rung
    scores = score(curves, mode, round(rung * EVALUATIONS))
    held = np.take_along_axis(scores[..., 0], alive, 0)
    order = held.argsort(0)[: math.ceil(len(alive) / 2)]
    alive = np.take_along_axis(alive, order, 0)
  return float(np.log(scores[alive[0], seeds, 1]).mean()), cost


def summarise(
  runs: dict[str, np.ndarray], untrained: np.ndarray, mode: str
) -> dict[str, Any]:
  """What a cell comes to: test losses, and ours over those of searches.

  Args:
    runs: losses by method.
    untrained: test loss before the first update, [S].
    mode: 'end' or 'early'.
  """
  limit = LIMIT * untrained[:, None]
  runs = {k: _limited(curves, limit) for k, curves in runs.items()}
  scores = {k: score(curves, mode) for k, curves in runs.items()}
  logs = {k: expected(scores[k]) for k in ('grid', 'cosine', 'random')}
  halved, cost = halve(runs['random'], mode)
  losses = {k: v[-1] for k, v in logs.items()} | {'halving': halved}
  for k in ('ours', 'training'):
    losses[k] = np.log(scores[k][..., 1]).mean()
  return {
    **_ratios(losses, logs['random'][0]),
    'draws_until_level': first_below(logs['random'], losses['ours']),
    'over_grid_by_runs': {
      k: np.exp(v - losses['grid']).tolist() for k, v in logs.items()
    },
    'halving_cost': cost,
    'ours_by_start_and_seed': scores['ours'][..., 1].tolist(),
  }


def _ratios(logs: dict[str, Any], one_draw: float) -> dict[str, Any]:
  """Test losses by method, and ratios of them, from the logarithms."""
  over = lambda a, b: float(np.exp(a - b))
  return {
    'test_loss': {k: float(np.exp(v)) for k, v in logs.items()},
    'ours_over': {k: over(logs['ours'], logs[k]) for k in SEARCHES},
    'training_over_grid': over(logs['training'], logs['grid']),
    'ours_over_one_draw': over(logs['ours'], one_draw),
    'halving_over_grid': over(logs['halving'], logs['grid']),
  }


def first_below(values: Any, level: float) -> int | None:
  """How many runs until a value is at the level or below; None for never."""
  found = np.flatnonzero(np.array(values) <= level)
  return int(found[0]) + 1 if len(found) else None


def _limited(curves: np.ndarray, limit: np.ndarray) -> np.ndarray:
  """Runs with test losses of `limit` at most, [S, 1]."""
  held, test = np.moveaxis(curves, -1, 0)
  return np.stack([held, np.fmin(test, limit)], -1)


def measure(bench: Bench, task: str, name: str) -> dict[str, Any]:
  """One cell: a task with an optimizer."""
  runs = train_all(bench, name, f'{task} {name}')
  untrained = jax.vmap(tasks_lib.make_loss(bench.task))(
    bench.params, bench.sets[2]
  )
  return {
    'task': task,
    'optimizer': name,
    'untrained': np.asarray(untrained, np.float64).tolist(),
    **{m: summarise(runs, np.asarray(untrained), m) for m in MODES},
  }


def overall(cells: list[dict[str, Any]], mode: str) -> dict[str, Any]:
  """The figures over all cells."""
  of = lambda key: [cell[mode][key] for cell in cells]
  ratios = {k: _spread([row[k] for row in of('ours_over')]) for k in SEARCHES}
  curves = {
    k: geomean([row[k] for row in of('over_grid_by_runs')], 0).tolist()
    for k in ('grid', 'cosine', 'random')
  }
  draws = of('draws_until_level')
  return {
    'ours_over': {**ratios, 'one_draw': _spread(of('ours_over_one_draw'))},
    'training_over_grid': _spread(of('training_over_grid')),
    'runs_until_level': {
      k: first_below(curve, ratios['grid']['mean'])
      for k, curve in curves.items()
    },
    'cells': len(cells),
    'cells_never_level': draws.count(None),
    'cells_level_at_one_draw': draws.count(1),
    'over_grid_by_runs': curves,
    'halving_over_grid': float(geomean(of('halving_over_grid'))),
    'halving_cost': cells[0][mode]['halving_cost'],
  }


def geomean(values: Any, axis: int | None = None) -> np.ndarray:
  """The geometric mean."""
  return np.exp(np.mean(np.log(values), axis))


def _spread(ratios: list[float]) -> dict[str, float]:
  """Mean, worst and share of those that are level."""
  return {
    'mean': float(geomean(ratios)),
    'worst': max(ratios),
    'level': float(np.mean(np.array(ratios) <= LEVEL)),
  }


def to_markdown(results: dict[str, Any]) -> str:
  """What a person reads."""
  parts = [f'# Learning rate and weight decay from held-out data\n\n{INTRO}']
  for mode, title in MODES.items():
    parts.append(f'## {title[0].upper()}{title[1:]}\n')
    parts.append(overall_table(results['overall'][mode]))
    parts.append(cell_table(results['cells'], mode))
  versions = ', '.join(f'{k} {v}' for k, v in results['versions'].items())
  parts.append(
    f'{results["seeds"]} seeds, {results["steps"]} updates, batches of '
    f'{BATCH}; {versions}.\n'
  )
  return '\n'.join(parts)


INTRO = f"""`self_tuning` learns both in one run, from a held-out gradient at
every fourth update; searches pick from {DRAWS} settings by held-out loss. All
numbers but the draws are ratios of test losses, geometric means over seeds
and, for `self_tuning`, over two starts, which come to the same: below 1,
`self_tuning` is better. One
run of it costs {COST} T gradient evaluations (T is one training run), a grid or
random search 30 T, successive halving 9.6 T. One draw: a single random setting,
what a search gets for about the same cost. Draws until level: how many random
settings must be tried until the best of them by held-out loss is as good, in
the mean over all orders; 1 where one run of `self_tuning` is no better than a
single draw. Everyone trains on the training examples alone.
Training gradient: `self_tuning` of the rate alone, without held-out data, over
the grid. A test loss counts as at most {LIMIT:g} times the untrained model's.

    python benchmarks/held_out.py
"""


def overall_table(found: dict[str, Any]) -> str:
  """The figures over all cells."""
  names = {**SEARCHES, 'one_draw': 'one draw'}
  lines = [
    '| ratio of test losses | mean | worst | 1.005 or less |',
    '|---|---|---|---|',
  ]
  rows = {f'ours / {names[k]}': v for k, v in found['ours_over'].items()}
  rows['training gradient / grid'] = found['training_over_grid']
  lines += [
    f'| {k} | {v["mean"]:.3f} | {v["worst"]:.3f} | {v["level"]:.0%} |'
    for k, v in rows.items()
  ]
  until = found['runs_until_level']
  shown = '; '.join(
    f'{SEARCHES[k]} {n or f"more than {DRAWS}"}' for k, n in until.items()
  )
  return '\n'.join(lines) + (
    f'\n\nRuns until a search is level over all cells: {shown}. By cell, '
    f'random search is not level within {DRAWS} draws in '
    f'{found["cells_never_level"]} of {found["cells"]}, and is with a single '
    f'draw in {found["cells_level_at_one_draw"]}.\n'
  )


def cell_table(cells: list[dict[str, Any]], mode: str) -> str:
  """A row for each task and optimizer."""
  titles = [f'/ {title}' for title in SEARCHES.values()]
  head = ['task', 'optimizer', 'test loss', *titles, '/ one draw']
  head += ['draws until level', 'training gradient / grid']
  lines = [f'| {" | ".join(head)} |', f'|{"---|" * len(head)}']
  for cell in cells:
    row = cell[mode]
    ratios = [*row['ours_over'].values(), row['ours_over_one_draw']]
    shown = [cell['task'], cell['optimizer'], f'{row["test_loss"]["ours"]:.4f}']
    shown += [f'{ratio:.3f}' for ratio in ratios]
    shown.append(str(row['draws_until_level'] or f'> {DRAWS}'))
    shown.append(f'{row["training_over_grid"]:.3f}')
    lines.append(f'| {" | ".join(shown)} |')
  return '\n'.join(lines) + '\n'


def plot(results: dict[str, Any], path: pathlib.Path) -> None:
  """Draws test loss against cost, a panel for each mode."""
  fig = figure.Figure(figsize=(10, 4.2), layout='constrained')
  panels = fig.subplots(1, 2)
  for axes, (mode, title) in zip(panels, MODES.items(), strict=True):
    draw_panel(axes, results['overall'][mode])
    axes.set_title(title[0].upper() + title[1:])
  handles, labels = panels[0].get_legend_handles_labels()
  fig.legend(handles, labels, loc='outside lower center', ncols=5)
  fig.savefig(path, dpi=120)


def draw_panel(axes: Any, found: dict[str, Any]) -> None:
  """Draws the searches' curves, and halving and ours as points."""
  styles = {'random': '-', 'grid': '--', 'cosine': ':'}
  for key, style in styles.items():
    losses = found['over_grid_by_runs'][key]
    axes.plot(range(1, len(losses) + 1), losses, style, label=SEARCHES[key])
  halved = found['halving_cost'], found['halving_over_grid']
  axes.plot(*halved, 's', label=SEARCHES['halving'])
  ours = found['ours_over']['grid']['mean']
  axes.plot(COST, ours, '*', markersize=13, label='self_tuning, held-out')
  axes.set(xscale='log', yscale='log')
  ticks = (1, 2, 5, 10, 30)
  axes.set_xticks(ticks, [str(t) for t in ticks])
  low, high = axes.get_ylim()
  heights = [h for h in (0.9, 1, 1.2, 1.5, 2, 3, 5) if low <= h <= high]
  axes.set_yticks(heights, [str(h) for h in heights])
  axes.minorticks_off()
  axes.set_xlabel('gradient evaluations (training runs T)')
  axes.set_ylabel("test loss (ratio to the full grid's pick)")
  axes.axhline(1, color='gray', linewidth=0.8)
  axes.grid(True, alpha=0.3)


def measure_all(
  tasks: list[str], names: list[str], seeds: int, steps: int
) -> dict[str, Any]:
  """All cells, with a line of progress for each."""
  cells: list[dict[str, Any]] = []
  begin, total = time.monotonic(), len(tasks) * len(names)
  for task in tasks:
    bench = build(tasks_lib.TASKS[task], seeds, steps)
    for name in names:
      cells.append(measure(bench, task, name))
      spent = time.monotonic() - begin
      left = spent / len(cells) * (total - len(cells))
      ratio = cells[-1]['end']['ours_over']['grid']
      print(
        f'{task} {name}: ours / grid {ratio:.3f}; {len(cells)} of {total}, '
        f'{spent:.0f} s, about {left:.0f} s left',
        flush=True,
      )
  return describe(cells, seeds, steps)


def describe(
  cells: list[dict[str, Any]], seeds: int, steps: int
) -> dict[str, Any]:
  """The results, with what they were made by."""
  return {
    'versions': {
      'python': platform.python_version(),
      'jax': jax.__version__,
      'optax': optax.__version__,
      'scikit-learn': sklearn.__version__,
      'metalr_flax': metalr_flax.__version__,
    },
    'seeds': seeds,
    'steps': steps,
    'batch': BATCH,
    'held_out_every': HELD_OUT_EVERY,
    'tasks': {
      name: {'counts': t.counts, 'widths': t.widths, 'noise': t.noise}
      for name, t in tasks_lib.TASKS.items()
    },
    'starts': STARTS,
    'rates': RATES,
    'decays': DECAYS,
    'overall': {mode: overall(cells, mode) for mode in MODES},
    'cells': cells,
  }


def main() -> None:
  """Measures, prints the tables, writes the JSON, the Markdown and the plot."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--quick', action='store_true')
  if parser.parse_args().quick:
    found = measure_all(['breast_cancer', 'wine_noisy'], ['adamw'], 2, 200)
    print(to_markdown(found), end='')
    return
  found = measure_all(list(tasks_lib.TASKS), list(RATES), SEEDS, STEPS)
  print(to_markdown(found), end='')
  path = RESULTS / 'held_out.json'
  path.write_text(json.dumps(found, indent=1) + '\n')
  path.with_suffix('.md').write_text(to_markdown(found))
  plot(found, path.with_suffix('.png'))


if __name__ == '__main__':
  main()
