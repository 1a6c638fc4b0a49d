"""Runs a comparison: trains one cell after another and writes the results."""

from collections.abc import Mapping
import contextlib
import datetime
import pathlib
import time
from typing import Any

import jax
import numpy as np

from metalr_flax import console
from metalr_flax import errors
from metalr_flax import interrupts
from metalr_flax.comparison import arena as arena_lib
from metalr_flax.comparison import cells
from metalr_flax.comparison import contestants
from metalr_flax.comparison import outcomes
from metalr_flax.comparison import plots
from metalr_flax.comparison import progress as progress_lib
from metalr_flax.comparison import race
from metalr_flax.comparison import standings as standings_lib
from metalr_flax.comparison import standings_page
from metalr_flax.comparison import table as table_lib
from metalr_flax.comparison import unseen as unseen_lib
from metalr_flax.comparison import workdir as workdir_lib
from metalr_flax.engine import forward
from metalr_flax.workdir import files
from metalr_flax.workdir import folder

Config = Mapping[str, Any]


def compare(
  config: Config,
  workdir: pathlib.Path,
  *,
  command: str,
  stop: interrupts.StopRequest,
) -> None:
  """Trains the selected cells that are not finished, and writes the results.

  Args:
    config: resolved, as `comparison.config.resolve` returns it.
    workdir: where everything is written.
    command: the command without its workdir, for the report.
    stop: true once a signal asked to stop.

  Raises:
    MetalrError: for each way of ending that is not the planned one.
  """
  console.set_up_logging()
  selected = cells.list_cells(config, selected=True)
  with jax.threefry_partitionable(True):
    found = workdir_lib.read_cells(workdir, selected)
    waiting = [cell for cell in selected if cell.id not in found]
    # All of them before anything is written: a mistake in the last problem
    # should not show after an hour.
    arenas = {
      name: arena_lib.build_arena(config, name)
      for name in dict.fromkeys(cell.problem for cell in waiting)
    }
    with files.ending_with_status_5(workdir):
      files.make_directory(workdir)
      with folder.locked(workdir):
        workdir_lib.write_config(workdir, config)
        progress = progress_lib.Progress(len(selected))
        with contextlib.closing(progress):
          _train_cells(config, workdir, waiting, arenas, progress, stop)
          progress.wait_for('writing the results')
          _write_results(config, workdir, command)


def _train_cells(
  config: Config,
  workdir: pathlib.Path,
  waiting: list[cells.Cell],
  arenas: Mapping[str, arena_lib.Arena],
  progress: progress_lib.Progress,
  stop: interrupts.StopRequest,
) -> None:
  clock, total = Clock(waiting), progress.num_cells
  if waiting and jax.device_count() > 1:
    console.say(f'devices: {jax.device_count()}, for the runs of each cell')
  for number, cell in enumerate(waiting, total - len(waiting) + 1):
    if stop:
      raise _interrupted(stop, workdir, number - 1)
    begun = time.monotonic()
    progress.begin(number, cell)
    try:
      runs = race.train_runs(
        contestants.build_contestant(config, cell, arenas[cell.problem]),
        arenas[cell.problem],
        cell.learning_rates,
        stop,
        cell.weight_decays,
        note=progress.note,
      )
    except errors.Interrupted as error:
      raise _interrupted(stop, workdir, number - 1) from error
    except forward.NoForwardRuleError as error:
      raise errors.ConfigError(
        f'methods={cell.method}: {str(error).partition(":")[0]}; leave it out'
      ) from error
    seconds = time.monotonic() - begun
    outcome = _make_outcome(
      cell, runs, arenas[cell.problem], config['seed'], seconds
    )
    workdir_lib.write_cell(workdir, outcome)
    left = clock.left(cell, seconds)
    progress.end(left.total_seconds())
    # A terminal's line has the time that is left.
    rest = '' if console.is_terminal() else f', {left} left'
    console.say(
      f'cell {number:{len(str(total))}}/{total}  {cell.id}: '
      f'{_say_score(outcome)} | {seconds:.1f} s{rest}'
    )


def _say_score(outcome: outcomes.Outcome) -> str:
  """A cell's score: its best, or that of what its held-out losses pick."""
  name = 'unseen' if outcome.cell.unseen else 'best'
  bad, runs = int(np.sum(outcome.diverged)), outcome.diverged.size
  lost = f', {bad} of {runs} diverged' if bad else ''
  return f'{name} {outcome.scores[outcome.picked]:.4g}{lost}'


