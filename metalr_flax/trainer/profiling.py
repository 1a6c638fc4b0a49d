"""Traces a few outer steps with JAX's profiler, once the run is warm."""

import pathlib

from absl import logging
import jax

from metalr_flax import console
from metalr_flax.engine import outer
from metalr_flax.engine import records


class Profiler:
  """Traces the outer steps that follow the first chunk of this start.

  The first chunk is a warm-up. A profiler that fails ends the trace with a
  warning, never the run.
  """

  def __init__(self, folder: pathlib.Path | None, num_steps: int):
    """Prepares a trace.

    Args:
      folder: where it is written, for TensorBoard's profile page; None where
        another process writes one and this only keeps step with it.
      num_steps: outer steps to trace; 0 for none.
    """
    self._folder = folder
    self._total = self._left = self._to_plan = num_steps
    self._is_planned = False  # the warm-up
    self._is_warm = False
    self._is_tracing = False

  def cut(self, count: int) -> int:
    """The length of a chunk, so that the trace ends at a chunk's end.

    Args:
      count: the length planned; called for each chunk in their order.
    """
    if self._is_planned and self._to_plan:
      count = min(count, self._to_plan)
      self._to_plan -= count
    self._is_planned = True
    return count

  def begin(self, state: records.MetaTrainState) -> None:
    """Starts the trace where it is due, before a chunk.

    Args:
      state: what the chunk starts from; waited for before a trace.
    """
    due = self._is_warm and self._left and not self._is_tracing
    if due and self._folder:
      jax.block_until_ready(state)
      self._start(self._folder)
    self._is_warm = True

  def end(self, chunk: outer.Chunk, count: int) -> None:
    """Ends the trace after its last chunk, which it waits for."""
    if self._is_tracing:
      self._left -= count
      if not self._left:
        jax.block_until_ready(chunk)
        self.close()

  def close(self) -> None:
    """Writes a trace that is under way."""
    if not self._is_tracing:
      return
    self._is_tracing = False
    try:
      jax.profiler.stop_trace()
    except Exception as error:  # of many kinds, by platform
      self._warn(error)
    else:
      console.say(
        f'profile of {self._total - self._left} outer steps: {self._folder}'
      )

  def _start(self, folder: pathlib.Path) -> None:
    self._is_tracing = True
    try:
      folder.mkdir(parents=True, exist_ok=True)
      jax.profiler.start_trace(folder)
    except Exception as error:  # another trace of this process among them
      self._is_tracing = False
      self._left = 0
      self._warn(error)

  def _warn(self, error: Exception) -> None:
    logging.warning(
      '%s: no profile (%s); the run goes on', self._folder,
      ' '.join(str(error).split())[:200],
    )  # fmt: skip
