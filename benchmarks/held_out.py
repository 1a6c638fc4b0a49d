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
import json
import pathlib
import platform
import time
from typing import Any

import held_out_report as report
import held_out_scores as scores
import held_out_searches as searches
import held_out_tasks as tasks_lib
import jax
import numpy as np
import optax
import sklearn

import metalr_flax

RESULTS = pathlib.Path(__file__).parent / 'results'
STEPS = 1000
SEEDS = 5


def measure(bench: searches.Bench, task: str, name: str) -> dict[str, Any]:
  """One cell: a task with an optimizer."""
  runs = searches.train_all(bench, name, f'{task} {name}')
  untrained = jax.vmap(tasks_lib.make_loss(bench.task))(
    bench.params, bench.sets[2]
  )
  return {
    'task': task,
    'optimizer': name,
    'untrained': np.asarray(untrained, np.float64).tolist(),
    **{
      m: scores.summarise(runs, np.asarray(untrained), m) for m in scores.MODES
    },
  }


def measure_all(
  tasks: list[str], names: list[str], seeds: int, steps: int
) -> dict[str, Any]:
  """All cells, with a line of progress for each."""
  cells: list[dict[str, Any]] = []
  begin, total = time.monotonic(), len(tasks) * len(names)
  for task in tasks:
    bench = searches.build(tasks_lib.TASKS[task], seeds, steps)
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
    'batch': searches.BATCH,
    'held_out_every': searches.HELD_OUT_EVERY,
    'tasks': {
      name: {'counts': t.counts, 'widths': t.widths, 'noise': t.noise}
      for name, t in tasks_lib.TASKS.items()
    },
    'starts': searches.STARTS,
    'rates': searches.RATES,
    'decays': searches.DECAYS,
    'overall': {mode: scores.overall(cells, mode) for mode in scores.MODES},
    'cells': cells,
  }


def main() -> None:
  """Measures, prints the tables, writes the JSON, the Markdown and the plot."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--quick', action='store_true')
  if parser.parse_args().quick:
    found = measure_all(['breast_cancer', 'wine_noisy'], ['adamw'], 2, 200)
    print(report.to_markdown(found), end='')
    return
  found = measure_all(list(tasks_lib.TASKS), list(searches.RATES), SEEDS, STEPS)
  print(report.to_markdown(found), end='')
  path = RESULTS / 'held_out.json'
  path.write_text(json.dumps(found, indent=1) + '\n')
  path.with_suffix('.md').write_text(report.to_markdown(found))
  report.plot(found, path.with_suffix('.png'))


if __name__ == '__main__':
  main()
