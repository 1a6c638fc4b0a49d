"""Saves a run's states, each with the rows and events that lead to it."""

from metalr_flax.engine import records
from metalr_flax.trainer import best
from metalr_flax.trainer import feeder as feeder_lib
from metalr_flax.trainer import recorder as recorder_lib
from metalr_flax.workdir import saving


class Saver:
  """Saves each step once, and the best one as well.

  Attributes:
    standing: the best evaluation so far.
  """

  def __init__(
    self,
    checkpoints: saving.Checkpoints,
    recorder: recorder_lib.Recorder,
    feeder: feeder_lib.Feeder,
    newest: int | None,
    standing: best.Standing,
  ):
    self.standing = standing
    self._checkpoints = checkpoints
    self._recorder = recorder
    self._feeder = feeder
    self._newest = newest

  def __call__(self, state: records.MetaTrainState) -> None:
    """Starts to save a state that is not there yet; waits for the device."""
    step = state.steps_done
    if step != self._newest:
      self._checkpoints.save(state, self._record(state))
      self._newest = step

  def watches(self, evaluation: records.Metrics) -> bool:
    """Whether an evaluation may be the best one yet."""
    return bool(evaluation) and bool(self.standing.metric)

  def note(
    self, state: records.MetaTrainState, evaluation: records.Metrics
  ) -> None:
    """Starts to save a state that is evaluated as the best one yet.

    Before any other save of its step: where a run goes on from a checkpoint,
    the best one up to there is on the disk.

    Args:
      state: the state evaluated, its rows written.
      evaluation: its values by name; `{}` if it was not evaluated.
    """
    if not self.watches(evaluation):
      return
    step = state.steps_done
    value = float(evaluation[self.standing.metric.removeprefix('eval/')])
    self.standing = self.standing.after(step, value)
    if self.standing.step == step:
      self._checkpoints.save(state, self._record(state), best=True)

  def last(self, state: records.MetaTrainState) -> int:
    """Saves a run's last state; returns its step when all is on the disk."""
    self(state)
    self._checkpoints.wait()
    return state.steps_done

  def _record(self, state: records.MetaTrainState) -> dict:
    return {
      **self._recorder.flush(),
      **self._feeder.record(state),
      **self.standing.record(),
    }
