"""What a page says to a parser, and how it looks in headless Chromium."""

import collections
import dataclasses
import html.parser
import io
import pathlib
import shutil
import subprocess
import tempfile

import numpy as np
from PIL import Image
import pytest

CHROMIUM = next(
  filter(
    None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))
  ),
  None,
)
needs_chromium = pytest.mark.skipif(
  CHROMIUM is None, reason='no chromium here: nobody looks at the pages'
)
VOID = {'meta', 'wbr', 'br', 'hr', 'img', 'input', 'link'}


class Parser(html.parser.HTMLParser):
  """The elements of a page, which must be closed in their order.

  Attributes:
    tags: how often each is there.
    attributes: (tag, name, value) of all.
    texts: what stands between tags, scripts and styles left out.
    tables: by id, the cells' texts row by row, the head first.
  """

  def __init__(self, text):
    super().__init__()
    self.tags = collections.Counter()
    self.attributes, self.texts, self.tables = [], [], {}
    self._open, self._rows, self._glued = [], None, False
    self.feed(text)
    self.close()
    assert not self._open, self._open

  def handle_starttag(self, tag, attributes):
    self.tags[tag] += 1
    self.attributes += [(tag, *pair) for pair in attributes]
    self._glued = tag == 'wbr'  # inside a word
    if tag not in VOID:
      self._open.append(tag)
    if tag == 'table':
      self._rows = self.tables[dict(attributes)['id']] = []
    if tag == 'tr':
      self._rows.append([])
    if tag in ('td', 'th'):
      self._rows[-1].append('')

  def handle_startendtag(self, tag, attributes):
    self.tags[tag] += 1
    self.attributes += [(tag, *pair) for pair in attributes]

  def handle_endtag(self, tag):
    assert self._open.pop() == tag

  def handle_data(self, data):
    if self._open and self._open[-1] not in ('script', 'style'):
      self.texts.append(self.texts.pop() + data if self._glued else data)
    if {'td', 'th'} & {*self._open}:
      self._rows[-1][-1] += data

  @property
  def text(self):
    return ' '.join(' '.join(self.texts).split())


def parse(path):
  """A page as a parser has it: whole, of one file, with ids of their own."""
  text = path.read_text('utf-8')
  assert text.startswith('<!DOCTYPE html>')
  found = Parser(text)
  for word in ('http:', 'https:', '@import', ' src=', '<link', '<img'):
    assert word not in text, word
  for _, name, value in found.attributes:
    assert not name.startswith('on'), name
    assert not (name.endswith('href') and '//' in value), value
  assert text.count('url(') == text.count('url(#')
  ids = [value for _, name, value in found.attributes if name == 'id']
  assert len(ids) == len({*ids})
  assert found.tags['script'] == found.tags['style'] == 1
  return found


@dataclasses.dataclass(frozen=True)
class Look:
  """What Chromium made of a page.

  Attributes:
    pixels: uint8 [height, width, 3], the first screen.
  """

  pixels: np.ndarray

  def near(self, color, reach=30):
    """How many pixels have about a colour."""
    return np.sum(np.max(np.abs(self.pixels - np.array(color)), -1) < reach)


def _run(url, *flags, width, height):
  with tempfile.TemporaryDirectory() as profile:
    argv = [CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu']
    argv += ['--hide-scrollbars', f'--window-size={width},{height}']
    argv += [f'--user-data-dir={profile}', *flags, url]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def look(path, *, dark, width=390, height=1600):
  """How a page looks, in light colours or in dark ones."""
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / 'look.png'
    scheme = f'--blink-settings=preferredColorScheme={0 if dark else 1}'
    _run(
      path.as_uri(), f'--screenshot={file}', scheme, width=width, height=height
    )
    pixels = Image.open(io.BytesIO(file.read_bytes())).convert('RGB')
  return Look(np.asarray(pixels).astype(int))


def after(path, script='', *, anchor='', width=390):
  """A page after its own script, and then another, have run.

  Returns:
    The page as a parser has it, and what is wider than the window: nothing.
  """
  measure = (
    'document.body.dataset.beyond = '
    'document.documentElement.scrollWidth - innerWidth;'
  )
  copy = path.with_name('copy.html')
  text = path.read_text('utf-8')
  added = f'<script>{script};{measure}</script></body>'
  copy.write_text(text.replace('</body>', added), 'utf-8')
  try:
    dumped = _run(copy.as_uri() + anchor, '--dump-dom', width=width, height=800)
  finally:
    copy.unlink()
  found = Parser(dumped)
  (beyond,) = [v for _, n, v in found.attributes if n == 'data-beyond']
  return found, int(beyond)
