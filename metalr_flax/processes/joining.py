"""Brings the processes of a run together, by JAX's own runtime.

No JAX is imported for a run of one process.
"""

from collections.abc import Iterator
import contextlib
import os
import threading
import time

from metalr_flax import errors
from metalr_flax import interrupts
from metalr_flax.config import cluster as cluster_lib
from metalr_flax.config import flags
from metalr_flax.processes import team as team_lib

# The processes of a job may start minutes apart: images are pulled, hosts boot.
JOIN_SECS = 300.0
# A process that has not been heard of for so long counts as gone. The heart
# beats in a thread of C++: no work of the process delays it.
HEARTBEAT_SECS = 20
_LOG_LEVEL = 'TF_CPP_MIN_LOG_LEVEL'
_LOOK_SECS = 0.2  # a signal waits about this long


@contextlib.contextmanager
def joined(
  arguments: flags.Arguments, stop: interrupts.StopRequest
) -> Iterator[team_lib.Team]:
  """Waits for the other processes; looks after them while the run goes on.

  Where one ends early or is gone, all others end too, in a bounded time.

  Args:
    arguments: of the command line; its `cluster` says where they are found.
    stop: true once a signal asked to stop.

  Raises:
    ConfigError: where they do not come together, or are not those of one run.
    LostProcessError: where one is gone.
    OtherProcessError: where one ended early.
  """
  if arguments.cluster is None:
    yield team_lib.ALONE
    return
  _join(arguments.cluster, stop)
  from metalr_flax.processes import agreement
  from metalr_flax.processes import membership

  with membership.Membership(HEARTBEAT_SECS).taking_part() as team:
    agreement.check(team, arguments.config, os.fspath(arguments.workdir))
    yield team


def _join(cluster: cluster_lib.Cluster, stop: interrupts.StopRequest) -> None:
  """Joins the others in a thread: JAX's call hears no signal."""
  from metalr_flax.processes import aborts

  failures: list[Exception] = []

  def join() -> None:
    try:
      _initialize(cluster)
    except Exception as error:  # of many kinds, by the kind of cluster
      failures.append(error)

  aborts.on_abort(lambda: aborts.end(_missing(cluster)))
  thread = threading.Thread(target=join, daemon=True)
  thread.start()
  end = time.monotonic() + JOIN_SECS
  while thread.is_alive():
    thread.join(_LOOK_SECS)
    if stop:
      raise _given_up(
        errors.Interrupted(
          f'{stop.name} before all processes were there; nothing was begun'
        )
      )
    if time.monotonic() > end:
      raise _given_up(_missing(cluster))
  if failures:
    raise _refused(cluster, failures[0]) from failures[0]


def _initialize(cluster: cluster_lib.Cluster) -> None:
  # Errors of the service alone; 1, warnings too, is JAX's own setting.
  if os.environ.get(_LOG_LEVEL, '1') == '1':
    os.environ[_LOG_LEVEL] = '2'
  import jax

  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  # Signals are ours: JAX's service would take SIGTERM over.
  jax.config.update('jax_enable_preemption_service', False)
  # When a process is gone, the others find out and say so, see `membership`;
  # otherwise JAX would abort them.
  jax.config.update('jax_enable_recoverability', True)
  jax.distributed.initialize(
    coordinator_address=cluster.coordinator,
    num_processes=cluster.num_processes,
    process_id=cluster.process_id,
    cluster_detection_method='deactivate' if cluster.coordinator else None,
    # At its end JAX would abort the process.
    initialization_timeout=int(JOIN_SECS) + 600,
    heartbeat_timeout_seconds=HEARTBEAT_SECS,
  )


def _given_up(error: errors.MetalrError) -> errors.MetalrError:
  """The same error; the command ends without JAX's thread that still waits."""
  from metalr_flax.processes import aborts

  aborts.skip_finalization(error.status)
  return error


def _missing(cluster: cluster_lib.Cluster) -> errors.ConfigError:
  if not cluster.coordinator:
    return errors.ConfigError(
      f'distributed: not all processes of the cluster came together within '
      f'{JOIN_SECS:g} s; start them all'
    )
  return errors.ConfigError.of(
    'coordinator',
    cluster.coordinator,
    f'process 0 does not answer there with all {cluster.num_processes} '
    f'processes, after {JOIN_SECS:g} s',
    'start all of them with its address, each with its own --process_id=',
  )


def _refused(
  cluster: cluster_lib.Cluster, error: Exception
) -> errors.ConfigError:
  text = errors.text_of(error).partition('\n')[0]
  if cluster.coordinator:
    return errors.ConfigError.of(
      'coordinator',
      cluster.coordinator,
      f'cannot be joined ({text})',
      'give a free port of the host of process 0',
    )
  return errors.ConfigError(
    f'distributed: no cluster is found in the environment ({text}); give '
    f'--coordinator=HOST:PORT --num_processes=N --process_id=I'
  )
