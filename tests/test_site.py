"""The documentation site builds, its links lead somewhere, it needs no network.

mkdocs --strict itself refuses a link to a page that is not there, and a page
that is not in the navigation; here the pages it made are read as a browser
reads them.
"""

import functools
import html
import html.parser
import os
import pathlib
import re
import subprocess
import sys
import urllib.parse
import xml.etree.ElementTree

import pytest

import metalr_flax
from metalr_flax.config import schema

# README's test command installs no tools of the docs.
griffe = pytest.importorskip('griffe')
pytest.importorskip('mkdocs')
pytestmark = pytest.mark.thorough
ROOT = pathlib.Path(__file__).parents[1]
# What a browser loads by itself, by tag; an <a> is followed by people.
LOADED = {
  'audio': 'src', 'embed': 'src', 'iframe': 'src', 'img': 'src',
  'link': 'href', 'object': 'data', 'script': 'src', 'source': 'src',
  'track': 'src', 'video': 'src',
}  # fmt: skip


@pytest.fixture(scope='module')
def site(tmp_path_factory):
  folder = tmp_path_factory.mktemp('site')
  done = subprocess.run(
    [sys.executable, '-m', 'mkdocs', 'build', '--strict', '-d', folder],
    cwd=ROOT,
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert not done.returncode, done.stderr
  return folder


class _Page(html.parser.HTMLParser):
  def __init__(self, text):
    super().__init__()
    self.anchors, self.links, self.loaded = {''}, [], []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    values = dict(attrs)
    self.anchors |= {values.get('id', ''), values.get('name', '')}
    if tag == 'a' and values.get('href'):
      self.links.append(values['href'])
    if values.get(LOADED.get(tag)):
      self.loaded.append(values[LOADED[tag]])
    self.loaded += re.findall(
      r'[^\s,]+(?= [\d.]+[xw])', values.get('srcset', '')
    )


@functools.cache
def read(path):
  return _Page(path.read_text())


def pages(site):
  # A server shows 404.html for any address: its links begin with a slash.
  return [path for path in site.rglob('*.html') if path.name != '404.html']


def is_ours(link):
  return not link.startswith('//') and not urllib.parse.urlsplit(link).scheme


def test_every_link_leads_to_a_page_and_a_place_in_it(site):
  broken, seen = [], 0
  for path in pages(site):
    page = read(path)
    for link in filter(is_ours, [*page.links, *page.loaded]):
      file, _, anchor = urllib.parse.unquote(link).partition('#')
      target = (path.parent / file).resolve() if file else path
      if target.is_dir():
        target /= 'index.html'
      found = target.is_file()
      if found and target.suffix == '.html':
        found = anchor in read(target).anchors
      seen += 1
      if not found:
        broken.append(f'{path.relative_to(site)}: {link}')
  assert not broken
  assert seen > 1000


def test_nothing_is_loaded_from_the_network(site):
  for path in [*pages(site), site / '404.html']:
    for address in read(path).loaded:
      assert is_ours(address) or address.startswith('data:'), (path, address)
  for path in site.rglob('*.css'):
    for address in re.findall(r'url\((.*?)\)', path.read_text()):
      assert not re.match(r"""['"]?(https?:)?//""", address), (path, address)


def test_every_public_name_is_in_the_reference(site):
  text = (site / 'api.html').read_text()
  for name in metalr_flax.__all__:
    heading = rf'<h[34] id="[\w.]*\.{name}"[^>]*>\s*metalr_flax\.{name}\b'
    assert re.search(heading, text), name


def test_returns_of_public_functions_are_read_as_words():
  """A colon after their first words would make those a type."""
  package = griffe.load(
    'metalr_flax',
    search_paths=[ROOT],
    docstring_parser='google',
    docstring_options={
      'returns_multiple_items': False,
      'returns_named_value': False,
    },
  )
  for name in metalr_flax.__all__:
    path = f'{getattr(metalr_flax, name).__module__}.{name}'
    found = package[path.removeprefix('metalr_flax.')]
    for one in (found, *(found.functions if found.is_class else {}).values()):
      if not one.docstring:
        continue
      for section in one.docstring.parsed:
        if section.kind is griffe.DocstringSectionKind.returns:
          types = [str(item.annotation) for item in section.value]
          assert types == [str(one.returns)], one.path


def test_every_config_field_is_in_the_trainers_table(site):
  text = (site / 'trainer.html').read_text()
  for name, field in schema.FIELDS.items():
    row = re.search(rf'<tr>\s*<td><code>{name}</code></td>.*?</tr>', text, re.S)
    assert row, name
    assert html.escape(field.meaning, quote=False) in row[0], name


def test_drawings_have_words_and_colours_for_the_dark(site):
  drawings = {*site.glob('images/*.svg')} - {site / 'images/icon.svg'}
  assert drawings
  for path in drawings:
    root = xml.etree.ElementTree.parse(path).getroot()
    assert all(root.findtext(f'{{*}}{name}') for name in ('title', 'desc'))
    text = path.read_text()
    assert '@media (prefers-color-scheme: dark)' in text, path
    assert not re.search('href|url\\((?!#)', text), path


def test_search_finds_pages_and_functions(site):
  index = (site / 'search/search_index.json').read_text()
  for word in ('self_tuning', 'unroll_length', 'reliability.html'):
    assert word in index


def test_the_pages_show_no_markup_left_over(site):
  for path in pages(site):
    text = re.sub(
      r'<(pre|code|script)\b.*?</\1>', '', path.read_text(), flags=re.S
    )
    assert '```' not in text, path
    assert ':::' not in text, path
    assert not re.search(r'\]\(\S+\)', text), path
