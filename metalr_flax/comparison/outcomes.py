"""An outcome: the numbers of a finished cell, and the JSON that holds them."""

import dataclasses
from typing import Any

import numpy as np

from metalr_flax.comparison import cells
from metalr_flax.comparison import methods


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOut:
  """Held-out losses of a cell's runs: R settings, S seeds, E evaluations.

  Attributes:
    losses: each run's least held-out loss, inf where none is finite, [R, S].
    stops: inner updates done there, int [R, S].
    curves: the held-out loss at each evaluation, mean over seeds, inf where one
      is not finite, [R, E].
    loss_label: what the losses measure and their unit.
  """

  losses: np.ndarray
  stops: np.ndarray
  curves: np.ndarray
  loss_label: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Test:
  """Losses on unseen data beside a training objective.

  R settings, S seeds, T evaluations.

  They decide nothing: neither where a run stops nor which setting is picked.

  Attributes:
    finals: the mean of the last tenth of a run, inf where not finite, [R, S].
    steps: inner updates done at each evaluation, int [T].
    curves: the mean over seeds there, inf where one is not finite, [R, T].
    loss_label: what the losses measure and their unit.
  """

  finals: np.ndarray
  steps: np.ndarray
  curves: np.ndarray
  loss_label: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
  """The numbers of a finished cell: R learning rates, S seeds, E evaluations.

  Attributes:
    cell: which one.
    first_seed: seeds are this one and those that follow.
    initial_objective: before the first update, mean over seeds.
    finals: the reported objective, inf where it is not finite, [R, S]; of
      unseen data the test loss where the held-out loss was least.
    diverged: whether a run counts as diverged, bool [R, S].
    steps: inner updates done at each evaluation, int [E].
    curves: the objective there, mean over seeds, inf where one is not finite,
      [R, E].
    learned_rates: the learned learning rate there, geometric mean over seeds,
      NaN where there is none, [R, E].
    seconds: that the cell took, compilation included.
    repeats: of each learning rate the first one that its runs are the runs of,
      int [R]: its own number, unless the method begins elsewhere anyway.
    held_out: None where the training objective is compared.
    test: None where there is no unseen data, or where its loss is compared.
  """

  cell: cells.Cell
  first_seed: int
  initial_objective: float
  finals: np.ndarray
  diverged: np.ndarray
  steps: np.ndarray
  curves: np.ndarray
  learned_rates: np.ndarray
  seconds: float
  repeats: np.ndarray
  held_out: HeldOut | None = None
  test: Test | None = None

  @property
  def scores(self) -> np.ndarray:
    """Mean over the seeds; inf where one of them diverged, [R]."""
    return np.where(
      np.any(self.diverged, axis=1), np.inf, np.mean(self.finals, axis=1)
    )

  @property
  def test_scores(self) -> np.ndarray | None:
    """Loss on unseen data, mean over the seeds, as `scores`; None without."""
    if self.test is None:
      return None
    means = np.mean(self.test.finals, axis=1)
    return np.where(np.any(self.diverged, axis=1), np.inf, means)

  @property
  def distinct(self) -> np.ndarray:
    """The numbers of the learning rates whose runs repeat no other's."""
    return np.flatnonzero(self.repeats == np.arange(len(self.repeats)))

  @property
  def num_distinct(self) -> int:
    """How many runs differ, over all learning rates and seeds."""
    return len(self.distinct) * self.cell.num_seeds

  @property
  def picked(self) -> int:
    """The setting to prefer, an index below R.

    That of the least held-out loss, mean over the seeds, where there is one;
    else that of the best score.
    """
    if self.held_out is None:
      return int(np.argmin(self.scores))
    return int(np.argmin(np.mean(self.held_out.losses, axis=1)))

  @property
  def shown(self) -> int:
    """The setting that stands for the cell: the median start, or `picked`."""
    if self.cell.kind is not methods.Kind.STARTS:
      return self.picked
    order = self.distinct[np.argsort(self.scores[self.distinct], kind='stable')]
    return int(order[len(order) // 2])


def to_json(outcome: Outcome) -> dict[str, Any]:
  """An outcome as plain JSON values; null stands for what is not finite."""
  cell = outcome.cell
  values = {
    'digest': cell.digest,
    'problem': cell.problem,
    'optimizer': cell.optimizer,
    'method': cell.method,
    'learning_rates': list(cell.learning_rates),
    'first_seed': outcome.first_seed,
    'num_seeds': cell.num_seeds,
    'num_steps': cell.num_steps,
    'gradient_evaluations_per_run': cell.gradient_evaluations,
    'seconds': round(outcome.seconds, 3),
    'start': _plain(outcome.initial_objective),
    'finals': _plain(outcome.finals),
    'diverged': outcome.diverged.tolist(),
    'steps': outcome.steps.tolist(),
    'curves': _plain(outcome.curves),
    'learned': _plain(outcome.learned_rates),
    'repeats': outcome.repeats.tolist(),
  }
  if outcome.held_out is not None:
    values['weight_decays'] = list(cell.weight_decays)
    values['held_out'] = _held_out_to_json(outcome.held_out)
  if outcome.test is not None:
    values['test'] = _test_to_json(outcome.test)
  return values


def _held_out_to_json(held_out: HeldOut) -> dict[str, Any]:
  return {
    'loss': held_out.loss_label,
    'losses': _plain(held_out.losses),
    'stops': held_out.stops.tolist(),
    'curves': _plain(held_out.curves),
  }


def _test_to_json(test: Test) -> dict[str, Any]:
  return {
    'loss': test.loss_label,
    'finals': _plain(test.finals),
    'steps': test.steps.tolist(),
    'curves': _plain(test.curves),
  }


def _test_from_json(values: Any) -> Test:
  return Test(
    finals=_array(values['finals'], np.inf),
    steps=np.asarray(values['steps'], int),
    curves=_array(values['curves'], np.inf),
    loss_label=str(values['loss']),
  )


def _held_out_from_json(values: Any) -> HeldOut:
  return HeldOut(
    losses=_array(values['losses'], np.inf),
    stops=np.asarray(values['stops'], int),
    curves=_array(values['curves'], np.inf),
    loss_label=str(values['loss']),
  )


def from_json(cell: cells.Cell, values: Any) -> Outcome | None:
  """Makes an outcome of what a cell's file holds.

  Args:
    cell: what the config says of it.
    values: what the file holds.

  Returns:
    The outcome; None for one of another config, or none of ours.
  """
  if not isinstance(values, dict) or values.get('digest') != cell.digest:
    return None
  try:
    runs = (max(1, len(cell.learning_rates)), cell.num_seeds)
    outcome = Outcome(
      cell=cell,
      first_seed=int(values['first_seed']),
      initial_objective=float(_array(values['start'], np.inf)),
      finals=_array(values['finals'], np.inf),
      diverged=np.asarray(values['diverged'], bool),
      steps=np.asarray(values['steps'], int),
      curves=_array(values['curves'], np.inf),
      learned_rates=_array(values['learned'], np.nan),
      seconds=float(values['seconds']),
      # Cells of before do not say.
      repeats=np.asarray(values.get('repeats', range(runs[0])), int),
      held_out=_held_out_from_json(values['held_out']) if cell.unseen else None,
      test=_test_from_json(values['test']) if 'test' in values else None,
    )
    points = (runs[0], len(outcome.steps))
  except (KeyError, TypeError, ValueError, OverflowError):
    return None
  shapes = [outcome.finals.shape, outcome.diverged.shape]
  shapes += [outcome.curves.shape, outcome.learned_rates.shape]
  shapes += [outcome.repeats.shape]
  expected = [runs, runs, points, points, runs[:1]]
  if outcome.held_out is not None:
    held = outcome.held_out
    shapes += [held.losses.shape, held.stops.shape, held.curves.shape]
    expected += [runs, runs, points]
  if outcome.test is not None:
    shapes += [outcome.test.finals.shape, outcome.test.curves.shape]
    expected += [runs, (runs[0], len(outcome.test.steps))]
  return outcome if shapes == expected else None


def _plain(array: Any) -> Any:
  """Nested lists of floats, None where they are not finite."""
  if np.ndim(array):
    return [_plain(row) for row in array]
  return float(array) if np.isfinite(array) else None


def _array(values: Any, missing: float) -> np.ndarray:
  array = np.asarray(values, np.float64)  # None becomes NaN
  return np.where(np.isnan(array), missing, array)
