"""What a meta-gradient costs over plain training: memory and time.

  python benchmarks/meta_gradient.py [--quick] [--problems mlp cnn transformer]

On an MLP 784-512-512-10 (batch 128), the package's convolutional net and its
transformer, RMSProp inside:
- memory of the compiled outer step (arguments + temporaries + outputs -
  aliased, data excluded) for K = 8 .. 4096, and seconds to compile it;
- time of an inner update over that of plain training, all estimators in turn in
  one run, medians of the rounds and their ratios, K = 8 and 64;
- on the MLP, the same against a hand-written JAX scan of the same maths.
Writes benchmarks/results/meta_gradient.{json,md,png}.
"""

import argparse
from collections.abc import Callable
import functools
import json
import os
import pathlib
import platform
import statistics
import time
from typing import Any

import jax
from matplotlib import figure
import measured_models

import metalr_flax

RESULTS = pathlib.Path(__file__).parent / 'results'
RATE = {'learning_rate': ('log', 1e-3)}
THREE = {**RATE, 'decay': ('one_minus_log', 0.9), 'eps': ('log', 1e-6)}
Estimator = metalr_flax.Estimator
ESTIMATORS: dict[str, tuple[Estimator, dict]] = {
  'plain': (Estimator(kind='none'), RATE),
  'forward': (Estimator(kind='forward'), RATE),
  'forward, 3 learned': (Estimator(kind='forward'), THREE),
  'forward, subsample 1/4': (
    Estimator(kind='forward', curvature='subsample', subsample=0.25),
    RATE,
  ),
  'forward, no curvature': (
    Estimator(
      kind='forward', curvature='none', objective='online', discount=0.99
    ),
    RATE,
  ),
  'reverse': (Estimator(), RATE),
  'reverse, remat step': (Estimator(remat='step'), RATE),
  'reverse, remat sqrt': (Estimator(remat='sqrt'), RATE),
}


def compile_step(step: Callable, state: Any, data: Any) -> tuple[Any, float]:
  """The compiled step, its state donated, and the seconds it took."""
  begun = time.perf_counter()
  compiled = jax.jit(step, donate_argnums=0).lower(state, data).compile()
  return compiled, time.perf_counter() - begun


def memory(compiled: Any, data: Any) -> int:
  """Bytes of a compiled step, its data excluded."""
  sizes = compiled.memory_analysis()
  return (
    sizes.argument_size_in_bytes
    + sizes.temp_size_in_bytes
    + sizes.output_size_in_bytes
    - sizes.alias_size_in_bytes
    - sum(a.nbytes for a in jax.tree.leaves(data))
  )


def measure_memory(
  model: measured_models.Model, lengths: list[int]
) -> dict[str, dict]:
  """Bytes and compile seconds by estimator and K."""
  table: dict[str, dict] = {}
  for name, (estimator, learned) in ESTIMATORS.items():
    table[name] = {'bytes': {}, 'compile_secs': {}}
    for length in lengths:
      step, state = measured_models.make_step(model, estimator, learned, length)
      compiled, secs = compile_step(step, state, model.data)
      table[name]['bytes'][str(length)] = memory(compiled, model.data)
      table[name]['compile_secs'][str(length)] = round(secs, 2)
    print('  memory', name, table[name], flush=True)
  return table


def measure_time(
  model: measured_models.Model, length: int, rounds: int, *, handwritten: bool
) -> dict[str, dict[str, float]]:
  """Milliseconds an inner update takes, all in turn, and ratios to plain."""
  runs = {}
  made = {
    name: measured_models.make_step(model, estimator, learned, length)
    for name, (estimator, learned) in ESTIMATORS.items()
  }
  if handwritten:
    made['hand-written jvp'] = measured_models.make_handwritten(
      length, model.data
    )
  for name, (step, state) in made.items():
    compiled, _ = compile_step(step, state, model.data)
    runs[name] = [compiled, compiled(state, model.data)]
  millis: dict[str, list[float]] = {name: [] for name in runs}
  for _ in range(rounds):
    for name, pair in runs.items():
      jax.block_until_ready(pair[1])
      begun = time.perf_counter()
      pair[1] = jax.block_until_ready(pair[0](pair[1], model.data))
      millis[name].append((time.perf_counter() - begun) * 1e3 / length)
  return {
    name: {
      'ms': statistics.median(times),
      'ratio': statistics.median(
        t / p for t, p in zip(times, millis['plain'], strict=True)
      ),
      'over_handwritten': statistics.median(
        t / h
        for t, h in zip(
          times, millis.get('hand-written jvp', times), strict=True
        )
      ),
    }
    for name, times in millis.items()
  }


