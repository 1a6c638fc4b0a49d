"""Writes what a run shows as it goes: rows, TensorBoard events and lines."""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import json
import math
import os
import pathlib
import shlex
import sys
import time
from typing import Any

import jax

from metalr_flax import console
from metalr_flax import errors
from metalr_flax.config import schema
from metalr_flax.engine import bijections
from metalr_flax.engine import outer
from metalr_flax.engine import records
from metalr_flax.trainer import build
from metalr_flax.workdir import events
from metalr_flax.workdir import folder
from metalr_flax.workdir import metrics_csv

RATE = 'perf/outer_steps_per_sec'
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
) -> Iterator['Recorder']:
  """Opens a recorder that goes on where a checkpoint's record says.

  Args:
    workdir: the run's folder.
    config: the resolved config.
    experiment: the run's objects.
    state: the state the run goes on from.
    record: what `Recorder.flush` returned for that state's checkpoint.
  """
  keys = _metric_keys(experiment, state)
  path = workdir / folder.METRICS
  with metrics_csv.MetricsFile(path, keys, record) as metrics:
    events.cut_events(workdir, record['event_sizes'])
    updates = int(state.step) * config['meta']['unroll_length']
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
  """Writes a run's metrics to its files and to the console."""

  def __init__(
    self,
    workdir: pathlib.Path,
    config: Mapping[str, Any],
    experiment: build.Experiment,
    state: records.MetaTrainState,
    metrics: metrics_csv.MetricsFile,
    writer: events.metric_writers.MetricWriter,
  ):
    self._workdir = workdir
    self._config = config
    self._experiment = experiment
    self._params = events.overview(state.params)
    self._metrics = metrics
    self._writer = writer
    self._first = int(state.step)
    total = config['num_outer_steps']
    self._line = console.Progress(self._first, total, experiment.known_answers)
    self._progress = events.ReportProgress(
      num_train_steps=total, every_secs=30.0
    )
    self._progress(self._first)
    self._noted = time.monotonic()
    # What the next window uses, for the message where it fails.
    self._learned = bijections.flatten(
      bijections.constrain(state.eta, experiment.problem.bijections),
      'hyperparams',
    )

  def greet(self, *, resumed: bool) -> None:
    """Prints the parameters and the devices, and logs the config."""
    console.say(self._params)
    console.say(f'devices: {", ".join(str(d) for d in jax.devices())}')
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
    values = {f'eval/{name}': float(v) for name, v in evaluation.items()}
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
    rate = int(chunk.count) / max(now - self._noted, 1e-9)
    self._noted = now
    good = int(chunk.count) - (not chunk.finite)
    rows = self._rows(pending.first, good, chunk.rows, rate)
    if chunk.finite and pending.evaluation:
      rows[-1] |= {
        f'eval/{name}': float(value)
        for name, value in jax.device_get(pending.evaluation).items()
      }
    self._metrics.append(rows)
    self._log(rows)
    if rows:
      self._learned = {key: rows[-1][key] for key in self._learned}
    if not chunk.finite:
      raise self._diverged(pending.first + good + 1, chunk, good)
    return rate

  def flush(self) -> dict[str, Any]:
    """Puts all rows and events on the disk; returns a checkpoint's record."""
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
    # They import matplotlib, which no step has to wait for.
    from metalr_flax.trainer import run_page
    from metalr_flax.workdir import report

    self._metrics.flush()
    values = {f'eval/{n}': float(v) for n, v in evaluation.items()}
    found = report.write_learned(
      self._workdir,
      self._config,
      self._experiment.initial,
      values,
      loss_label=self._experiment.loss_label,
      known_answers=self._experiment.known_answers,
    )
    results = report.make_results(found.columns, {**values, **best})
    step = self._updates(len(found.columns['outer_step']))
    self._writer.write_scalars(step, _finals(results))
    self._writer.write_images(
      step, {'plots/learning_rate': found.picture.pixels}
    )
    self._writer.flush()
    run_page.write(self._workdir, self._config, command, found, results)
    # Last: with its results a run counts as finished.
    report.write_results(self._workdir, results)
    learned = {k: v for k, v in results.items() if k in self._learned}
    measured = {k: v for k, v in results.items() if k not in learned}
    console.say(f'done: {_shown(measured)}')
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

  def _rows(
    self, first: int, count: int, columns: Mapping[str, Any], rate: float
  ) -> list[dict[str, float]]:
    rows = []
    for i in range(count):
      step = first + i + 1
      values = {key: float(column[i]) for key, column in columns.items()}
      counts = {'outer_step': step, 'inner_step': self._updates(step)}
      rows.append({**counts, **values, RATE: rate})
    return rows

  def _log(self, rows: list[dict[str, float]]) -> None:
    every = self._config['log_every']
    for row in rows:
      step = int(row['outer_step'])
      scalars = {k: v for k, v in row.items() if '/' in k}
      evaluated = {k: v for k, v in scalars.items() if k.startswith('eval/')}
      logged = scalars if step % every == 0 else evaluated
      if logged:
        self._writer.write_scalars(self._updates(step), logged)
    if rows:
      self._line(int(rows[-1]['outer_step']), rows[-1] | self._used(rows))
      self._progress(int(rows[-1]['outer_step']))

  def _updates(self, step: int) -> int:
    """TensorBoard's axis, as that of all pictures: inner updates done."""
    return step * self._config['meta']['unroll_length']

  def _used(self, rows: list[dict[str, float]]) -> dict[str, float]:
    """The learned values that made the last row's losses.

    The row itself has those of the next window.
    """
    before = rows[-2] if len(rows) > 1 else self._learned
    return {key: float(before[key]) for key in self._learned}

  def _diverged(
    self, step: int, chunk: outer.Chunk, row: int
  ) -> errors.DivergedError:
    parts = ', '.join(n for n, finite in chunk.parts.items() if not finite)
    values = ', '.join(
      f'{key} {column[row]:g}'
      for key, column in chunk.rows.items()
      if key not in self._learned
    )
    used = ', '.join(
      f'{key.partition("/")[2]} {float(value):g} (eta {self._eta(key):g})'
      for key, value in self._learned.items()
    )
    return errors.DivergedError(
      f'outer step {step}: not finite in {parts} ({values}) with {used}'
    )

  def _eta(self, key: str) -> float:
    """The eta of a learned value that has the metric key `key`."""
    name = key.split('/')[1]
    spec = self._experiment.problem.bijections[name]
    inverse = bijections.make_bijection(spec).unconstrain
    try:
      return inverse(float(self._learned[key]))
    except (ValueError, ZeroDivisionError):
      return math.inf  # rounded to an end of its range


def _metric_keys(
  experiment: build.Experiment, state: records.MetaTrainState
) -> list[str]:
  _, metrics = jax.eval_shape(experiment.step_fn, state)
  evaluation = jax.eval_shape(experiment.evaluate_state, state)
  blank = {'meta/loss', 'meta/grad_norm'}  # columns of every estimator
  return [*({*metrics} | blank), *(f'eval/{name}' for name in evaluation), RATE]


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