def _interrupted(
  stop: interrupts.StopRequest, workdir: pathlib.Path, done: int
) -> errors.Interrupted:
  return errors.Interrupted(
    f'{stop.name}; {done} finished cells are in '
    f'{workdir / workdir_lib.CELLS}; the same command goes on'
  )


class Clock:
  """Guesses the time that is left, from what each problem's cells took."""

  def __init__(self, waiting: list[cells.Cell]):
    self._waiting = {cell.id: cell for cell in waiting}
    self._spent: dict[str, tuple[float, float]] = {}  # seconds, work

  def left(self, cell: cells.Cell, seconds: float) -> datetime.timedelta:
    """Notes a finished cell; returns the time that the others will take."""
    del self._waiting[cell.id]
    before = self._spent.get(cell.problem, (0.0, 0.0))
    work = before[1] + _work(cell)
    self._spent[cell.problem] = (before[0] + seconds, work)
    total = sum(
      _work(other) * self._pace(other.problem)
      for other in self._waiting.values()
    )
    return datetime.timedelta(seconds=round(total))

  def _pace(self, problem: str) -> float:
    """Seconds per unit of work, from the other problems where there is none."""
    known = self._spent.get(problem)
    parts = [known] if known else list(self._spent.values())
    return sum(s for s, _ in parts) / sum(w for _, w in parts)


def _work(cell: cells.Cell) -> float:
  """The work of a cell: gradient evaluations, and a share for compiling."""
  return cell.num_runs * cell.gradient_evaluations + 20 * cell.num_steps


def _make_outcome(
  cell: cells.Cell,
  runs: race.Runs,
  arena: arena_lib.Arena,
  seed: int,
  seconds: float,
) -> outcomes.Outcome:
  unseen = arena.unseen
  with np.errstate(all='ignore'):
    learned = np.exp(np.mean(np.log(runs.learned_rates), axis=2)).T
  return outcomes.Outcome(
    cell=cell,
    first_seed=seed,
    initial_objective=float(np.mean(runs.initial_objective)),
    finals=runs.finals,
    diverged=runs.diverged,
    steps=runs.steps,
    curves=_mean_curves(runs.curves),
    learned_rates=learned,
    seconds=seconds,
    repeats=runs.repeats,
    held_out=_make_held_out(runs, unseen) if unseen else None,
    test=_make_test(runs, arena.loss_label),
  )


def _mean_curves(curves: np.ndarray) -> np.ndarray:
  """The mean over seeds of [E, R, S], inf where one is not finite, [R, E]."""
  with np.errstate(all='ignore'):
    means = np.mean(curves, axis=2, dtype=np.float64).T
  return np.where(np.isfinite(means), means, np.inf)


def _make_test(runs: race.Runs, loss_label: str) -> outcomes.Test | None:
  if runs.test_losses is None or runs.test_steps is None:
    return None
  with np.errstate(all='ignore'):
    finals = race.final_of(runs.test_losses)
  return outcomes.Test(
    finals=finals,
    steps=runs.test_steps,
    curves=_mean_curves(runs.test_losses),
    loss_label=loss_label,
  )


def _make_held_out(
  runs: race.Runs, unseen: unseen_lib.Unseen
) -> outcomes.HeldOut:
  assert runs.held_out is not None
  return outcomes.HeldOut(
    losses=np.min(runs.held_out, axis=0),
    stops=runs.steps[runs.stops],
    curves=np.mean(runs.held_out, axis=2).T,
    loss_label=unseen.loss_label,
  )


def _write_results(config: Config, workdir: pathlib.Path, command: str) -> None:
  """Writes the results of all finished cells, those of earlier commands too."""
  everything = cells.list_cells(config, selected=False)
  found = workdir_lib.read_cells(workdir, everything)
  finished = list(found.values())
  standings = standings_lib.by_objective(finished)
  table = '\n'.join(map(table_lib.make_table, standings))
  rows = table_lib.make_csv(finished)
  files.write_bytes(workdir / workdir_lib.CSV, rows.encode())
  files.write_bytes(workdir / workdir_lib.TABLE, table.encode())
  files.write_json(
    workdir / workdir_lib.SUMMARY, standings_lib.summarize_all(standings)
  )
  pictures = [
    plots.plot_all(workdir / workdir_lib.PLOTS, of_one) for of_one in standings
  ]
  standings_page.write(
    workdir,
    config,
    command,
    list(zip(standings, pictures, strict=True)),
    f'{len(found)} of {len(everything)} cells are finished',
  )
  console.say('')
  console.say(table)
  console.say(
    f'results: {workdir}; look at them: {workdir / folder.REPORT} in a browser'
  )
