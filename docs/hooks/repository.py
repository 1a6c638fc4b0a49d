"""Shows on the site what pages link to outside of docs/, as GitHub does.

A Markdown file becomes a page, a Python file a page with its source, any other
file (a picture) is copied. No file is there twice: the pages are made of the
files themselves, and links to them are bent while the site is built.
"""

import pathlib
import posixpath
import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

ROOT = pathlib.Path(__file__).parents[2]
_LINK = re.compile(r'(?<=\]\()([^)#\s]+)')
_ALWAYS = 'CHANGELOG.md', 'CONTRIBUTING.md'


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
  """Adds every file that a page links to, and those that these link to."""
  todo = [
    *_ALWAYS,
    *(f'docs/{file.src_uri}' for file in files.documentation_pages()),
  ]
  for path in todo:
    if files.get_file_from_path(_place(path)) is None:
      files.append(_file(path, config))
    if path.endswith('.md'):
      text = (ROOT / path).read_text()
      todo += {target for _, target in _targets(text, path)} - {*todo}
  return files


def on_page_markdown(
  markdown: str, *, page: Page, config: MkDocsConfig, files: Files
) -> str:
  """Points a page's links to where the site has their files."""
  del config, files
  here, source = page.file.src_uri, page.file.abs_src_path
  if source is None:  # a Python file
    return markdown
  path = pathlib.Path(source).relative_to(ROOT).as_posix()
  bent = dict(_targets(markdown, path))

  def bend(link: re.Match[str]) -> str:
    if link[0] not in bent:
      return link[0]
    return posixpath.relpath(_place(bent[link[0]]), posixpath.dirname(here))

  return _LINK.sub(bend, markdown)


def _targets(text: str, path: str) -> list[tuple[str, str]]:
  """The links of a page to files of ours, each with its path from the root."""
  folder = posixpath.dirname(path)
  found = [
    (link, posixpath.normpath(posixpath.join(folder, link)))
    for link in _LINK.findall(text)
    if '://' not in link
  ]
  return [(link, target) for link, target in found if (ROOT / target).is_file()]


def _place(path: str) -> str:
  """Where the site has a file of ours, as a path from docs/."""
  if path == 'README.md':
    return 'readme.md'  # to MkDocs a README is a folder's index
  source = re.sub(r'\.py$', '.md', path)
  return source.removeprefix('docs/')


def _file(path: str, config: MkDocsConfig) -> File:
  if not path.endswith('.py'):
    return File.generated(config, _place(path), abs_src_path=str(ROOT / path))
  code = (ROOT / path).read_text()
  # Source would hide the pages that explain it from who searches.
  head = '---\nsearch:\n  exclude: true\n---\n'
  page = f'{head}# {path}\n\n````python\n{code}````\n'
  return File.generated(config, _place(path), content=page)
