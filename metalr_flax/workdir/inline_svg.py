"""Makes figures into SVG that stands in a page, in light colours and dark.

A picture of pixels would be needed twice, once for each theme, and its letters
could not be searched or read aloud. Here every colour is a CSS variable that
the page gives two values: the figure's own, and one of the same hue for a dark
ground.
"""

import colorsys
import html
import re

from metalr_flax.workdir import drawing

_NARROW = 500  # points
_COLORFUL = 0.1  # a saturation: below it a colour is a grey
_COLOR = re.compile('#([0-9a-f]{6})')
_STYLE = re.compile('style="[^"]*"')
_STYLE_SHEET = re.compile('<style.*?</style>', re.DOTALL)  # for all of a page
_ID = re.compile(r' id="([^"]*)"')
_USED_ID = re.compile(r'url\(#([^)]*)\)|href="#([^"]*)"')
_PATH = re.compile('d="[^"]*"')
_DIGITS = re.compile(r'(\.\d\d)\d+')
_VARIABLE = re.compile(r'var\(--c([0-9a-f]{6})\)')


def draw(fig: drawing.figure.Figure, label: str) -> str:
  """A figure as an `<svg>` element without a ground of its own.

  Args:
    fig: the figure; its ground is made transparent.
    label: what it shows, for those who cannot see it.

  Returns:
    The element; `variables` has the colours that it needs.
  """
  fig.patch.set_visible(False)
  for axes in fig.axes:
    axes.patch.set_visible(False)
  file = drawing.to_svg(fig, label)
  opening, _, inside = file[file.index('<svg') :].partition('>')
  (box,) = re.findall('viewBox="([^"]*)"', opening)
  width = float(box.split()[2])
  # A narrow one fits into a phone, any other scrolls where there is no room.
  least = width if width > _NARROW else 0
  style = f'max-width:{1.7 * width:.0f}px;min-width:{least:.0f}px'
  inside = _STYLE.sub(lambda m: _COLOR.sub(r'var(--c\1)', m[0]), inside)
  inside = _shorten(_STYLE_SHEET.sub('', inside))
  return (
    f'<svg viewBox="{box}" style="{style}" role="img" '
    f'aria-label="{html.escape(label)}">{inside}'
  )


def _shorten(inside: str) -> str:
  """Leaves out what no eye sees: names, digits, blanks between parts."""
  used = {name for names in _USED_ID.findall(inside) for name in names}
  inside = _ID.sub(lambda m: m[0] if m[1] in used else '', inside)
  inside = _PATH.sub(
    lambda m: _DIGITS.sub(r'\1', ' '.join(m[0].split())), inside
  )
  return re.sub(r'>\s+<', '><', inside).strip()


def variables(page: str, *, dark: bool) -> str:
  """The CSS declarations of the colours that a page's pictures use."""
  found = sorted({*_VARIABLE.findall(page)})
  return ''.join(f'--c{c}:#{_darkened(c) if dark else c};' for c in found)


def _darkened(color: str) -> str:
  """A colour's place on a dark ground: the hue kept, light and dark turned."""
  red, green, blue = (int(color[i : i + 2], 16) / 255 for i in (0, 2, 4))
  hue, light, saturation = colorsys.rgb_to_hls(red, green, blue)
  turned = 0.92 - 0.83 * light
  if saturation > _COLORFUL:
    turned = max(turned, 0.62)
  rgb = colorsys.hls_to_rgb(hue, turned, saturation)
  return ''.join(f'{round(255 * part):02x}' for part in rgb)
