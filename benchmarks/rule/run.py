"""Trains problems by methods and keeps the results, cell by cell.

  python benchmarks/rule/run.py --half=choose --methods=today,constant
      --lengths=200,500 --seeds=5 [--problems=...] [--optimizers=...]
      [--csv=FILE] [--quick]

A cell is a problem, an optimizer, a method and a length. Each that ends is
added to benchmarks/results/rule/<half>.csv; one that is there, made by the same
code, is not run again, so the same command goes on where it was stopped
(Ctrl-C loses the cell that runs). Seeds that are missing are added. What
`report.py` makes of the file is in docs/research.md.

`--half=confirm` is for frozen candidates: nothing is chosen by it. `--quick`
takes two problems, short runs and two seeds, and a file of its own.
"""

import argparse
import pathlib
import signal
import sys
import tempfile
import time

import cells
from cells import Cell
import jax
import methods as methods_lib
import problems as problems_lib
import training

RESULTS = pathlib.Path(__file__).parents[1] / 'results' / 'rule'
QUICK = {
  'problems': 'quadratic_varying_scale,recommender',
  'optimizers': 'sgd,adamw',
  'methods': 'constant,cosine,today',
  'lengths': '20,40',
  'seeds': '2',
}
FROZEN = (
  'The confirm half is for candidates that are frozen; choose nothing by it.'
)


def parse(argv: list[str]) -> argparse.Namespace:
  """The command line; exits where it names what there is not."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--half', choices=problems_lib.HALVES, default='choose')
  parser.add_argument('--methods', default='today,constant,cosine,linear')
  parser.add_argument('--lengths', default='200,500')
  parser.add_argument('--seeds', type=int, default=5)
  parser.add_argument('--problems', default='', help='all of the half')
  parser.add_argument('--optimizers', default=','.join(methods_lib.OPTIMIZERS))
  parser.add_argument('--csv', type=pathlib.Path, default=None)
  parser.add_argument('--quick', action='store_true')
  if '--quick' in argv:
    parser.set_defaults(**QUICK)
  given = parser.parse_args(argv)
  known = {
    'problems': problems_lib.HALVES[given.half],
    'methods': methods_lib.METHODS,
    'optimizers': methods_lib.OPTIMIZERS,
  }
  for name, table in known.items():
    words = (
      getattr(given, name).split(',') if getattr(given, name) else [*table]
    )
    for word in words:
      if word not in table:
        parser.error(f'--{name}: no {word}; there are {", ".join(table)}')
    setattr(given, name, words)
  given.lengths = [int(length) for length in given.lengths.split(',')]
  return given


def to_do(given: argparse.Namespace, path: pathlib.Path) -> list[tuple]:
  """The cells that are not in the file, each with its missing seeds.

  Cells that share what is compiled come one after the other.
  """
  finished = cells.outcomes(cells.read(path))
  todo = []
  for problem in given.problems:
    for optimizer in given.optimizers:
      for method in given.methods:
        if optimizer not in methods_lib.METHODS[method].optimizers:
          continue
        for length in given.lengths:
          cell = Cell(problem, optimizer, method, length)
          seeds = range(_count(finished.get(cell), cell.code), given.seeds)
          if seeds:
            todo.append((cell, seeds))
  return todo


def _count(outcome: cells.Outcome | None, code: str) -> int:
  """The seeds that are there, made by this code."""
  return outcome.num_seeds if outcome and outcome.code == code else 0


class Progress:
  """A line that says how far the cells are, and about how long they take."""

  def __init__(self, todo: list[tuple]):
    self.work = [_work(cell, seeds) for cell, seeds in todo]
    self.begin, self.done = time.monotonic(), 0

  def show(self, cell: Cell) -> None:
    """After a cell has ended."""
    self.done += 1
    spent = time.monotonic() - self.begin
    left = spent * sum(self.work[self.done :]) / sum(self.work[: self.done])
    line = (
      f'{self.done} of {len(self.work)} cells, {_clock(spent)}, about '
      f'{_clock(left)} left: {" ".join(map(str, cell))}'
    )
    if sys.stdout.isatty():
      print(f'\r\x1b[K{line}', end='', flush=True)
    else:
      print(line, flush=True)


def _work(cell: Cell, seeds: range) -> float:
  """A cell's size in updates, with a share for what it compiles."""
  runs = len(seeds) * max(1, len(methods_lib.METHODS[cell.method].rates))
  return cell.length * (20 + runs)


def _clock(seconds: float) -> str:
  minutes = int(seconds) // 60
  return f'{minutes // 60}:{minutes % 60:02}:{int(seconds) % 60:02}'


def run(todo: list[tuple], path: pathlib.Path) -> None:
  """Trains the cells and adds each to the file."""
  progress, problem = Progress(todo), ''
  for cell, seeds in todo:
    if cell.problem != problem:
      jax.clear_caches()
      problem = cell.problem
    numbers = training.train(cell, seeds)
    cells.append(path, cells.to_rows(cell, seeds.start, cell.code, numbers))
    progress.show(cell)
  if sys.stdout.isatty() and todo:
    print()


def main(argv: list[str]) -> None:
  """Runs the command line."""
  given = parse(argv)
  # Ends at once: XLA holds Python's own handler back until a cell has ended.
  signal.signal(signal.SIGINT, signal.SIG_DFL)
  if given.half == 'confirm':
    print(FROZEN)
  folder = pathlib.Path(tempfile.mkdtemp()) if given.quick else RESULTS
  path = given.csv or folder / f'{given.half}.csv'
  todo = to_do(given, path)
  print(f'{len(todo)} cells to run; results in {path}', flush=True)
  run(todo, path)


if __name__ == '__main__':
  main(sys.argv[1:])
