"""Reads a command line into a checked config and a workdir, without JAX."""

import ast
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import os
import pathlib
import re
import runpy
import shlex
import sys
import traceback
from typing import Any

from absl import flags
from ml_collections import config_dict
from ml_collections import config_flags
from ml_collections.config_flags import config_path

from metalr_flax import errors
from metalr_flax.config import check
from metalr_flax.config import cluster as cluster_lib
from metalr_flax.config import help
from metalr_flax.config import naming
from metalr_flax.config import rules
from metalr_flax.config import schema

COMPARE = 'metalr_flax.compare'
MAIN = 'metalr_flax.main'
_FLAGS = ('config', 'workdir', 'help')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
  """The config and the workdir that a command line asks for.

  Attributes:
    config: the resolved config, plain JSON values.
    workdir: where the run's files are.
    command: the same command without its workdir, for messages.
    cluster: where the other processes are; None for a run of one process.
  """

  config: dict[str, Any]
  workdir: pathlib.Path
  command: str
  cluster: cluster_lib.Cluster | None = None


def parse(
  module: str,
  argv: Sequence[str],
  usage: str,
  *,
  check_name: Callable[[str], None] = check.check_name,
  resolve: Callable[[Mapping[str, Any]], dict[str, Any]] = check.resolve,
  fields: Mapping[str, schema.Field] = schema.FIELDS,
) -> Arguments:
  """Reads `--config=FILE [--config.<field>=VALUE ...] [--workdir=DIR]`.

  For `metalr_flax.main` also the flags of several processes, see `cluster`.

  Args:
    module: the module being run, e.g. `metalr_flax.main`.
    argv: the arguments after the program's name.
    usage: printed for `--help`, which ends the program with status 0.
    check_name: refuses the name of a field that does not exist.
    resolve: checks the whole config and makes it plain.
    fields: what such a config may have, by name.

  Returns:
    The checked config and the workdir, by default
    `checkpoints/<the config file's stem>`.

  Raises:
    ConfigError: for a flag, a field or a file that is wrong.
  """
  if {'-h', '--help', '-help'} & set(argv):
    _print(f'{usage}\n{help.fields_text(fields)}')
    raise SystemExit(0)
  given, rest = _split(argv)
  name, *argument = given.split(':', 1)  # file.py:argument is allowed
  path = _config_path(name)
  loaded = _load(path, argument, fields)
  _check_command(module, path, loaded, argv)
  for field in _overridden(rest):
    check_name(field)
  values = _parse_flags(module, rest, path, loaded, fields)
  try:
    config = values.config.to_dict()
  except Exception as error:  # a placeholder without value, a bad reference
    text = errors.text_of(error)
    raise errors.ConfigError(f'config={path}: {text}; complete it') from error
  resolved = resolve(config)
  return Arguments(
    config=resolved,
    workdir=_workdir(values.workdir, path, resolved),
    command=_command(module, argv),
    cluster=cluster_lib.read(values) if module == MAIN else None,
  )


def _print(text: str) -> None:
  """Prints a text; a closed stdout, as in `--help | true`, is no error."""
  try:
    print(text, flush=True)
  except OSError:
    sys.stdout = open(os.devnull, 'w')  # noqa: SIM115


def _check_command(
  module: str,
  path: pathlib.Path,
  config: config_dict.ConfigDict,
  argv: Sequence[str],
) -> None:
  """Refuses the config of another command, with the command that takes it."""
  wanted = COMPARE if 'problems' in config else MAIN
  if (module == COMPARE) != (wanted == COMPARE) and (
    'problems' in config or 'meta' in config
  ):
    kind = 'a comparison' if wanted == COMPARE else 'a training run'
    command = shlex.join(['python', '-m', wanted, *argv])
    raise errors.ConfigError(f'config={path}: is for {kind}; run {command}')


def _workdir(
  given: str | None, path: pathlib.Path, config: Mapping[str, Any]
) -> pathlib.Path:
  """The folder that `--workdir` names: a local one."""
  if given is None:
    return pathlib.Path('checkpoints') / path.stem
  if not given:
    raise errors.ConfigError('workdir=: must not be empty; leave the flag out')
  given = naming.fill(given, config)
  if re.match(r'[A-Za-z][A-Za-z0-9+.-]*://', given):
    raise errors.ConfigError.of(
      'workdir', given, 'must be a local folder', 'mount it, or copy it there'
    )
  local = os.path.expanduser(given)
  if local.startswith('~'):
    raise errors.ConfigError.of(
      'workdir', given, 'there is no such user', f'for a folder write ./{given}'
    )
  return pathlib.Path(local)


def _flag(argument: str) -> tuple[str, str | None]:
  """`--name=value` or `--name` as name and value; no name if it is neither."""
  match = re.fullmatch('--?([^-=][^=]*)(?:=(.*))?', argument, re.DOTALL)
  return (match[1], match[2]) if match else ('', None)


def _split(argv: Sequence[str]) -> tuple[str, list[str]]:
  """Splits off the value of `--config`, the last one, from the other flags."""
  given, rest, following = '', [], iter(argv)
  for argument in following:
    name, value = _flag(argument)
    if name != 'config':
      rest.append(argument)
    else:
      given = next(following, '') if value is None else value
  return given, rest


def _config_path(given: str) -> pathlib.Path:
  """The config file named on the command line, checked to exist."""
  if not given:
    raise errors.ConfigError(
      'config: no config file given; e.g. --config=configs/default.py'
    )
  if not os.path.isfile(given):  # False for a name the system refuses, too
    raise errors.ConfigError.of(
      'config', given, 'no such file', 'e.g. --config=configs/default.py'
    )
  return pathlib.Path(given)


