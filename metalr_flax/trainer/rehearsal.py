"""A dry run: two outer steps with all that a run does, and nothing kept."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import datetime
import io
import math
import pathlib
import tempfile
import time
from typing import Any

import jax
import numpy as np

from metalr_flax import console
from metalr_flax import errors
from metalr_flax.config import schema
from metalr_flax.engine import records
from metalr_flax.trainer import loop

NUM_STEPS = 2
_ENOUGH_SECS = 0.3  # that a step's time is taken from


def rehearse(run: loop.Run, state: records.MetaTrainState) -> None:
  """Trains two outer steps in a temporary folder and says how long they take.

  Each is evaluated and saved. The second goes on from the checkpoint of the
  first, as the same command does after a stop.

  Args:
    run: what the run would work with; its workdir is not touched.
    state: the state before the first outer step; donated.

  Raises:
    MetalrError: for each way of ending that is not the planned one.
  """
  steps = _Stopwatch(run.outer_steps())
  evaluate = _Stopwatch(run.experiment.evaluate)
  with _unheard(run), tempfile.TemporaryDirectory(prefix='dry_run_') as folder:
    for length in range(1, NUM_STEPS + 1):
      loop.train_or_resume(
        dataclasses.replace(
          run,
          config=_shortened(run.config, length),
          workdir=pathlib.Path(folder) / 'run',
          experiment=dataclasses.replace(run.experiment, evaluate=evaluate),
          outer_steps=lambda: steps,
        ),
        state,
      )
      state = run.experiment.init_state()
  step_secs = min(steps.secs, _secs_per_step(steps, state, run.max_rows))
  console.say(_summary(run.config, step_secs, evaluate.secs))


def _shortened(config: Mapping[str, Any], length: int) -> dict[str, Any]:
  """The config of a run of so many outer steps, with everything in each."""
  cadences = dict.fromkeys(schema.CADENCES, 1)
  none = {'patience': 0, 'profile_steps': 0}
  return {**config, **cadences, **none, 'num_outer_steps': length}


@contextlib.contextmanager
def _unheard(run: loop.Run) -> Iterator[None]:
  """Keeps from the console what is said of files that go away."""
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  except errors.Interrupted as error:
    raise errors.Interrupted(
      f'{run.stop.name} in a dry run, of which nothing is kept'
    ) from error


class _Stopwatch:
  """Calls a function and keeps the least time that it took.

  Attributes:
    secs: that time.
    count: arguments of the last call.
  """

  def __init__(self, function: Callable[..., Any]):
    self.secs = math.inf
    self.count = 0
    self._function = function

  def __call__(self, *args: Any) -> Any:
    """Calls it, waits for what it returns, and returns that."""
    begun = time.perf_counter()
    result = jax.block_until_ready(self._function(*args))
    self.secs = min(self.secs, time.perf_counter() - begun)
    self.count = len(args)
    return result


def _secs_per_step(
  steps: _Stopwatch, state: records.MetaTrainState, max_count: int
) -> float:
  """Of chunks that double, until one takes a while: a call costs time too."""
  count, begun = 1, time.perf_counter()
  # Chunks of a stream are fed with more than a state and their length.
  while steps.count == 2 and time.perf_counter() - begun < _ENOUGH_SECS:
    count = min(2 * count, max_count)
    begun = time.perf_counter()
    state, chunk = steps(state, np.int32(count))
    if np.max(chunk.count) < count or count == max_count:
      break
  return (time.perf_counter() - begun) / count if count > 1 else math.inf


def _summary(config: Mapping[str, Any], step: float, evaluation: float) -> str:
  steps = config['num_outer_steps']
  evaluations = 1 + steps // config['eval_every']
  secs = steps * step + evaluations * evaluation
  total = datetime.timedelta(seconds=math.ceil(secs))
  return (
    f'dry run: all is well, and nothing was kept. An outer step takes about '
    f'{step:.3g} s, an evaluation {evaluation:.3g} s: about {total} for '
    f'{steps} and {evaluations} of them'
  )
