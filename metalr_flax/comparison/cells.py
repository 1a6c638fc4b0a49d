"""What a comparison trains: one method on one problem is a cell.

A cell holds all its learning rates and seeds: they are trained, and written, at
once.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import json
from typing import Any

from metalr_flax.config import schema

# With an inner optimizer: from each rate of the grid, from each initial rate,
# and without any rate.
GRID = ('constant', 'cosine')
STARTED = ('self_tuning', 'trainer')
WRAPPERS = ('mechanize', 'mechanize_cosine')
# Whole optimizers of optax.contrib: neither a rate nor an inner optimizer.
WHOLE = (
  'prodigy', 'prodigy_cosine', 'dadapt_adamw', 'dadapt_adamw_cosine', 'dog',
  'dowg', 'cocob', 'momo_adam', 'schedule_free_adamw',
)  # fmt: skip
METHODS = (*GRID, *STARTED, *WRAPPERS, *WHOLE)

UNROLL_LENGTH = 8  # inner updates in a window of the trainer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
  """One method on one problem.

  Attributes:
    problem: its name in the config.
    optimizer: the inner optimizer's, '' where the method has none.
    method: one of `METHODS`.
    learning_rates: what it starts from, empty where the method has none.
    seeds: how many; seed s of the config's `seed` is `seed + s`.
    num_steps: inner updates of a run.
    digest: of everything in the config that decides the cell's numbers.
  """

  problem: str
  optimizer: str
  method: str
  learning_rates: tuple[float, ...]
  seeds: int
  num_steps: int
  digest: str

  @property
  def id(self) -> str:
    """What its file is called."""
    return '.'.join(filter(None, (self.problem, self.optimizer, self.method)))

  @property
  def gradient_evaluations(self) -> float:
    """What one run costs, in reverse-mode gradients of an inner batch.

    The trainer adds to each gradient its exact forward tangent, counted as 1.5
    more (a step of it was measured at 1.7 to 2.7 times plain training's, see
    `benchmarks/results/meta_gradient.md`), and to each window the gradient of
    a held-out batch. `self_tuning` differentiates the optimizer's update
    alone, so that it needs no gradient of its own.
    """
    if self.method == 'trainer':
      return self.num_steps * (1 + 1.5 + 1 / UNROLL_LENGTH)
    return float(self.num_steps)

  @property
  def runs(self) -> int:
    """Rates times seeds."""
    return max(1, len(self.learning_rates)) * self.seeds


def list_cells(config: Mapping[str, Any], *, selected: bool) -> list[Cell]:
  """The cells of a resolved config, problem by problem.

  Args:
    config: as `resolve` returns it.
    selected: only those that `only` and `methods` ask for.
  """
  problems = config['problems']
  names = config['only'] if selected and config['only'] else problems
  methods = config['methods'] if selected else METHODS
  return [
    _make_cell(config, problem, method, optimizer)
    for problem in names
    for method in methods
    for optimizer in ([''] if method in WHOLE else config['optimizers'])
  ]


def trainer_config(
  config: Mapping[str, Any], problem: str, optimizer: str, seed: int
) -> dict[str, Any]:
  """The config of the trainer on a problem, its exact window mode.

  Args:
    config: a comparison's, plain values.
    problem: the problem's name.
    optimizer: the inner optimizer's name.
    seed: the run's.

  Returns:
    What `build` takes, once `config.resolve` has checked it.
  """
  section = config['problems'][problem]
  return {
    'seed': seed,
    'num_outer_steps': section['num_steps'] // UNROLL_LENGTH,
    **dict.fromkeys(schema.CADENCES, 1),
    'task': section['task'],
    'model': section['model'],
    'inner': {
      'optimizer': optimizer,
      'learning_rate': 1e-3,  # each run is given its own
      'kwargs': config['optimizers'][optimizer],
    },
    'meta': {
      'learned': {'learning_rate': 'log'},
      'unroll_length': UNROLL_LENGTH,
      'estimator': 'forward',
      'remat': 'none',
      'curvature': 'exact',
      'subsample': 0.25,
      'discount': 0.0,
      'objective': 'held_out',
      'groups': '',
      'optimizer': 'adam',
      'learning_rate': 0.05,
    },
    'threefry_partitionable': True,
  }


def _make_cell(
  config: Mapping[str, Any], problem: str, method: str, optimizer: str
) -> Cell:
  section = config['problems'][problem]
  rates: Sequence[float] = ()
  if method in GRID:
    rates = config['learning_rates']
  elif method in STARTED:
    rates = config['initial_learning_rates']
  decides = {
    'seed': config['seed'],
    'problem': section,
    'method': method,
    'optimizer': optimizer,
    'kwargs': config['optimizers'].get(optimizer, {}),
    'learning_rates': list(rates),
  }
  text = json.dumps(decides, sort_keys=True)
  return Cell(
    problem=problem,
    optimizer=optimizer,
    method=method,
    learning_rates=tuple(rates),
    seeds=section['num_seeds'],
    num_steps=section['num_steps'],
    digest=hashlib.sha256(text.encode()).hexdigest(),
  )
