"""The cells of the table, and the CSV in which the finished ones are kept.

A cell is a problem, an inner optimizer, a method and a length of run: all its
rates and seeds. The CSV has a row for each rate of a cell, written when the
cell ends; of rows that say the same thing twice the later one counts.
"""

import csv
import hashlib
import inspect
import io
import math
import pathlib
from typing import Any, NamedTuple

import methods as methods_lib
import numpy as np
import problem as problem_lib
import problems as problems_lib

COLUMNS = (
  'problem', 'optimizer', 'method', 'length', 'rate', 'first_seed', 'code',
  'initial', 'objective', 'unseen', 'solved',
)  # fmt: skip
PER_SEED = 'initial', 'objective', 'unseen', 'solved'


class Cell(NamedTuple):
  """What is trained, by what, for how many updates."""

  problem: str
  optimizer: str
  method: str
  length: int

  @property
  def rates(self) -> tuple[float, ...]:
    """The rates of its runs; NaN alone for a method without a rate."""
    method = methods_lib.METHODS[self.method]
    if not method.rates:
      return (math.nan,)
    shifted = method.picks and self.optimizer in methods_lib.SGD
    scale = problems_lib.build(self.problem).scale if shifted else 1.0
    return tuple(scale * rate for rate in method.rates)

  @property
  def code(self) -> str:
    """Eight letters that change with the code of its problem or its method."""
    make = {**problems_lib.CHOOSE, **problems_lib.CONFIRM}[self.problem]
    files = inspect.getsourcefile(make), problem_lib.__file__
    text = ''.join(pathlib.Path(file).read_text() for file in files)
    text += methods_lib.digest(methods_lib.METHODS[self.method])
    return hashlib.sha256(text.encode()).hexdigest()[:8]


class Outcome(NamedTuple):
  """The numbers of a finished cell: R rates, S seeds.

  Attributes:
    code: of the digest of what made them.
    rates: [R].
    numbers: by the names of `PER_SEED`, arrays [R, S].
  """

  code: str
  rates: tuple[float, ...]
  numbers: dict[str, np.ndarray]

  @property
  def num_seeds(self) -> int:
    """S: the seeds are 0, 1, ..."""
    return self.numbers['objective'].shape[1]


def to_rows(
  cell: Cell, first_seed: int, code: str, numbers: dict[str, np.ndarray]
) -> str:
  """A cell's rows: of each rate the numbers of the seeds from `first_seed`."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  for place, rate in enumerate(cell.rates):
    lists = [' '.join(f'{x:.6g}' for x in numbers[n][place]) for n in PER_SEED]
    writer.writerow([*cell, f'{rate:.6g}', first_seed, code, *lists])
  return text.getvalue()


def append(path: pathlib.Path, rows: str) -> None:
  """Adds rows to the file, on lines of their own, below its head."""
  path.parent.mkdir(parents=True, exist_ok=True)
  text = path.read_text() if path.exists() else ','.join(COLUMNS) + '\n'
  torn = '' if text.endswith('\n') else '\n'
  with path.open('a') as file:
    file.write(('' if file.tell() else text) + torn + rows)


def read(path: pathlib.Path) -> list[dict[str, Any]]:
  """The rows of the file, those that are torn left out."""
  if not path.exists():
    return []
  with path.open() as file:
    rows = [row for row in csv.DictReader(file) if None not in row.values()]
  for row in rows:
    for name in PER_SEED:
      row[name] = np.array(row[name].split(), float)
    for name in ('length', 'first_seed'):
      row[name] = int(row[name])
  return [row for row in rows if len({len(row[n]) for n in PER_SEED}) == 1]


def outcomes(rows: list[dict[str, Any]]) -> dict[Cell, Outcome]:
  """The finished cells of known methods, by the code that each ran with last.

  Seeds that only some rates have are left out, and so are seeds behind a gap.
  """
  found: dict[Cell, dict[str, dict[int, np.ndarray]]] = {}
  codes: dict[Cell, str] = {}
  for row in rows:
    cell = Cell(*(row[name] for name in Cell._fields))
    if codes.get(cell) != row['code']:
      codes[cell], found[cell] = row['code'], {}
    seeds = found[cell].setdefault(row['rate'], {})
    values = np.stack([row[name] for name in PER_SEED])
    for place in range(values.shape[1]):
      seeds[row['first_seed'] + place] = values[:, place]
  return {
    cell: _outcome(by_rate, codes[cell])
    for cell, by_rate in found.items()
    if cell.method in methods_lib.METHODS
    and len(by_rate) == max(1, len(methods_lib.METHODS[cell.method].rates))
  }


def _outcome(by_rate: dict[str, dict[int, np.ndarray]], code: str) -> Outcome:
  count = min(
    next(s for s in range(len(seeds) + 1) if s not in seeds)
    for seeds in by_rate.values()
  )
  values = np.array(
    [[seeds[s] for s in range(count)] for seeds in by_rate.values()]
  ).reshape(len(by_rate), count, len(PER_SEED))
  numbers = dict(zip(PER_SEED, np.moveaxis(values, -1, 0), strict=True))
  return Outcome(code, tuple(map(float, by_rate)), numbers)
