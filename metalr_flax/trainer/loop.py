"""The host loop: trains in chunks of outer steps and writes between them.

One chunk is one device call. While the device works on a chunk, the host writes
the metrics of the one before. A chunk ends where the state is evaluated or
saved, and early enough that a signal is answered soon; where it ends changes no
bit of the result.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
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
from metalr_flax.processes import team as team_lib
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
    team: the processes of the run.
  """

  config: Mapping[str, Any]
  workdir: pathlib.Path
  command: str
  experiment: build.Experiment
  max_rows: int
  outer_steps: Callable[[], ChunkFn]
  stop: interrupts.StopRequest
  team: team_lib.Team = team_lib.ALONE

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
  with (
    files.ending_with_status_5(run.workdir, assurance=assurance),
    _locked(run) as check,
  ):
    _run_locked(run, state, check)


@contextlib.contextmanager
def _locked(run: Run) -> Iterator[Callable[[], None]]:
  """Holds the workdir's lock, in process 0; yields what checks it."""
  held: list[folder.Lock] = []
  with contextlib.ExitStack() as stack:

    def lock() -> None:
      files.make_directory(run.workdir)
      held.append(stack.enter_context(folder.locked(run.workdir)))

    def check() -> None:
      for each in held:
        each.check()

    run.team.first(lock)
    yield check


def _run_locked(
  run: Run, state: records.MetaTrainState, check: Callable[[], None]
) -> None:
  team = run.team
  team.first(lambda: folder.check_config(run.workdir, run.config, run.command))
  run = _with_length(run)
  directory = run.workdir / folder.STATE
  found = checkpoint.find_newest(directory, state, team)
  standing = best.standing(run.config, found.record if found else {})
  if found and team.first(lambda: _is_finished(run, found.step, standing)):
    field = 'patience' if standing.is_stalled else 'num_outer_steps'
    console.say(
      f'already finished at outer step {found.step}; results in '
      f'{run.workdir / folder.RESULTS}; a larger '
      f'--config.{field} continues it'
    )
    return
  if found:  # refused before anything is changed
    team.first(lambda: recorder_lib.check(run.workdir, found.record))
    team.each(
      lambda: same_data.check(
        run.workdir, run.config, found.state.data_state, state.data_state
      )
    )
  team.first(lambda: _begin(run, found, standing))
  team.each(lambda: folder.check_seen(run.workdir))
  record = recorder_lib.EMPTY_RECORD
  if found:
    state, record = found.state, found.record
  with (
    saving.opened(directory, check, team) as checkpoints,
    recorder_lib.opened(
      run.workdir, run.config, run.experiment, state, record, team
    ) as recorder,
    feeder_lib.opened(
      run.experiment.streams,
      run.config,
      run.max_rows,
      run.stop,
      run.experiment.layout,
      team,
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
    evaluation = run.experiment.evaluate_state(state)

    def finish() -> None:
      check()
      recorder.finish(evaluation, run.command, save.standing.results())

    team.first(finish)


def _begin(
  run: Run, found: checkpoint.Found | None, standing: best.Standing
) -> None:
  """Writes the config, and makes room for new checkpoints."""
  files.write_json(run.workdir / folder.CONFIG, run.config)
  checkpoint.clean(run.workdir / folder.STATE, found)
  if standing.metric:
    checkpoint.sweep(run.workdir / folder.BEST)


def _with_length(run: Run) -> Run:
  """The run with the length that an earlier command gave it, if larger."""
  config = run.team.first(lambda: folder.with_length(run.workdir, run.config))
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
  """Trains chunk after chunk until the run is done or a signal came.

  A signal at one process stops all of them at the same step.
  """
  step = state.steps_done
  recorder.wait_for('compiling')
  outer_steps = run.outer_steps()
  profiler = profiling.Profiler(
    run.workdir / folder.PROFILE if run.team.leads else None,
    run.config['profile_steps'],
  )
  pace = _Pace(run)
  pending = None
  stopped = ''
  try:
    while not _is_over(run, step, save):
      taken = feeder.take(step, lambda at: profiler.cut(pace.next_count(at)))
      stopped, go_on = _agree(run, taken)
      if not taken or not go_on:
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
  recorder.wait_for('saving' if stopped else 'writing the results')
  save.last(state)
  run.team.each(lambda: feeder.check(step))
  if stopped:
    raise errors.Interrupted(
      f'{stopped} at outer step {step}, state saved in {run.workdir}; run the '
      f'same command to go on'
    )
  return state


def _agree(run: Run, taken: feeder_lib.Taken | None) -> tuple[str, bool]:
  """The signal that came at any process, and whether all can go on."""
  asked = run.stop.name if run.stop else ''
  said = run.team.gather([asked, bool(taken)])
  stopped = next((name for name, _ in said if name), '')
  return stopped, not stopped and all(fed for _, fed in said)


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
    """Adapts the length to the rate that process 0 measured.

    It at most doubles.
    """
    steps_per_sec = self._run.team.gather(steps_per_sec)[0]
    affordable = int(steps_per_sec * _CHUNK_SECS)
    self._limit = max(1, min(2 * self._limit, affordable, self._run.max_rows))
