"""Trains a model while learning its optimizer's hyperparameters.

  python -m metalr_flax.main --config=configs/default.py
      [--config.<field>=VALUE ...] [--workdir=DIR]
      [--distributed [--coordinator=HOST:PORT --num_processes=N --process_id=I]]

The workdir is checkpoints/<config file's stem> unless given. The same command
again resumes a run from its newest checkpoint; a larger
--config.num_outer_steps continues a finished one, and a smaller one shortens
none.

Exit status: 0 done, 2 bad flags or config, 3 workdir refused, 4 diverged,
5 storage failed, 6 no intact checkpoint, 7 another process is gone, 75
interrupted with the state saved.
"""

from collections.abc import Sequence
import sys

from metalr_flax import errors
from metalr_flax import interrupts


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line; returns its exit status.

  Args:
    argv: the arguments after the program's name, `sys.argv`'s by default.
  """
  stop = interrupts.StopRequest().install()  # before anything takes time
  given = sys.argv[1:] if argv is None else argv
  return errors.status_of(lambda: _train(given, stop))


def _train(argv: Sequence[str], stop: interrupts.StopRequest) -> None:
  from metalr_flax.config import flags
  from metalr_flax.processes import joining
  from metalr_flax.workdir import folder

  arguments = flags.parse('metalr_flax.main', argv, __doc__ or '')
  with joining.joined(arguments, stop) as team:
    team.first(
      lambda: folder.check(
        arguments.workdir, arguments.config, arguments.command
      )
    )
    from metalr_flax.trainer import launch  # JAX: only when all is fine so far

    with errors.exits_refused('task.name or model.name'):
      launch.train(
        arguments.config,
        arguments.workdir,
        command=arguments.command,
        stop=stop,
        team=team,
      )


if __name__ == '__main__':
  sys.exit(main())
