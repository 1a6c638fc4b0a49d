"""The text of `--help`: the config's fields with defaults and meanings."""

import json
import textwrap

from metalr_flax.config import schema

_WIDTH = 80


def fields_text() -> str:
  """Every field of a training config, its default, its meaning, its rule."""
  head = (
    'Fields of a config file, each also a flag --config.<field>=VALUE. A file '
    'names what differs from these defaults:'
  )
  lines = [*textwrap.wrap(head, _WIDTH), '']
  for name, field in schema.FIELDS.items():
    lines += _entry(name, field)
  return '\n'.join(lines)


def default_text(field: schema.Field) -> str:
  """A field's default as a config has it, or that there is none."""
  if field.default is None:
    return 'no default'
  if isinstance(field.default, (dict, str)):
    return json.dumps(field.default)
  return repr(field.default)


def _entry(name: str, field: schema.Field) -> list[str]:
  rule = field.rule.text.removeprefix('must be ')
  text = f'{field.meaning}: {rule} [{default_text(field)}]'
  indent = ' ' * 26
  first = f'  {name:<23} '
  return textwrap.wrap(
    text, _WIDTH, initial_indent=first, subsequent_indent=indent
  )
