"""Compares self_tuning with tuned baselines, on seven problems or your own.

  python -m metalr_flax.compare --config=configs/compare.py
      [--config.only=PROBLEM,PROBLEM] [--config.methods=METHOD,METHOD]
      [--config.<field>=VALUE ...] [--workdir=DIR]

Each finished cell (a problem, an optimizer and a method, all rates and seeds)
is written to <workdir>/cells/; the same command goes on where it stopped, and
`only` and `methods` may change. The results are comparison.csv, summary.json,
table.md, plots/ and report.html, over all cells finished so far.

A problem is compared by its training objective, with the loss on its task's
evaluation data beside it where there are some, or, with `objective='unseen'`,
by the loss on unseen data alone, as in configs/compare_unseen.py: every run is
stopped where its held-out loss was least, a grid is picked by that loss, and
the test loss there is the result.

A cell records its config, not the code that made it: after a change of the code
take another workdir, or delete the cells that the change concerns.

Exit status: 0 done, 2 bad flags or config, 3 workdir refused, 5 storage failed,
75 interrupted with all finished cells saved.
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
  return errors.status_of(lambda: _compare(given, stop))


def _compare(argv: Sequence[str], stop: interrupts.StopRequest) -> None:
  from metalr_flax.comparison import config
  from metalr_flax.comparison import workdir
  from metalr_flax.config import flags

  arguments = flags.parse(
    flags.COMPARE,
    argv,
    __doc__ or '',
    check_name=config.check_name,
    resolve=config.resolve,
    fields=config.FIELDS,
  )
  workdir.check(arguments.workdir, arguments.config, arguments.command)
  from metalr_flax.comparison import run  # imports JAX: only when all is fine

  with errors.exits_refused('problems'):
    run.compare(
      arguments.config,
      arguments.workdir,
      command=arguments.command,
      stop=stop,
    )


if __name__ == '__main__':
  sys.exit(main())
