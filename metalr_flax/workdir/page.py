"""Builds a page: one HTML file that needs no other and no network.

Every text that is given here is escaped here; what is called `html` is already
made by these functions.
"""

from collections.abc import Iterable, Mapping, Sequence
import html
import json
import math
import pathlib
import re
from typing import Any, NamedTuple

from metalr_flax.workdir import folder
from metalr_flax.workdir import inline_svg
from metalr_flax.workdir import page_style

# A page that asked for anything by its address would be refused it.
_POLICY = (
  "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
)


# Between them a long name may go on in the next line.
_PARTS = re.compile('(?<=[/.])(?=[A-Za-z])')


class Cell(NamedTuple):
  """A table's cell that is sorted by a number.

  Attributes:
    text: what it shows.
    value: the number; infinite ones come last.
  """

  text: str
  value: float


def make(title: str, lead: str, sections: Iterable[str]) -> bytes:
  """A whole page.

  Args:
    title: its heading.
    lead: a sentence below the heading.
    sections: as `section` returns them.

  Returns:
    The file's content.
  """
  body = '\n'.join(sections)
  light = inline_svg.variables(body, dark=False)
  dark = inline_svg.variables(body, dark=True)
  colors = (
    f':root {{ {light} }}\n'
    f'@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}'
  )
  return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{page_style.STYLE}{colors}</style>
</head>
<body>
<h1>{html.escape(title)}</h1>
<p class="soft">{html.escape(lead)}</p>
{body}
<script>{page_style.SCRIPT}</script>
</body>
</html>
""".encode('utf-8', 'backslashreplace')


def section(title: str, *html_parts: str) -> str:
  """A part of the page with a heading."""
  inside = '\n'.join(html_parts)
  return f'<section>\n<h2>{html.escape(title)}</h2>\n{inside}\n</section>'


def paragraph(text: str) -> str:
  """A paragraph of plain text."""
  return f'<p>{html.escape(text)}</p>'


def numbers(values: Mapping[str, str]) -> str:
  """A few values in large letters, each with its name above."""
  items = (
    f'<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>'
    for name, value in values.items()
  )
  return f'<dl class="numbers">{"".join(items)}</dl>'


def table(
  name: str, head: Sequence[str], rows: Iterable[Sequence[str | Cell]]
) -> str:
  """A table that a click on a column's head sorts; it scrolls if it is wide.

  Args:
    name: its own on this page: #sort=<name>.<column> in the page's address
      sorts it.
    head: the columns' heads.
    rows: the cells of each row.
  """
  body = [[_cell(cell) for cell in row] for row in rows]
  right = [bool(body) and all('number' in row[i] for row in body)
           for i in range(len(head))]  # fmt: skip
  heads = (
    f'<th scope="col"{" class=number" if aligned else ""}>'
    f'{html.escape(text)}</th>'
    for text, aligned in zip(head, right, strict=True)
  )
  lines = '\n'.join(f'<tr>{"".join(row)}</tr>' for row in body)
  return (
    f'<div class="wide"><table class="sortable" id="{html.escape(name)}">\n'
    f'<thead><tr>{"".join(heads)}</tr></thead>\n'
    f'<tbody>\n{lines}\n</tbody></table></div>'
  )


def _cell(cell: str | Cell) -> str:
  if isinstance(cell, str):
    return f'<td>{_PARTS.sub("<wbr>", html.escape(cell))}</td>'
  value = 'Infinity' if math.isinf(cell.value) else f'{cell.value!r}'
  return (
    f'<td class="number" data-value="{value}">{html.escape(cell.text)}</td>'
  )


def number(value: float | None) -> Cell:
  """A number's cell, four digits of it; a dash where there is none."""
  if value is None or math.isnan(value):
    return Cell('-', math.inf)
  return Cell(show(value), value)


def show(value: float) -> str:
  """A number in words: a count in full, four digits of any other."""
  return f'{value:,}' if isinstance(value, int) else f'{value:.4g}'


def picture(svg: str, caption: str = '') -> str:
  """A picture of `inline_svg.draw`, with a word on how to read it."""
  return (
    f'<figure><div class="wide">{svg}</div>'
    f'<figcaption>{html.escape(caption)}</figcaption></figure>'
  )


def command(text: str) -> str:
  """A command with a button that copies it."""
  return (
    f'<pre>{html.escape(text)}</pre>'
    f'<button type="button" class="copy" hidden>Copy</button>'
  )


def run_again(workdir: pathlib.Path, command_text: str, rest: str) -> str:
  """The part that says how to repeat what made the page.

  Args:
    workdir: the folder of the page.
    command_text: the command without its workdir.
    rest: what the same command does with the same workdir.
  """
  anew = folder.as_flag(folder.free_name(workdir))
  return section(
    'Run it again',
    command(f'{command_text} {anew}'),
    paragraph(f'With {folder.as_flag(workdir)}, {rest}.'),
  )


def folded(title: str, html_part: str) -> str:
  """What is shown on a click."""
  return (
    f'<details><summary>{html.escape(title)}</summary>{html_part}</details>'
  )


def json_text(value: Any) -> str:
  """A JSON value as a block of text."""
  return f'<pre>{html.escape(json.dumps(value, indent=2))}</pre>'


def versions(names: Mapping[str, str]) -> str:
  """Programs and devices with their versions."""
  return table('versions', ['what', 'version'], list(names.items()))


def files_list(names: Mapping[str, str]) -> str:
  """Files beside the page, with what each holds."""
  items = (
    f'<li><a href="{html.escape(name)}">{html.escape(name)}</a>: '
    f'{html.escape(what)}</li>'
    for name, what in names.items()
  )
  return f'<ul>{"".join(items)}</ul>'
