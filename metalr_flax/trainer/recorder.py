"""Writes what a run shows as it goes: rows, TensorBoard events and lines."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import json
import math
import os
import pathlib
import shlex
import sys
import time
from typing import Any, TYPE_CHECKING

import jax
import numpy as np

from metalr_flax import console
from metalr_flax import errors
from metalr_flax.config import schema
from metalr_flax.engine import outer
from metalr_flax.engine import population
from metalr_flax.engine import records
from metalr_flax.processes import team as team_lib
from metalr_flax.trainer import build
from metalr_flax.trainer import devices
from metalr_flax.trainer import member_rows
from metalr_flax.trainer import rows as rows_lib
from metalr_flax.workdir import events
from metalr_flax.workdir import folder
from metalr_flax.workdir import metrics_csv

if TYPE_CHECKING:
  from metalr_flax.workdir import report

_NESTED = (dict, list)  # in a population's results
# Before the first checkpoint there is nothing to keep.
EMPTY_RECORD: dict[str, Any] = {'metrics_size': 0, 'event_sizes': {}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pending:
  """A chunk whose metrics are still on the device.

  Attributes:
    first: outer steps done before it.
    chunk: what the device returns of it.
    evaluation: metrics of the state after it, `{}` if that was not evaluated.
  """

  first: int
  chunk: outer.Chunk
  evaluation: records.Metrics


@contextlib.contextmanager
def opened(
  workdir: pathlib.Path,
  config: Mapping[str, Any],
  experiment: build.Experiment,
  state: records.MetaTrainState,
  record: Mapping[str, Any],
  team: team_lib.Team = team_lib.ALONE,
) -> Iterator['Recorder']:
  """Opens a recorder that goes on where a checkpoint's record says.

  Args:
    workdir: the run's folder.
    config: the resolved config.
    experiment: the run's objects.
    state: the state the run goes on from.
    record: what `Recorder.flush` returned for that state's checkpoint.
    team: the processes of the run; the first of them writes.
  """
  if not team.leads:
    writer = events.no_writer()
    yield Recorder(workdir, config, experiment, state, None, writer)
    return
  keys = _metric_keys(experiment, state)
  path = workdir / folder.METRICS
  with metrics_csv.MetricsFile(
    path, keys, record, members=bool(experiment.members)
  ) as metrics:
    events.cut_events(workdir, record['event_sizes'])
    updates = state.steps_done * config['meta']['unroll_length']
    writer = events.make_writer(workdir, updates)
    recorder = Recorder(workdir, config, experiment, state, metrics, writer)
    try:
      yield recorder
    finally:
      recorder.close()
      writer.close()


def check(workdir: pathlib.Path, record: Mapping[str, Any]) -> None:
  """Refuses a checkpoint's record that does not fit what is in the workdir.

  Raises:
    WorkdirError: saying what does not.
  """
  metrics_csv.check(workdir / folder.METRICS, record)
  sizes = record.get('event_sizes')
  if not isinstance(sizes, dict) or not all(
    isinstance(size, int) for size in sizes.values()
  ):
    raise errors.WorkdirError(
      f'{workdir}: its checkpoint lacks the sizes of the event files; bring '
      f'back a copy of the checkpoint, or choose another --workdir='
    )


class Recorder:
  """Writes a run's metrics to its files and to the console.

  In a process that does not lead it reads them, and writes nothing.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    config: Mapping[str, Any],
    experiment: build.Experiment,
    state: records.MetaTrainState,
    metrics: metrics_csv.MetricsFile | None,
    writer: events.metric_writers.MetricWriter,
  ):
    self._workdir = workdir
    self._config = config
    self._experiment = experiment
    params = state.params
    if experiment.members:  # all have the same
      params = population.pick(params, 0)
    self._params = events.overview(params)
    self._metrics = metrics
    self._writer = writer
    self._first = state.steps_done
    total = config['num_outer_steps']
    self._line = console.Progress(self._first, total, experiment.known_answers)
    self._progress = events.ReportProgress(
      num_train_steps=total, every_secs=30.0
    )
    self._progress(self._first)
    self._noted = time.monotonic()
    make = member_rows.MemberRows if experiment.members else rows_lib.RunRows
    self._rows: rows_lib.Rows = make(config, experiment, state)

  def greet(self, *, resumed: bool) -> None:
    """Prints the parameters and the devices, and logs the config."""
    console.say(self._params)
    self._rows.greet()
    console.say(f'devices: {", ".join(str(d) for d in jax.devices())}')
    if mesh := devices.describe(self._experiment.layout):
      console.say(mesh)
    if self._experiment.shares_stream:
      console.say(
        f'held-out batches: {self._config["task"]["name"]} has no next_meta, '
        f'so they are the next ones of its training stream; where an example '
        f'can come twice, give it a next_meta of other examples'
      )
    text = json.dumps(self._config, indent=2)
    updates = self._updates(self._first)
    self._writer.write_texts(updates, {'config': f'```json\n{text}\n```'})
    if resumed:
      console.say(f'resuming from outer step {self._first} in {self._workdir}')
      self._line.say_answers()
      return
    self._writer.write_hparams(_hparams(self._config))
    console.say(f'starting in {self._workdir}')
    self._line.say_answers()

  def wait_for(self, what: str) -> None:
    """Says what the run does now, instead of steps."""
    self._line.wait_for(what)

  def close(self) -> None:
    """Leaves the terminal as it was."""
    self._line.close()

  def write_initial(self, evaluation: records.Metrics) -> None:
    """Writes and says the values before the first step, those of step 0.

    Not in `metrics.csv`, which has a row for each outer step.
    """
    values = {f'eval/{name}': _mean(v) for name, v in evaluation.items()}
    if values:
      self._writer.write_scalars(0, values)
      console.say(f'before the first step: {_shown(values)}')

  def write_chunk(self, pending: Pending) -> float:
    """Writes a chunk's rows, waiting for the device to have done it.

    Returns:
      The chunk's outer steps per second.

    Raises:
      DivergedError: where a step of it was not finite; the rows before that
        step are written.
    """
    chunk = jax.device_get(pending.chunk)
    now = time.monotonic()
    rate = int(np.max(chunk.count)) / max(now - self._noted, 1e-9)
    self._noted = now
    evaluation = {
      f'eval/{name}': value
      for name, value in jax.device_get(pending.evaluation).items()
    }
    rows = self._rows.make(pending.first, chunk, evaluation, rate)
    if self._metrics:
      self._metrics.append(rows)
    self._log(self._rows.shown(rows))
    self._rows.end(pending.first, chunk)
    return rate

  def flush(self) -> dict[str, Any]:
    """Puts all rows and events on the disk; returns a checkpoint's record.

    Nothing where another process writes them.
    """
    if not self._metrics:
      return {}
    self._writer.flush()
    return {
      **self._metrics.flush(),
      'event_sizes': events.event_sizes(self._workdir),
    }

  def finish(
    self,
    evaluation: records.Metrics,
    command: str,
    best: Mapping[str, Any],
  ) -> None:
    """Writes the results, the schedule, the plot and the page; says where.

    Args:
      evaluation: of the final state.
      command: the run's command without its workdir.
      best: what the results say of the best evaluation.
    """
    # It imports matplotlib, which no step has to wait for.
    from metalr_flax.workdir import report

    if self._metrics:
      self._metrics.flush()
    values = {f'eval/{name}': value for name, value in evaluation.items()}
    found, results, write_page = self._write_learned(
      jax.device_get(values), best
    )
    step = self._updates(results['outer_step'])
    self._writer.write_scalars(step, _finals(results))
    self._writer.write_images(
      step, {'plots/learning_rate': found.picture.pixels}
    )
    self._writer.flush()
    write_page(self._workdir, self._config, command, found, results)
    # Last: with its results a run counts as finished.
    report.write_results(self._workdir, results)
    numbers = {k: v for k, v in results.items() if not isinstance(v, _NESTED)}
    learned = {k: numbers.pop(k) for k in self._rows.used() if k in numbers}
    console.say(f'done: {_shown(numbers)}')
    if learned:
      console.say(f'learned at the end: {_shown(learned)}')
    logdir = _logdir(self._workdir)
    console.say(
      f'everything is in {self._workdir}: {folder.METRICS}, '
      f'{folder.RESULTS}, {folder.SCHEDULE}, {folder.PLOT}\n'
      f'look at it: {self._workdir / folder.REPORT} in a browser, or '
      f'{_tensorboard()} --logdir={shlex.quote(str(logdir))} '
      f'--host=localhost'
    )

  def _write_learned(
    self, evaluation: Mapping[str, Any], best: Mapping[str, Any]
  ) -> tuple['report.Learned', dict[str, Any], Callable[..., None]]:
    """Writes the schedule and the plot.

    Returns:
      What they are made of, the results, and what writes the page.
    """
    from metalr_flax.trainer import population_page
    from metalr_flax.trainer import run_page
    from metalr_flax.workdir import population_report
    from metalr_flax.workdir import report

    experiment = self._experiment
    kind = population_report if experiment.members else report
    if not experiment.members:
      evaluation = {key: float(value) for key, value in evaluation.items()}
    found = kind.write_learned(
      self._workdir,
      self._config,
      experiment.initial,
      evaluation,
      loss_label=experiment.loss_label,
      known_answers=experiment.known_answers,
    )
    columns = found.columns
    if experiment.members:
      results = population_report.make_results(
        self._config, columns, evaluation
      )
      return found, results, population_page.write
    results = report.make_results(columns, {**evaluation, **best})
    return found, results, run_page.write

  def _log(self, rows: list[dict[str, float]]) -> None:
    every = self._config['log_every']
    for row in rows:
      step = int(row['outer_step'])
      scalars = {k: v for k, v in row.items() if '/' in k}
      evaluated = {k: v for k, v in scalars.items() if k.startswith('eval/')}
      logged = scalars if step % every == 0 else evaluated
      if logged:
        spread = self._rows.spread(row, logged)
        self._writer.write_scalars(self._updates(step), {**logged, **spread})
    if rows:
      self._line(int(rows[-1]['outer_step']), rows[-1] | self._rows.used())
      self._progress(int(rows[-1]['outer_step']))

  def _updates(self, step: int) -> int:
    """TensorBoard's axis, as that of all pictures: inner updates done."""
    return step * self._config['meta']['unroll_length']


