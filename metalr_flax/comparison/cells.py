"""The cells of a comparison: a cell is one method on one problem.

It holds all its learning rates and seeds: they are trained, and written, at
once.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import hashlib
import itertools
import json
from typing import Any

from metalr_flax.comparison import config as config_lib
from metalr_flax.comparison import methods


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
  """One method on one problem.

  Attributes:
    problem: its name in the config.
    optimizer: the inner optimizer's, '' where the method has none.
    method: its name in `methods.METHODS`.
    learning_rates: what it starts from, empty where the method has none.
    num_seeds: how many; seed s of the config's `seed` is `seed + s`.
    num_steps: inner updates of a run.
    digest: of everything in the config that decides the cell's numbers.
    weight_decays: one beside each of the learning rates, where a grid is of
      both; else empty.
    unseen: whether losses on unseen data are compared.
  """

  problem: str
  optimizer: str
  method: str
  learning_rates: tuple[float, ...]
  num_seeds: int
  num_steps: int
  digest: str
  weight_decays: tuple[float, ...] = ()
  unseen: bool = False

  @property
  def id(self) -> str:
    """The name of its file, without the ending."""
    return '.'.join(filter(None, (self.problem, self.optimizer, self.method)))

  @property
  def kind(self) -> methods.Kind:
    """The kind of its method."""
    return methods.METHODS[self.method].kind

  @property
  def gradient_evaluations(self) -> float:
    """What one run costs, in reverse-mode gradients of an inner batch."""
    method = methods.METHODS[self.method]
    helped = self.unseen and method.held_out
    extra = 1 / methods.HELD_OUT_EVERY if helped else 0
    return self.num_steps * (method.cost + extra)

  @property
  def cost(self) -> float:
    """Gradient evaluations an update; of a grid those of all its rates."""
    rates = len(self.learning_rates) if self.kind is methods.Kind.GRID else 1
    return rates * self.gradient_evaluations / self.num_steps

  @property
  def num_runs(self) -> int:
    """Rates times seeds."""
    return max(1, len(self.learning_rates)) * self.num_seeds


def list_cells(config: Mapping[str, Any], *, selected: bool) -> list[Cell]:
  """The cells of a resolved config, problem by problem.

  Args:
    config: as `resolve` returns it.
    selected: only those that `only` and `methods` ask for.
  """
  problems = config['problems']
  names = config['only'] if selected and config['only'] else problems
  return [
    _make_cell(config, problem, method, optimizer)
    for problem in names
    for method in (config['methods'] if selected else methods.METHODS)
    for optimizer in _optimizers(config, method)
  ]


def _optimizers(config: Mapping[str, Any], method: str) -> Iterable[str]:
  whole = methods.METHODS[method].kind is methods.Kind.WHOLE
  return [''] if whole else config['optimizers']


def _make_cell(
  config: Mapping[str, Any], problem: str, method: str, optimizer: str
) -> Cell:
  section = config['problems'][problem]
  unseen = section['objective'] == config_lib.UNSEEN
  rates, decays = _list_settings(config, section, method, optimizer)
  decides = {
    'seed': config['seed'],
    'problem': section,
    'method': method,
    'optimizer': optimizer,
    'kwargs': config['optimizers'].get(optimizer, {}),
    'learning_rates': list(rates),
  }
  if unseen:
    decides['weight_decays'] = list(decays)
  text = json.dumps(decides, sort_keys=True)
  return Cell(
    problem=problem,
    optimizer=optimizer,
    method=method,
    learning_rates=rates,
    num_seeds=section['num_seeds'],
    num_steps=section['num_steps'],
    digest=hashlib.sha256(text.encode()).hexdigest(),
    weight_decays=decays,
    unseen=unseen,
  )


def _list_settings(
  config: Mapping[str, Any],
  section: Mapping[str, Any],
  method: str,
  optimizer: str,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """The learning rates of a cell, and the weight decay beside each, if any."""
  kind = methods.METHODS[method].kind
  if kind is methods.Kind.STARTS:
    return tuple(config['initial_learning_rates']), ()
  if kind is not methods.Kind.GRID:
    return (), ()
  rates = tuple(config['learning_rates'])
  decays = section.get(config_lib.DECAYS, [])
  if not decays or not methods.takes_decay(optimizer):
    return rates, ()
  pairs = list(itertools.product(rates, decays))
  return tuple(rate for rate, _ in pairs), tuple(decay for _, decay in pairs)
