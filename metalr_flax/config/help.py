"""The text of `--help`: the config's fields with defaults and meanings."""

from collections.abc import Mapping
import json
import textwrap

from metalr_flax.config import schema

_WIDTH = 80
_FEW = 10  # names that are listed


def fields_text(fields: Mapping[str, schema.Field]) -> str:
  """Every field of a config: its meaning, what it may be, its default."""
  head = (
    'Fields of a config file, each also a flag --config.<field>=VALUE. A file '
    'names what differs from the defaults [in brackets]:'
  )
  lines, section = textwrap.wrap(head, _WIDTH), '-'
  for name, field in fields.items():
    if name.rpartition('.')[0] != section:
      section = name.rpartition('.')[0]
      lines.append('')
    lines += _entry(name, field)
  return '\n'.join(lines)


def default_text(field: schema.Field) -> str:
  """A field's default as a config has it, or that there is none."""
  if field.default is None:
    return 'no default'
  if isinstance(field.default, tuple):
    return ', '.join(map(str, field.default)) or '()'
  if isinstance(field.default, dict):
    return json.dumps(field.default)
  return repr(field.default)


def _entry(name: str, field: schema.Field) -> list[str]:
  rule = field.rule.text.removeprefix('must be ')
  names = schema.NAMES.get(name, ())
  if 0 < len(names) <= _FEW:
    own = ' or package.module:Class' if rule.endswith(':Class') else ''
    rule = f'{", ".join(names)}{own}'
  text = f'{field.meaning}: {rule} [{default_text(field)}]'
  indent = ' ' * 26
  first = f'  {name:<23} '
  return textwrap.wrap(
    text, _WIDTH, initial_indent=first, subsequent_indent=indent
  )
