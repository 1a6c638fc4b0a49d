"""The command line: flags in, a checked config and a workdir out, no JAX."""

from collections.abc import Sequence
import dataclasses
import pathlib
import shlex
import sys
import traceback
from typing import Any

from absl import flags
from ml_collections import config_flags

from metalr_flax import config as config_lib
from metalr_flax import errors

_FLAGS = ('config', 'workdir', 'help')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
  """What a command line asks for.

  Attributes:
    config: the resolved config, plain JSON values.
    workdir: where the run's files are.
    command: the same command without its workdir, for messages.
  """

  config: dict[str, Any]
  workdir: pathlib.Path
  command: str


def parse(module: str, argv: Sequence[str], usage: str) -> Arguments:
  """Reads `--config=FILE [--config.<field>=VALUE ...] [--workdir=DIR]`.

  Args:
    module: the module being run, e.g. `metalr_flax.main`.
    argv: the arguments after the program's name.
    usage: printed for `--help`, which ends the program with status 0.

  Returns:
    The checked config and the workdir, by default
    `checkpoints/<the config file's stem>`.

  Raises:
    ConfigError: for a flag, a field or a file that is wrong.
  """
  if {'-h', '--help', '-help'} & set(argv):
    print(usage)
    raise SystemExit(0)
  path = _config_path(argv)
  for name in _overridden(argv):
    config_lib.check_name(name)
  values = _parse_flags(argv, path)
  try:
    config = values.config.to_dict()
  except Exception as error:  # a placeholder without value, a bad reference
    raise errors.ConfigError(f'config={path}: {error}; complete it') from error
  workdir = values.workdir
  if workdir is None:
    workdir = pathlib.Path('checkpoints') / path.stem
  elif not workdir:
    raise errors.ConfigError('workdir=: must not be empty; leave the flag out')
  return Arguments(
    config=config_lib.resolve(config),
    workdir=pathlib.Path(workdir),
    command=_command(module, argv),
  )


def _flag(argument: str) -> tuple[str, str | None]:
  """`--name=value` or `--name` as name and value."""
  name, equals, value = argument.lstrip('-').partition('=')
  return name, value if equals else None


def _config_path(argv: Sequence[str]) -> pathlib.Path:
  """The config file named on the command line, checked to exist."""
  given = None
  for argument, following in zip(argv, [*argv, ''][1:], strict=True):
    name, value = _flag(argument)
    if argument.startswith('-') and name == 'config':
      given = following if value is None else value
  if not given:
    raise errors.ConfigError(
      'config: no config file given; e.g. --config=configs/default.py'
    )
  path = pathlib.Path(given.split(':')[0])  # file.py:argument is allowed
  if not path.is_file():
    raise errors.ConfigError.of(
      'config', path, 'no such file', 'e.g. --config=configs/default.py'
    )
  return path


def _overridden(argv: Sequence[str]) -> list[str]:
  names = [_flag(a)[0] for a in argv if a.startswith('-')]
  return [n.removeprefix('config.') for n in names if n.startswith('config.')]


def _parse_flags(argv: Sequence[str], path: pathlib.Path) -> flags.FlagValues:
  values = flags.FlagValues()
  config_flags.DEFINE_config_file('config', flag_values=values)
  flags.DEFINE_string('workdir', None, 'where to write', flag_values=values)
  try:
    rest = values([sys.argv[0], *argv])
  except flags.UnrecognizedFlagError as error:
    near = config_lib.suggest(error.flagname, _FLAGS)
    raise errors.ConfigError(
      f'--{error.flagname}: unknown flag; {near}'
    ) from error
  except flags.Error as error:
    raise _wrong_value(argv, error) from error
  except (AttributeError, KeyError, TypeError) as error:
    raise _not_in_file(argv, path, error) from error
  except Exception as error:  # whatever the user's file raises
    raise _broken_file(path, error) from error
  if rest[1:]:
    raise errors.ConfigError(
      f'{rest[1]}: unexpected argument; write --<flag>=<value>'
    )
  return values


def _wrong_value(argv: Sequence[str], error: flags.Error) -> errors.ConfigError:
  """The line for an override that does not have the field's type."""
  for argument in argv:
    name, value = _flag(argument)
    field = name.removeprefix('config.')
    if f'--{name}' in str(error) and field in config_lib.FIELDS:
      rule = config_lib.FIELDS[field].text
      return errors.ConfigError.of(
        field, value, rule, f'set --config.{field}=...'
      )
  return errors.ConfigError(f'{error}; see --help')


def _not_in_file(
  argv: Sequence[str], path: pathlib.Path, error: Exception
) -> errors.ConfigError:
  """The line for an override below a mapping that the file does not have."""
  for name in _overridden(argv):
    mapping = next(
      (m for m in config_lib.MAPPINGS if name.startswith(f'{m}.')), None
    )
    if mapping and name.rpartition('.')[2] in str(error):
      key = name.removeprefix(f'{mapping}.')
      return errors.ConfigError(
        f'{name}: not in {path}; give the whole mapping, '
        f'--config.{mapping}="{{\'{key}\': ...}}"'
      )
  return _broken_file(path, error)


def _broken_file(path: pathlib.Path, error: Exception) -> errors.ConfigError:
  lines = [
    frame.lineno
    for frame in traceback.extract_tb(error.__traceback__)
    if pathlib.Path(frame.filename).name == path.name
  ]
  where = f'{path}:{lines[-1]}' if lines else str(path)
  return errors.ConfigError(
    f'config={where}: {type(error).__name__}: {error}; '
    f'a config file defines get_config() -> ConfigDict'
  )


def _command(module: str, argv: Sequence[str]) -> str:
  kept, skip = [], False
  for argument in argv:
    name, value = _flag(argument)
    if skip:
      skip = False
    elif argument.startswith('-') and name == 'workdir':
      skip = value is None
    else:
      kept.append(argument)
  return shlex.join(['python', '-m', module, *kept])
