"""A process's part in a run of several: it exchanges, watches and leaves.

JAX's coordination service, in process 0, knows who is alive and keeps short
texts. A process that ends early leaves its error line there; one that was
killed leaves nothing, and its heart stops.
"""

from collections.abc import Iterator
import contextlib
import json
import os
import socket
import threading
import time
from typing import Any

import jax
from jax.experimental import multihost_utils

from metalr_flax import errors
from metalr_flax.processes import aborts
from metalr_flax.processes import team as team_lib

_ROUNDS, _ENDS = 'metalr_flax/rounds', 'metalr_flax/ends'
_LOOK_SECS = 1.0
# What the main thread has to end by itself, before it is taken for stuck in a
# computation of all processes.
_GRACE_SECS = 5.0
_LEAVE_SECS = 60.0  # that process 0 waits for others that end as planned
_PLANNED = (0, errors.Interrupted.status)  # all processes end so together


class Membership:
  """What this process needs to take part; made after `jax.distributed`'s."""

  def __init__(self, heartbeat_secs: float):
    """Finds the other processes.

    Args:
      heartbeat_secs: after which JAX counts a silent process as gone.
    """
    # JAX has no public name for its client. Orbax takes it from there, too.
    state: Any = getattr(multihost_utils, 'distributed').global_state  # noqa: B009
    self._client = state.client
    self._address: str = state.coordinator_address
    self._index, self._count = jax.process_index(), jax.process_count()
    self._everyone = [*range(self._count)]
    self._heartbeat_secs = heartbeat_secs
    self._round = 0
    self._verdict: errors.MetalrError | None = None
    self._is_known = threading.Event()  # the verdict
    self._is_over = threading.Event()
    self._is_alone = threading.Event()  # no other process is left
    self._status = 0

  @contextlib.contextmanager
  def taking_part(self) -> Iterator[team_lib.Team]:
    """Watches the others until this process is done, then leaves.

    Raises:
      LostProcessError: where another one is gone.
      OtherProcessError: where another one ended early.
    """
    aborts.on_abort(self._on_abort)
    for action in (self._look_for_ends, self._look_for_losses):
      threading.Thread(target=action, daemon=True).start()
    try:
      yield team_lib.Team(self._index, self._count, self._exchange)
    except Exception as error:
      reason = self._explain(error)
      own = reason is error and error is not self._verdict
      self._leave(*_status_and_line(reason), own)
      if reason is error:
        raise
      raise reason from error
    else:
      self._leave(0, '', True)

  def _explain(self, error: Exception) -> Exception:
    """What ends this process: the loss of another one, where that is behind it.

    What another one has left fails before it is known that that one is gone:
    a computation, with errors of several kinds, and inside of Orbax a save.
    """
    in_a_save = _is_not_the_systems(error.__cause__)
    if isinstance(error, errors.MetalrError) and not in_a_save:
      return error
    self._is_known.wait(self._heartbeat_secs + _GRACE_SECS)
    return self._verdict or error

  def _exchange(self, text: str) -> list[str]:
    """See `team.Exchange`."""
    number, self._round = self._round, self._round + 1
    self._client.key_value_set(f'{_ROUNDS}/{number}/{self._index}', text)
    texts = [
      self._wait_for(f'{_ROUNDS}/{number}/{index}')
      for index in range(self._count)
    ]
    # Who has begun this round has read all of the one before.
    if number:
      self._client.key_value_delete(f'{_ROUNDS}/{number - 1}/{self._index}')
    return texts

  def _wait_for(self, key: str) -> str:
    while True:
      if self._verdict:
        raise self._verdict
      try:
        return self._client.blocking_key_value_get(key, int(1e3 * _LOOK_SECS))
      except jax.errors.JaxRuntimeError as error:
        if 'DEADLINE_EXCEEDED' not in str(error):
          raise

  def _look_for_ends(self) -> None:
    """Looks for the error lines of others; in a thread."""
    while not self._is_over.wait(_LOOK_SECS):
      for index, (status, text, own) in self._ends().items():
        if own and index != self._index and status not in _PLANNED:
          self._judge(
            errors.OtherProcessError(f'process {index}: {text}', status)
          )
          return

  def _ends(self) -> dict[int, tuple[int, str, bool]]:
    """Of each process that has ended: its status, its line, whose that is."""
    try:
      found = self._client.key_value_dir_get(_ENDS)
    except jax.errors.JaxRuntimeError:  # the service is gone, as we soon are
      return {}
    return {int(key.rpartition('/')[2]): json.loads(v) for key, v in found}

  def _look_for_losses(self) -> None:
    """Asks who is alive, in a thread: process 0 until no other one is.

    The answer comes when all that are alive have asked.
    """
    while not self._is_over.is_set() or self._index == 0:
      self._is_over.wait(_LOOK_SECS)
      try:
        alive = self._client.get_live_nodes(self._everyone)
      except jax.errors.JaxRuntimeError:
        time.sleep(_LOOK_SECS)
        continue
      gone = {*self._everyone} - {*alive} - {*self._ends()}
      if gone and not self._is_over.is_set():
        self._judge(_lost(min(gone)))
      if len(alive) == 1 and self._is_over.is_set():
        self._is_alone.set()
        return

  def _judge(self, verdict: errors.MetalrError) -> None:
    """Ends this process, if its main thread does not."""
    if self._is_known.is_set():
      return
    self._verdict = verdict
    self._is_known.set()
    if not self._is_over.wait(_GRACE_SECS):
      aborts.end(verdict)

  def _leave(self, status: int, text: str, own: bool) -> None:
    """Says how this process ends. Process 0 leaves last: it has the service."""
    self._status = status
    self._is_over.set()
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      said = json.dumps([status, text, own])
      self._client.key_value_set(f'{_ENDS}/{self._index}', said)
    aborts.skip_finalization(status)
    if self._index == 0:
      self._is_alone.wait(self._heartbeat_secs + _LEAVE_SECS)
    if self._index or not self._verdict:
      with contextlib.suppress(jax.errors.JaxRuntimeError):
        jax.distributed.shutdown()

  def _on_abort(self) -> None:
    """Says so where process 0 is gone; any other abort goes on."""
    if self._is_over.is_set():
      os._exit(self._status)
    host, _, port = self._address.rpartition(':')
    try:
      socket.create_connection((host.strip('[]'), int(port)), 1.0).close()
    except OSError:
      if self._index:
        aborts.end(_lost(0))


def _is_not_the_systems(error: BaseException | None) -> bool:
  """Whether it is an OSError that another exception was turned into."""
  return isinstance(error, OSError) and error.errno is None


def _status_and_line(error: Exception) -> tuple[int, str]:
  if isinstance(error, errors.MetalrError):
    return error.status, str(error)
  return 1, f'{type(error).__name__}: {errors.text_of(error)}'


def _lost(index: int) -> errors.LostProcessError:
  return errors.LostProcessError(
    f'process {index} is gone: it was killed, or its host or the network '
    f'failed; run the same command in all processes to go on from the newest '
    f'checkpoint'
  )
