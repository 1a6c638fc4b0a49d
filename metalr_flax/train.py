"""The host loop: chunks of outer steps, and what is written between them.

One chunk is one device call. While the device works on a chunk, the host writes
the metrics of the one before. A chunk ends where the state is evaluated or
saved, and early enough that a signal is answered soon; where it ends changes no
bit of the result.
"""

from collections.abc import Callable, Mapping
import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from metalr_flax import build
from metalr_flax import checkpoint
from metalr_flax import console
from metalr_flax import errors
from metalr_flax import fields
from metalr_flax import interrupts
from metalr_flax import outer
from metalr_flax import recorder as recorder_lib
from metalr_flax import state as state_lib
from metalr_flax import storage
from metalr_flax import workdir as workdir_lib

_CHUNK_SECS = 1.0  # a signal waits about this long
ChunkFn = Callable[..., tuple[state_lib.MetaTrainState, outer.Chunk]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """What a run works with.

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


def run(run: Run, state: state_lib.MetaTrainState) -> None:
  """Trains from `state`, or goes on where the workdir stopped.

  Args:
    run: what the run works with.
    state: the state before the first outer step; donated.

  Raises:
    MetalrError: for each way of ending that is not the planned one; its
      `status` is the exit status.
  """
  try:
    storage.retried(lambda: storage.make_directory(run.workdir), run.workdir)
    with workdir_lib.locked(run.workdir):
      _run_locked(run, state)
  except OSError as error:
    raise errors.StorageError(
      f'{error.filename or run.workdir}: {error.strerror or error}; what was '
      f'saved before is intact: mend the storage and run the same command'
    ) from error


def _run_locked(run: Run, state: state_lib.MetaTrainState) -> None:
  workdir_lib.check_config(run.workdir, run.config, run.command)
  directory = run.workdir / workdir_lib.STATE
  found = checkpoint.find_newest(directory, state)
  storage.write_json(run.workdir / workdir_lib.CONFIG, run.config)
  if found and _is_finished(run, found.step):
    console.say(
      f'already finished at outer step {found.step}; results in '
      f'{run.workdir / workdir_lib.RESULTS}; a larger '
      f'--config.num_outer_steps continues it'
    )
    return
  storage.retried(lambda: checkpoint.clean(directory, found), directory)
  record = recorder_lib.EMPTY_RECORD
  if found:
    state, record = found.state, found.record
  with (
    checkpoint.opened(directory, found.step if found else None) as checkpoints,
    recorder_lib.opened(
      run.workdir,
      run.config,
      run.experiment,
      state,
      record,
      checkpoints.newest,
    ) as recorder,
  ):
    recorder.greet(resumed=bool(found))
    state = _loop(run, state, checkpoints, recorder, resumed=bool(found))
    recorder.finish(run.experiment.evaluate(state.params, state.model_state))


def _is_finished(run: Run, step: int) -> bool:
  try:
    text = (run.workdir / workdir_lib.RESULTS).read_text(encoding='utf-8')
    return json.loads(text)['outer_step'] == step == run.num_outer_steps
  except (OSError, ValueError, KeyError):
    return False


def _loop(
  run: Run,
  state: state_lib.MetaTrainState,
  checkpoints: checkpoint.Checkpoints,
  recorder: recorder_lib.Recorder,
  *,
  resumed: bool,
) -> state_lib.MetaTrainState:
  """Chunk after chunk until the run is done or a signal came."""
  step = int(state.step)
  saved = step if resumed else None  # the newest step that is on disk
  outer_steps = run.outer_steps()
  pace = _Pace(run)
  pending = None
  while step < run.num_outer_steps and not run.stop:
    count = pace.next_count(step)
    state, chunk = outer_steps(state, np.int32(count))
    end = step + count
    evaluation = (
      run.experiment.evaluate(state.params, state.model_state)
      if end % run.config['eval_every'] == 0
      else {}
    )
    if pending:  # while the device works on this chunk
      pace.note(recorder.record(pending))
    pending = recorder_lib.Pending(
      first=step, chunk=chunk, evaluation=evaluation
    )
    step = end
    if step % run.config['checkpoint_every'] == 0:
      recorder.record(pending)
      pending = None
      checkpoints.save(state, recorder.flush())
      saved = step
  if pending:
    recorder.record(pending)
  if saved != step:
    checkpoints.save(state, recorder.flush())
  checkpoints.wait()
  if run.stop and step < run.num_outer_steps:
    raise errors.Interrupted(
      f'{run.stop.name} at outer step {step}, state saved in {run.workdir}; '
      f'run the same command to go on'
    )
  return state


class _Pace:
  """How long the next chunk is: to the next cadence, but never too long."""

  def __init__(self, run: Run):
    self._run = run
    self._limit = 1

  def next_count(self, step: int) -> int:
    """Outer steps in the chunk that starts at `step`."""
    cadences = [self._run.config[name] for name in fields.CHUNK_ENDS]
    to_cadence = min(every - step % every for every in cadences)
    to_end = self._run.num_outer_steps - step
    return min(self._limit, to_cadence, to_end)

  def note(self, steps_per_sec: float) -> None:
    """Adapts to the rate measured: grows by doubling, up to the most."""
    affordable = int(steps_per_sec * _CHUNK_SECS)
    self._limit = max(1, min(2 * self._limit, affordable, self._run.max_rows))
