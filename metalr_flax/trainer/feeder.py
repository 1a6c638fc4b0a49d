"""Reads the next chunk's feed in a thread while the device trains on one."""

from collections.abc import Callable, Iterator, Mapping
import concurrent.futures
import contextlib
from typing import Any, NamedTuple

import jax

from metalr_flax import console
from metalr_flax import errors
from metalr_flax import interrupts
from metalr_flax.engine import records
from metalr_flax.engine import sharding
from metalr_flax.processes import team as team_lib
from metalr_flax.trainer import build
from metalr_flax.trainer import cursor as cursor_lib
from metalr_flax.trainer import feed as feed_lib
from metalr_flax.trainer import streams as streams_lib

_PATIENCE_SECS = 0.2  # a signal waits about this long for a slow stream
# Positions at the ends of chunks. A chunk's metrics are seen when the next one
# is under way and the one after that is read.
_REMEMBERED = 8
KEY = 'stream'
_OF_ALL = 'streams'  # the same for each of several processes


class Taken(NamedTuple):
  """What a chunk is trained on.

  Attributes:
    steps: its outer steps.
    feed: its feed, alone in a tuple; empty for a task in memory.
  """

  steps: int
  feed: tuple[feed_lib.Feed, ...]


class Feeder:
  """The feeds of a run, one after another; none for a task in memory."""

  def __init__(
    self,
    streams: streams_lib.Streams | None,
    config: Mapping[str, Any],
    rows: int,
    stop: interrupts.StopRequest,
    layout: sharding.Layout | None,
    team: team_lib.Team,
  ):
    """Makes a feeder that is at no position yet.

    Args:
      streams: what is read; None for a task in memory.
      config: the run's.
      rows: the longest chunk.
      stop: true once a signal asked the run to stop.
      layout: where feeds lie on several devices.
      team: the processes of the run, each with streams of its own.
    """
    self._streams = streams
    self._team = team
    self._config = config
    self._rows = rows
    self._stop = stop
    self._layout = layout
    self._pool = concurrent.futures.ThreadPoolExecutor(max_workers=1)
    self._coming: concurrent.futures.Future | None = None
    self._positions: dict[int, streams_lib.Positions] = {}
    self._fault: errors.DataError | None = None
    self._closed = False

  def begin(self, step: int, record: Mapping[str, Any]) -> None:
    """Goes to where the run goes on.

    Args:
      step: outer steps done.
      record: of the checkpoint it goes on from.

    Raises:
      DataError: where the streams end before that.
    """
    if not self._streams:
      return
    for note in self._streams.notes:
      console.say(note)
    looks = self._team.gather(self._streams.look)
    if len({*looks}) < len(looks):
      console.say(
        f'task.name={self._config["task"]["name"]}: some processes read the '
        f'same batches; let each read its share, by jax.process_index()'
      )
    if KEY in record:
      self._seek(step, record)
    self._positions[step] = self._streams.positions

  def _seek(self, step: int, record: Mapping[str, Any]) -> None:
    """Goes to this process's place, or to one as far on where there is none."""
    assert self._streams is not None
    saved = record.get(_OF_ALL, [record[KEY]])
    if len(saved) == self._team.count:
      self._streams.seek(saved[self._team.index])
      return
    console.say(
      f'the streams were read by {len(saved)} processes and are by '
      f'{self._team.count} now: each goes on after as many batches of its '
      f'share, which are other examples'
    )
    start = dict.fromkeys(self._streams.spec.per_step, cursor_lib.START)
    self._streams.seek(self._streams.later(start, step))

  def record(self, state: records.MetaTrainState) -> dict[str, Any]:
    """What the checkpoint of a state has to say of the streams; JSON values."""
    if not self._streams:
      return {}
    step = int(state.step)
    drawn = {split: int(count) for split, count in state.data_state.items()}
    for split, count in self._streams.spec.per_step.items():
      assert drawn[split] == step * count, f'{split}: {drawn} at step {step}'
    known = max(s for s in [*self._positions] if s <= step)
    positions = self._streams.later(self._positions[known], step - known)
    if self._team.count == 1:
      return {KEY: positions}
    return {KEY: positions, _OF_ALL: self._team.gather(positions)}

  def take(self, step: int, next_count: Callable[[int], int]) -> Taken | None:
    """The feed of the chunk that starts at `step`; starts to read the next.

    Args:
      step: outer steps done.
      next_count: the length of the chunk that starts at a step, 0 at the end.

    Returns:
      What to train on; None where a signal came, or where there is no more to
      read: `check` says why.
    """
    if not self._streams:
      return Taken(next_count(step), ())
    if self._coming is None:
      self._start(step, next_count)
    taken = self._wait()
    self._coming = None
    if taken:
      self._start(step + taken.steps, next_count)
    return taken

  def check(self, step: int) -> None:
    """Raises what ended the streams, if anything did.

    Args:
      step: outer steps done, their state saved.

    Raises:
      DataError: naming the split and what was wrong.
    """
    if self._fault:
      raise errors.DataError(
        f'{self._fault}; the state of outer step {step} is saved: mend the '
        f'data and run the same command'
      ) from self._fault

  def close(self) -> None:
    """Ends the thread after the batch that it reads."""
    self._closed = True
    self._pool.shutdown(wait=True, cancel_futures=True)

  def _start(self, step: int, next_count: Callable[[int], int]) -> None:
    count = next_count(step)
    if count:
      self._coming = self._pool.submit(self._read, step, count)

  def _wait(self) -> Taken | None:
    assert self._coming is not None
    while not self._stop:
      try:
        return self._coming.result(timeout=_PATIENCE_SECS)
      except concurrent.futures.TimeoutError:
        continue
      except errors.DataError as error:
        self._fault = error
        return None
    return None

  def _read(self, step: int, count: int) -> Taken | None:
    """Reads and puts on the device; in the thread."""
    assert self._streams is not None
    with build.randomness(self._config):  # JAX keeps it for each thread
      feed = self._streams.fill(
        self._rows, step, count, go_on=lambda: not self._closed
      )
      if feed is None:
        return None
      self._positions[step + count] = self._streams.positions
      for old in sorted(self._positions)[:-_REMEMBERED]:
        del self._positions[old]
      return Taken(count, (self._place(feed),))

  def _place(self, feed: feed_lib.Feed) -> feed_lib.Feed:
    """Puts a feed, or this process's share of it, on the devices."""
    if not self._layout:
      return jax.device_put(feed)
    where = feed_lib.shardings(feed, self._layout)
    if self._team.count == 1:
      return jax.device_put(feed, where)
    return jax.tree.map(jax.make_array_from_process_local_data, where, feed)


@contextlib.contextmanager
def opened(
  streams: streams_lib.Streams | None,
  config: Mapping[str, Any],
  rows: int,
  stop: interrupts.StopRequest,
  layout: sharding.Layout | None = None,
  team: team_lib.Team = team_lib.ALONE,
) -> Iterator[Feeder]:
  """Opens a run's feeder; see `Feeder` for the arguments."""
  feeder = Feeder(streams, config, rows, stop, layout, team)
  try:
    yield feeder
  finally:
    feeder.close()