def _load(
  path: pathlib.Path, argument: list[str], fields: Mapping[str, schema.Field]
) -> config_dict.ConfigDict:
  """What a config file's `get_config` returns.

  ml_collections' own loader would write byte code beside the file, and keep the
  functions of one file for the next one in the same process.
  """
  try:
    config = runpy.run_path(str(path))['get_config'](*argument)
  except (Exception, SystemExit, GeneratorExit) as error:
    raise _broken_file(path, error) from error
  if not isinstance(config, config_dict.ConfigDict):
    raise errors.ConfigError.of(
      'config',
      path,
      f'get_config() must return a ConfigDict, not {type(config).__name__}',
      'see configs/default.py',
    )
  if isinstance(config, config_dict.FrozenConfigDict):
    config = config_dict.ConfigDict(config)  # flags have to change it
  _complete(config, fields)
  return config


def _complete(
  config: config_dict.ConfigDict, fields: Mapping[str, schema.Field]
) -> None:
  """Writes the defaults into a config, so that flags can change them."""
  if ('problems' in config) != ('problems' in fields):  # of another command
    return
  with config.unlocked():
    for name, field in fields.items():
      section, _, key = name.rpartition('.')
      if section and section not in config:
        config[section] = config_dict.ConfigDict()
      holder = config[section] if section else config
      ours = type(holder) is config_dict.ConfigDict
      if ours and key not in holder and field.default is not None:
        mapping = isinstance(field.default, dict)
        holder[key] = (
          config_dict.ConfigDict(field.default) if mapping else field.default
        )


def _overridden(argv: Sequence[str]) -> list[str]:
  names = [_flag(a)[0].removeprefix('no') for a in argv]
  return [n.removeprefix('config.') for n in names if n.startswith('config.')]


def _parse_flags(
  module: str,
  argv: Sequence[str],
  path: pathlib.Path,
  config: config_dict.ConfigDict,
  fields: Mapping[str, schema.Field],
) -> flags.FlagValues:
  values, line = flags.FlagValues(), [sys.argv[0], *argv]
  try:
    config_flags.DEFINE_config_dict(
      'config', config, flag_values=values, sys_argv=line
    )
    flags.DEFINE_string('workdir', None, 'where to write', flag_values=values)
    if module == MAIN:
      cluster_lib.define(values)
    rest = values(line)
  except flags.UnrecognizedFlagError as error:
    known = (*_FLAGS, *(cluster_lib.NAMES if module == MAIN else ()))
    near = check.suggest(error.flagname, known)
    raise errors.ConfigError(
      f'--{error.flagname}: unknown flag; {near}'
    ) from error
  except flags.IllegalFlagValueError as error:
    raise _wrong_value(argv, path, config, fields, error) from error
  except (flags.Error, ValueError) as error:  # e.g. a missing value
    raise errors.ConfigError(f'{error}; see --help') from error
  except Exception as error:  # what ml_collections finds in the config
    raise _not_in_file(argv, path, error) from error
  if rest[1:]:
    raise errors.ConfigError(
      f'{rest[1]}: unexpected argument; write --<flag>=<value>'
    )
  return values


def _wrong_value(
  argv: Sequence[str],
  path: pathlib.Path,
  config: config_dict.ConfigDict,
  fields: Mapping[str, schema.Field],
  error: flags.Error,
) -> errors.ConfigError:
  """The line for an override that does not have the field's type."""
  for argument, following in zip(argv, [*argv, ''][1:], strict=True):
    name, value = _flag(argument)
    value = following if value is None else value
    ours = name.startswith('config.')
    if ours and f'--{name}={value}:' in str(error):
      field = name.removeprefix('config.')
      known = fields.get(field)
      keeps = known and known.rule.holds(_literal(value))
      if known and (known.rule is rules.MAPPING or not keeps):
        remedy = check.hint(field, value)
        return errors.ConfigError.of(field, value, known.rule.text, remedy)
      return _other_type(field, value, path, config)
  return errors.ConfigError(f'{error}; see --help')


def _literal(text: str) -> Any:
  """What a flag's text means in Python, or the text."""
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError, MemoryError, RecursionError):
    return text


def _other_type(
  field: str, value: str, path: pathlib.Path, config: config_dict.ConfigDict
) -> errors.ConfigError:
  """The line for a value whose type is only wrong beside the file's value.

  A flag has the type of the value that it overrides.
  """
  there = config_path.get_value(field, config)
  kind = type(there).__name__
  return errors.ConfigError.of(
    field,
    value,
    f'has another type than the {kind} {there} in {path}',
    'change the one there, or give such a one',
  )


def _not_in_file(
  argv: Sequence[str], path: pathlib.Path, error: Exception
) -> errors.ConfigError:
  """The line for an override of what the file does not have."""
  for name in _overridden(argv):
    if not any(part in str(error) for part in name.split('.')):
      continue
    mapping = next((m for m in schema.MAPPINGS if name.startswith(f'{m}.')), '')
    if not mapping:
      return errors.ConfigError(
        f'{name}: not in {path}; add it there (see configs/default.py)'
      )
    key = name.removeprefix(f'{mapping}.')
    return errors.ConfigError(
      f'{name}: not in {path}; give the whole mapping, '
      f'--config.{mapping}="{{\'{key}\': ...}}"'
    )
  return errors.ConfigError(
    f'config={path}: {type(error).__name__}: {error}; correct that file'
  )


def _broken_file(
  path: pathlib.Path, error: BaseException
) -> errors.ConfigError:
  lines = [
    frame.lineno
    for frame in traceback.extract_tb(error.__traceback__)
    if pathlib.Path(frame.filename).name == path.name
  ]
  where = f'{path}:{lines[-1]}' if lines else str(path)
  return errors.ConfigError(
    f'config={where}: {type(error).__name__}: {errors.text_of(error)}; '
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