def to_markdown(results: dict[str, Any]) -> str:
  """The tables of the report."""
  lines = [f'JAX {results["jax"]}, {results["machine"]}.', '']
  for name, result in results['problems'].items():
    lengths = list(result['memory']['plain']['bytes'])
    lines += [
      f'## {name} (floor of an exact meta-gradient: {result["floor"]:.2f}x)',
      '',
      '| estimator | '
      + ' | '.join(f'MB at K={k}' for k in lengths)
      + ' | compile s | '
      + ' | '.join(f'time at K={k}' for k in result['time'])
      + ' |',
      '|---|' + '---|' * (len(lengths) + 1 + len(result['time'])),
    ]
    for estimator, row in result['memory'].items():
      megabytes = [f'{b / 1e6:.1f}' for b in row['bytes'].values()]
      secs = list(row['compile_secs'].values())
      times = [
        f'{t[estimator]["ms"]:.2f} ms, {t[estimator]["ratio"]:.2f}x'
        for t in result['time'].values()
      ]
      cells = [estimator, *megabytes, f'{min(secs)}-{max(secs)}', *times]
      lines.append('| ' + ' | '.join(cells) + ' |')
    for length, times in result['time'].items():
      if 'hand-written jvp' in times:
        ratio = times['forward']['over_handwritten']
        lines.append(
          f'\nForward over a hand-written jvp, K = {length}: {ratio:.2f}x '
          f'(itself {times["hand-written jvp"]["ratio"]:.2f}x plain).'
        )
    lines.append('')
  return '\n'.join(lines)


def plot(results: dict[str, Any], path: pathlib.Path) -> None:
  """Draws memory against K, one panel a model."""
  problems = results['problems']
  fig = figure.Figure(figsize=(5 * len(problems), 4), layout='constrained')
  panels = fig.subplots(1, len(problems), squeeze=False)[0]
  for axes, (name, result) in zip(panels, problems.items(), strict=True):
    for estimator, row in result['memory'].items():
      sizes = row['bytes']
      axes.plot(
        [int(k) for k in sizes],
        [b / 1e6 for b in sizes.values()],
        marker='o',
        label=estimator,
      )
    axes.set_xscale('log', base=2)
    axes.set_yscale('log')
    axes.set_title(name)
    axes.set_xlabel('K, inner updates in a window')
    axes.set_ylabel('memory of the compiled step (MB)')
    axes.grid(True, alpha=0.3)
  panels[0].legend(fontsize=7)
  fig.savefig(path, dpi=120)


def main() -> None:
  """Measures, prints and writes the results; those of other models stay."""
  parser = argparse.ArgumentParser()
  parser.add_argument('--quick', action='store_true')
  parser.add_argument('--problems', nargs='*', default=None)
  arguments = parser.parse_args()
  lengths = [8, 64] if arguments.quick else [8, 64, 512, 4096]
  rounds = {8: 3, 64: 1} if arguments.quick else {8: 9, 64: 3}
  all_models = measured_models.make_models()
  path = RESULTS / 'meta_gradient.json'
  known = json.loads(path.read_text()) if path.exists() else {'problems': {}}
  results: dict[str, Any] = {
    'jax': jax.__version__,
    'machine': f'{platform.machine()}, {os.cpu_count()} cores',
    'problems': {} if arguments.quick else known['problems'],
  }
  for name in arguments.problems or all_models:
    model = all_models[name]
    print(name, flush=True)
    timed = functools.partial(measure_time, handwritten=name == 'mlp')
    results['problems'][name] = {
      'floor': model.floor,
      'time': {str(k): timed(model, k, rounds[k]) for k in (8, 64)},
      'memory': measure_memory(model, lengths),
    }
    print(
      to_markdown({**results, 'problems': {name: results['problems'][name]}})
    )
    if not arguments.quick:
      path.write_text(json.dumps(results, indent=2) + '\n')
      path.with_suffix('.md').write_text(to_markdown(results) + '\n')
      plot(results, path.with_suffix('.png'))


if __name__ == '__main__':
  main()