def _metric_keys(
  experiment: build.Experiment, state: records.MetaTrainState
) -> list[str]:
  _, metrics = jax.eval_shape(experiment.step_fn, state)
  evaluation = jax.eval_shape(experiment.evaluate_state, state)
  blank = {'meta/loss', 'meta/grad_norm'}  # columns of every estimator
  return [
    *({*metrics} | blank),
    *(f'eval/{name}' for name in evaluation),
    rows_lib.RATE,
  ]


def _finals(results: Mapping[str, Any]) -> dict[str, float]:
  """What was learned and what it gave, for the table of hyperparameters.

  It shows a run's config with the last points of its metrics: those that a
  cadence wrote are of another step.
  """
  return {
    f'final/{key}': math.nan if value is None else value
    for key, value in results.items()
    if key.startswith(('hyperparams/', 'eval/'))
  }


def _mean(value: Any) -> float:
  """A value, of a population the mean over its members."""
  return float(np.mean(np.asarray(value, np.float64)))


def _shown(values: Mapping[str, Any]) -> str:
  return '  '.join(
    f'{k} nan' if v is None else f'{k} {v:.6g}' for k, v in values.items()
  )


def _tensorboard() -> str:
  """The command as it works in a shell without the environment activated."""
  path = pathlib.Path(sys.executable).with_name('tensorboard')
  if not path.exists():
    return path.name
  within = path.is_relative_to(pathlib.Path.cwd())
  return shlex.quote(os.path.relpath(path) if within else str(path))


def _logdir(workdir: pathlib.Path) -> pathlib.Path:
  """The folder to show in TensorBoard.

  Given a folder of runs it names each and lists their metrics beside their
  hyperparameters; it does neither for a run's own folder.
  """
  runs = workdir.parent
  return runs if runs.name == 'checkpoints' else workdir


def _hparams(config: Mapping[str, Any]) -> dict[str, Any]:
  """The config's values by dotted name; what is no number is its text.

  TensorBoard keeps the first ones that a run writes: what a resumed run may
  change is left out.
  """
  may_change = {'num_outer_steps', *schema.MAY_CHANGE}
  kept = {k: v for k, v in config.items() if k not in may_change}
  return {
    name: value
    if isinstance(value, (bool, int, float, str))
    else json.dumps(value)
    for name, value in schema.flatten(kept)
    if value != {}
  }
