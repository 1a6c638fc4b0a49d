"""Lets docs/api.md say `::: metalr_flax.split` for `models.functional.split`.

The package resolves its public names on first use, so that reading the source,
as mkdocstrings does, finds none of them.
"""

import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

import metalr_flax


def on_page_markdown(
  markdown: str, *, page: Page, config: MkDocsConfig, files: Files
) -> str:
  """Writes a public name's real place, with the public name as its heading."""
  del page, config, files
  name = re.compile(
    r'^::: metalr_flax\.(\w+)$(?:\n    options:$)?', re.MULTILINE
  )
  return name.sub(_directive, markdown)


def _directive(name: re.Match[str]) -> str:
  if name[1] not in metalr_flax.__all__:  # a module
    return name[0]
  module = getattr(metalr_flax, name[1]).__module__
  return (
    f'::: {module}.{name[1]}\n'
    f'    options:\n'
    f'      heading: metalr_flax.{name[1]}'
  )
