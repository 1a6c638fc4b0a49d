"""Writes the table of a training config's fields into docs/trainer.md.

It is made of the table that checks them, `metalr_flax/config/schema.py`.
"""

from collections.abc import Iterator
import itertools

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

from metalr_flax.config import help as help_lib
from metalr_flax.config import schema

MARK = '<!-- On the site the fields are listed here. -->'
_FEW = 10  # names that are listed; more are those of a library
_HEADINGS = {'': 'The run'}


def on_page_markdown(
  markdown: str, *, page: Page, config: MkDocsConfig, files: Files
) -> str:
  """Replaces the mark in a page by the tables, one for each section."""
  del page, config, files
  if MARK not in markdown:
    return markdown
  return markdown.replace(MARK, '\n'.join(_tables()))


def _tables() -> Iterator[str]:
  names = itertools.groupby(schema.FIELDS, lambda n: n.rpartition('.')[0])
  for section, fields in names:
    yield f'### {_HEADINGS.get(section, f"`{section}`")}\n'
    yield '| field | meaning | value | default |\n|---|---|---|---|'
    yield from map(_row, fields)
    yield ''


def _row(name: str) -> str:
  field = schema.FIELDS[name]
  default = help_lib.default_text(field)
  shown = default if field.default is None else f'`{default}`'
  cells = f'`{name}`', field.meaning, _rule(name), shown
  return f'| {" | ".join(cell.replace("|", "&#124;") for cell in cells)} |'


def _rule(name: str) -> str:
  """What a field may be, with its names where they are few."""
  rule = schema.FIELDS[name].rule.text.removeprefix('must be ')
  names = schema.NAMES.get(name, ())
  if not 0 < len(names) <= _FEW:
    return rule
  return f'{rule}: {", ".join(f"`{known}`" for known in names)}'
