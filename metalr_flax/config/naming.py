"""Names a run's folder after the fields of its config, for sweeps."""

from collections.abc import Mapping
import re
import string
from typing import Any

from metalr_flax import errors
from metalr_flax.config import check
from metalr_flax.config import schema


def fill(template: str, config: Mapping[str, Any]) -> str:
  """A workdir's name with the config's values in the place of `{field}`.

  Args:
    template: e.g. `checkpoints/lr{inner.learning_rate}_seed{seed}`; a brace
      that belongs to the name itself is written twice.
    config: resolved, plain JSON values.

  Returns:
    The name. What a file's name should not have in a value becomes `-`.

  Raises:
    ConfigError: for a field that the config does not have, or a lone brace.
  """
  if not {'{', '}'} & {*template}:
    return template
  values = dict(schema.flatten(config))
  try:
    parts = [*string.Formatter().parse(template)]
  except ValueError as error:
    raise _refused(
      template, 'has a lone brace', "the name's own are written {{ }}"
    ) from error
  name = ''
  for literal, field, spec, conversion in parts:
    name += literal
    if field is None:
      continue
    if field not in values or spec or conversion:
      asked = f'{field}!{conversion}' if conversion else field
      asked += f':{spec}' if spec else ''
      near = check.suggest(field, values)
      raise _refused(
        template,
        f'{asked} is no field of this config',
        f"{near} (the name's own braces: {{{{ }}}})",
      )
    name += _shown(values[field])
  return name


def _shown(value: Any) -> str:
  """A value as a part of a file's name."""
  if isinstance(value, list):
    return '+'.join(map(_shown, value)) or 'none'
  if isinstance(value, (int, float)):
    return str(value)
  return re.sub(r'[^\w.+-]+', '-', str(value)).strip('.-') or 'none'


def _refused(template: str, rule: str, hint: str) -> errors.ConfigError:
  return errors.ConfigError.of('workdir', template, rule, hint)
