"""Checks the meta-gradient of a config against finite differences.

  python -m metalr_flax.audit --config=configs/default.py
      [--config.<field>=VALUE ...]

Everything runs in float64: the model's weights, the data, the optimizer, eta.
After a few windows of training, dF/deta of the next one is compared, for every
learned hyperparameter and group, with a central finite difference of fourth
order. Nothing is written.

Exit status: 0 where all agree to 1e-6, 1 where one does not, 2 bad flags or
config.

An approximate curvature (`none`, `subsample`) is compared with the exact
difference as well: its error is what the approximation leaves out, and it
fails. A kept Z (`meta.discount` > 0) is audited from its start.
"""

from collections.abc import Sequence
import sys
from typing import TYPE_CHECKING

from metalr_flax import console
from metalr_flax import errors

if TYPE_CHECKING:
  from metalr_flax.trainer import finite_difference

WARM_UP = 3  # windows of training before the one that is audited


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line; returns its exit status."""
  given = sys.argv[1:] if argv is None else argv
  rows: list[finite_difference.Row] = []
  status = errors.status_of(lambda: rows.extend(_audit(given)))
  return status or int(not all(row.agrees for row in rows))


def _audit(argv: Sequence[str]) -> 'list[finite_difference.Row]':
  from metalr_flax.config import flags

  config = flags.parse('metalr_flax.audit', argv, __doc__ or '').config
  if config['meta']['estimator'] == 'none':
    raise errors.ConfigError.of(
      'meta.estimator',
      'none',
      'has no meta-gradient to audit',
      'set --config.meta.estimator=forward or reverse',
    )
  from metalr_flax.trainer import finite_difference  # imports JAX

  with errors.exits_refused('task.name or model.name'):
    rows = finite_difference.audit(config, WARM_UP)
  _print(rows, finite_difference.TOLERANCE)
  return rows


def _print(rows: 'list[finite_difference.Row]', tolerance: float) -> None:
  width = max(len('hyperparameter'), *(len(row.name) for row in rows))
  console.say(
    f'{"hyperparameter".ljust(width)}  {"dF/deta":>14}  {"difference":>14}  '
    f'{"error":>8}'
  )
  for row in rows:
    console.say(
      f'{row.name.ljust(width)}  {row.gradient:14.7g}  '
      f'{row.difference:14.7g}  {row.error:8.1e}  '
      f'{"ok" if row.agrees else "FAILS"}'
    )
  failed = sum(not row.agrees for row in rows)
  console.say(
    f'{failed} of {len(rows)} differ by more than {tolerance:g}'
    if failed
    else f'all {len(rows)} agree with finite differences to {tolerance:g}'
  )


if __name__ == '__main__':
  sys.exit(main())
