"""Says which commands there are.

  python -m metalr_flax

Exit status: 0, or 2 where a word after it asks for something else.
"""

from collections.abc import Sequence
import shlex
import sys

from metalr_flax import console
from metalr_flax import errors
from metalr_flax.config import check

_TEXT = """\
Three commands; each explains itself with --help:

  python -m metalr_flax.main --config=configs/digits_mlp.py
      trains a model and learns its optimizer's hyperparameters
  python -m metalr_flax.audit --config=configs/digits_mlp.py
      checks a config's meta-gradient against finite differences
  python -m metalr_flax.compare --config=configs/compare.py
      compares self_tuning with tuned baselines, on your problems or ours

For a training loop of your own: metalr_flax.self_tuning(tx) in Python."""
_COMMANDS = ('main', 'audit', 'compare')
_HELP = ('-h', '-help', '--help')


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the commands; returns the exit status.

  Args:
    argv: the arguments after the program's name, `sys.argv`'s by default.
  """
  given = [*(sys.argv[1:] if argv is None else argv)]
  return errors.status_of(lambda: _answer(given))


def _answer(given: list[str]) -> None:
  if not given or {*_HELP} & {*given}:
    console.say(_TEXT)
    return
  word, *rest = given
  if word.startswith('-'):  # a command's flags without the command
    word, rest = 'main', given
  name = word.removesuffix('.py').removeprefix('metalr_flax.')
  if name in _COMMANDS:
    command = shlex.join(['python', '-m', f'metalr_flax.{name}', *rest])
    raise errors.ConfigError(
      f'{given[0]}: a command is a module of its own; run {command}'
    )
  known = tuple(f'metalr_flax.{name}' for name in _COMMANDS)
  raise errors.ConfigError(
    f'{word}: unknown command; {check.suggest(word, known)}'
  )


if __name__ == '__main__':
  sys.exit(main())
