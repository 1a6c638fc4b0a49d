"""Starts a run: builds its objects, compiles its program, enters its loop.

XLA compiles in one thread while another imports what the host loop needs,
Orbax and CLU; matplotlib is imported when there is something to draw.
"""

from collections.abc import Mapping
import concurrent.futures
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metalr_flax import errors
from metalr_flax import interrupts
from metalr_flax.config import schema
from metalr_flax.engine import outer
from metalr_flax.engine import population
from metalr_flax.engine import records
from metalr_flax.engine import sharding
from metalr_flax.processes import team as team_lib
from metalr_flax.trainer import best
from metalr_flax.trainer import build
from metalr_flax.trainer import compilation_cache
from metalr_flax.trainer import feed as feed_lib
from metalr_flax.trainer import refusals

MAX_ROWS = 1000  # metrics rows held on the device


def train(
  config: Mapping[str, Any],
  workdir: pathlib.Path,
  *,
  command: str,
  stop: interrupts.StopRequest,
  team: team_lib.Team = team_lib.ALONE,
) -> None:
  """Trains as `config` says, or goes on where the run in `workdir` stopped.

  Args:
    config: resolved, as `config.resolve` returns it.
    workdir: where everything is written; README.md lists its files.
    command: the command without its workdir, for messages.
    stop: true once a signal asked the run to stop.
    team: the processes of the run, which all call this.

  Raises:
    MetalrError: for each way of ending that is not the planned one; its
      `status` is the exit status.
  """
  for name in ('dry_run', 'population') if team.count > 1 else ():
    if config[name]:
      raise errors.ConfigError.of(
        name, config[name], 'is for one process', 'leave --distributed out'
      )
  compilation_cache.enable()
  with (
    build.randomness(config),
    concurrent.futures.ThreadPoolExecutor(max_workers=1) as pool,
  ):
    experiment = build.build(config, spread=True)
    rows = max_rows(config)
    if experiment.streams:
      rows = experiment.streams.max_rows(rows)
    state, lowered = _lower_checked(config, experiment, rows)
    compiling = pool.submit(lowered.compile)
    from metalr_flax import console
    from metalr_flax.trainer import loop

    console.set_up_logging()
    if not team.leads:
      console.mute()
    run = loop.Run(
      config=config,
      workdir=workdir,
      command=command,
      experiment=experiment,
      max_rows=rows,
      outer_steps=compiling.result,
      stop=stop,
      team=team,
    )
    if config['dry_run']:
      from metalr_flax.trainer import rehearsal

      rehearsal.rehearse(run, state)
    else:
      loop.train_or_resume(run, state)


def _lower_checked(
  config: Mapping[str, Any],
  experiment: build.Experiment,
  rows: int,
) -> tuple[records.MetaTrainState, jax.stages.Lowered]:
  """The first state and the lowered chunk."""
  if getattr(jax.config, 'jax_disable_jit'):  # noqa: B009  mypy knows it not
    raise errors.ConfigError(
      'JAX_DISABLE_JIT=1: training is one compiled program; unset it'
    )
  with refusals.tracing(config):
    state = experiment.init_state()
    lowered = lower_chunk(experiment, state, rows)
    best.check_metric(config, jax.eval_shape(experiment.evaluate_state, state))
    return state, lowered


def max_rows(config: Mapping[str, Any]) -> int:
  """The longest chunk: its end is at most a cadence away."""
  return min(MAX_ROWS, *(config[name] for name in schema.CHUNK_ENDS))


def lower_chunk(
  experiment: build.Experiment, state: records.MetaTrainState, rows: int
) -> jax.stages.Lowered:
  """The run's one executable, `(state, num_steps) -> (state, chunk)`.

  With streams it has a third argument, the feed of the chunk.

  The state given to it is donated: its arrays are gone afterwards.

  Args:
    experiment: the run's objects.
    state: a state, for its shapes.
    rows: the longest chunk it can do.

  Returns:
    The program, to be compiled.
  """
  steps = population.outer_steps if experiment.members else outer.outer_steps
  outer_steps = functools.partial(
    steps, step_fn=experiment.step_fn, max_steps=rows
  )
  feed = experiment.streams.spec.of_rows(rows) if experiment.streams else None
  layout = experiment.layout
  more = [feed_lib.shardings(feed, layout)] if feed and layout else []
  options = sharding.options(layout, state, *more)
  if feed is None:
    jitted = jax.jit(outer_steps, donate_argnums=0, **options)
    return jitted.lower(state, np.int32(0))

  def fed_steps(
    state: records.MetaTrainState, num_steps: jax.Array, feed: feed_lib.Feed
  ) -> tuple[records.MetaTrainState, outer.Chunk]:
    # After a step that was not finite the feed is that of later steps.
    num_steps = jnp.where(state.step == feed.step, num_steps, 0)
    step_fn = lambda state: experiment.step_fn(state, feed)
    return outer_steps(state, num_steps, step_fn=step_fn)

  jitted = jax.jit(fed_steps, donate_argnums=0, **options)
  return jitted.lower(state, np.int32(0), feed)
