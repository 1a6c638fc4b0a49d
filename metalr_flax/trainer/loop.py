"""The host loop: trains in chunks of outer steps and writes between them.

One chunk is one device call. While the device works on a chunk, the host writes
the metrics of the one before. A chunk ends where the state is evaluated or
saved, and early enough that a signal is answered soon; where it ends changes no
bit of the result.
"""

from collections.abc import Callable, Mapping
import dataclasses
import pathlib
from typing import Any

import numpy as np

from metalr_flax import console
from metalr_flax import errors
from metalr_flax import interrupts
from metalr_flax.config import rules
from metalr_flax.config import schema
from metalr_flax.engine import outer
from metalr_flax.engine import records
from metalr_flax.trainer import best
from metalr_flax.trainer import build
from metalr_flax.trainer import feeder as feeder_lib
from metalr_flax.trainer import profiling
from metalr_flax.trainer import recorder as recorder_lib
from metalr_flax.trainer import same_data
from metalr_flax.trainer import saver
from metalr_flax.workdir import checkpoint
from metalr_flax.workdir import files
from metalr_flax.workdir import folder
from metalr_flax.workdir import saving

_CHUNK_SECS = 1.0  # a signal waits about this long
ChunkFn = Callable[..., tuple[records.MetaTrainState, outer.Chunk]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """A run: its config, its folder and the objects that it works with.

  Attributes:
    config: resolved, as `config.resolve` returns it.
    workdir: where everything is written; README.md lists its files.
    command: the command without its workdir, for messages.
    experiment: the objects that the config stands for.
    max_rows: the longest chunk.
    outer_steps: waits for, and returns, the run's one executable.
    stop: true once a signal asked the run to stop.
  """

  config: Mapping[str, Any]
  workdir: pathlib.Path
  command: str
  experiment: build.Experiment
  max_rows: int
  outer_steps: Callable[[], ChunkFn]
  stop: interrupts.StopRequest

  @property
  def num_outer_steps(self) -> int:
    """Outer steps of the whole run."""
    return self.config['num_outer_steps']


def train_or_resume(run: Run, state: records.MetaTrainState) -> None:
  """Trains from `state`, or goes on where the workdir stopped.

  Args:
    run: what the run works with.
    state: the state before the first outer step; donated.

  Raises:
    MetalrError: for each way of ending that is not the planned one; its
      `status` is the exit status.
  """
  assurance = 'what was saved before is intact: '
  with files.ending_with_status_5(run.workdir, assurance=assurance):
    files.make_directory(run.workdir)
    with folder.locked(run.workdir) as lock:
      _run_locked(run, state, lock)


def _run_locked(
  run: Run, state: records.MetaTrainState, lock: folder.Lock
) -> None:
  folder.check_config(run.workdir, run.config, run.command)
  run = _with_length(run)
  directory = run.workdir / folder.STATE
  found = checkpoint.find_newest(directory, state)
  standing = best.standing(run.config, found.record if found else {})
  if found and _is_finished(run, found.step, standing):
    field = 'patience' if standing.is_stalled else 'num_outer_steps'
    console.say(
      f'already finished at outer step {found.step}; results in '
      f'{run.workdir / folder.RESULTS}; a larger '
      f'--config.{field} continues it'
    )
    return
  if found:  # refused before anything is changed
    recorder_lib.check(run.workdir, found.record)
    same_data.check(
      run.workdir, run.config, found.state.data_state, state.data_state
    )
  files.write_json(run.workdir / folder.CONFIG, run.config)
  checkpoint.clean(directory, found)
  if standing.metric:
    checkpoint.sweep(run.workdir / folder.BEST)
  record = recorder_lib.EMPTY_RECORD
  if found:
    state, record = found.state, found.record
  with (
    saving.opened(directory, lock.check) as checkpoints,
    recorder_lib.opened(
      run.workdir, run.config, run.experiment, state, record
    ) as recorder,
    feeder_lib.opened(
      run.experiment.streams,
      run.config,
      run.max_rows,
      run.stop,
      run.experiment.layout,
    ) as feeder,
  ):
    recorder.greet(resumed=bool(found))
    feeder.begin(state.steps_done, record)
    if not found:
      recorder.write_initial(run.experiment.evaluate_state(state))
    newest = found.step if found else None
    save = saver.Saver(checkpoints, recorder, feeder, newest, standing)
    state = _loop(run, state, recorder, feeder, save)
    if state.steps_done < run.num_outer_steps:
      console.say(
        f'ending early: {save.standing.why()}; a larger --config.patience goes '
        f'on from here'
      )
    lock.check()
    recorder.finish(
      run.experiment.evaluate_state(state),
      run.command,
      save.standing.results(),
    )


def _with_length(run: Run) -> Run:
  """The run with the length that an earlier command gave it, if larger."""
  config = folder.with_length(run.workdir, run.config)
  length = config['num_outer_steps']
  if length > run.num_outer_steps:
    console.say(
      f'num_outer_steps={length}, as an earlier command had it in '
      f'{run.workdir}, not {run.num_outer_steps}; for a shorter run choose '
      f'another --workdir='
    )
  return dataclasses.replace(run, config=config)


def _is_finished(run: Run, step: int, standing: best.Standing) -> bool:
  try:
    results = files.read_json(run.workdir / folder.RESULTS)
    done = standing.is_stalled or step == run.num_outer_steps
    return done and results['outer_step'] == step
  except (OSError, ValueError, KeyError, TypeError):
    return False


def _loop(
  run: Run,
  state: records.MetaTrainState,
  recorder: recorder_lib.Recorder,
  feeder: feeder_lib.Feeder,
  save: saver.Saver,
) -> records.MetaTrainState:
  """Trains chunk after chunk until the run is done or a signal came."""
  step = state.steps_done
  recorder.wait_for('compiling')
  outer_steps = run.outer_steps()
  profiler = profiling.Profiler(
    run.workdir / folder.PROFILE, run.config['profile_steps']
  )
  pace = _Pace(run)
  pending = None
  try:
    while not _is_over(run, step, save) and not run.stop:
      taken = feeder.take(step, lambda at: profiler.cut(pace.next_count(at)))
      if not taken:
        break
      profiler.begin(state)
      state, chunk = outer_steps(state, np.int32(taken.steps), *taken.feed)
      profiler.end(chunk, taken.steps)
      end = step + taken.steps
      evaluation = (
        run.experiment.evaluate_state(state)
        if end % run.config['eval_every'] == 0
        else {}
      )
      if pending:  # while the device works on this chunk
        pace.note(recorder.write_chunk(pending))
      pending = recorder_lib.Pending(
        first=step, chunk=chunk, evaluation=evaluation
      )
      step = end
      is_due = step % run.config['checkpoint_every'] == 0
      if is_due or save.watches(evaluation):
        recorder.write_chunk(pending)
        pending = None
        save.note(state, evaluation)
        if is_due:
          save(state)
    if pending:
      recorder.write_chunk(pending)
  except errors.DivergedError as error:
    # `state` is that before the step rejected, whatever was asked for since.
    raise _keep_last_good(run, state, save, error) from error
  finally:
    profiler.close()
  recorder.wait_for('saving' if run.stop else 'writing the results')
  save.last(state)
  feeder.check(step)
  if run.stop and not _is_over(run, step, save):
    raise errors.Interrupted(
      f'{run.stop.name} at outer step {step}, state saved in {run.workdir}; '
      f'run the same command to go on'
    )
  return state


def _is_over(run: Run, step: int, save: saver.Saver) -> bool:
  return step >= run.num_outer_steps or save.standing.is_stalled


def _keep_last_good(
  run: Run,
  state: records.MetaTrainState,
  save: saver.Saver,
  error: errors.DivergedError,
) -> errors.MetalrError:
  """Saves the state of a diverged run; returns the error that says where."""
  if run.config['dry_run']:
    return error  # nothing is kept
  try:
    good = run.workdir / folder.STATE / str(save.last(state))
  except errors.StorageError as storage_error:
    return errors.StorageError(f'{error}; and {storage_error}')
  return errors.DivergedError(
    f'{error}; the last good checkpoint is {good}; lower {_to_lower(run)} in '
    f'a new --workdir='
  )


def _to_lower(run: Run) -> str:
  """What may keep a run from diverging: 'steering' has a rate of its own."""
  if run.config['meta']['optimizer'] == rules.STEERING:
    return 'meta.discount'
  return 'inner.learning_rate or meta.learning_rate'


class _Pace:
  """Chooses the length of the next chunk: to the next cadence, or shorter."""

  def __init__(self, run: Run):
    self._run = run
    self._limit = 1

  def next_count(self, step: int) -> int:
    """Outer steps in the chunk that starts at `step`."""
    cadences = [self._run.config[name] for name in schema.CHUNK_ENDS]
    to_cadence = min(every - step % every for every in cadences)
    to_end = self._run.num_outer_steps - step
    return min(self._limit, to_cadence, to_end)

  def note(self, steps_per_sec: float) -> None:
    """Adapts the length to the measured rate: it at most doubles."""
    affordable = int(steps_per_sec * _CHUNK_SECS)
    self._limit = max(1, min(2 * self._limit, affordable, self._run.max_rows))
