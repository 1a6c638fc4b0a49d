"""The tables of `large_model.py`."""

from collections.abc import Mapping
from typing import Any

import jax

GB, MS = 1e9, 1e-3


def memory_table(billion: dict[str, Any]) -> list[str]:
  """Lines of the table of GB a device."""
  first = billion['devices'][next(iter(billion['devices']))]
  keys = list(first['plain']['memory'])
  lines = _head(['devices', 'training', *keys])
  for devices, modes in billion['devices'].items():
    for mode, row in modes.items():
      values = [f'{row["memory"][key] / GB:.2f}' for key in keys]
      lines.append(_line([devices, mode, *values]))
  return lines


def time_table(billion: dict[str, Any], window: int) -> list[str]:
  """Lines of the table of what an update receives, and how long it takes."""
  lines = _head([
    'devices', 'training', 'gathered, GB', 'summed, GB', 'between groups, GB',
    'products, ms', 'arrays, ms', 'exchange, ms', f'K = {window} over plain',
  ])  # fmt: skip
  for devices, modes in billion['devices'].items():
    for mode, row in modes.items():
      moved = [f'{value / GB:.1f}' for value in row['received'].values()]
      spent = [f'{value / MS:.1f}' for value in row['seconds'].values()]
      over = f'{row["over plain"]:.2f}'
      lines.append(_line([devices, mode, *moved, *spent, over]))
  return lines


def check_table(
  rows: list[dict[str, Any]], margins: Mapping[str, float]
) -> list[str]:
  """Lines of the table of the arithmetic over the compiled figures."""
  lines = _head(['program', 'what', *margins])
  for row in rows:
    if row['role'] != 'shown':
      shares = [f'{share(row, key):.3f}' for key in margins]
      lines.append(_line([row['name'], row['role'], *shares]))
  return lines


def share(row: dict[str, Any], key: str) -> float:
  """The arithmetic over the compiled figure."""
  return row['arithmetic'][key] / row['compiled'][key]


def furthest(rows: list[dict[str, Any]], key: str) -> tuple[float, float]:
  """The least and the largest share of the programs that were checked."""
  shares = [share(row, key) for row in rows if row['role'] == 'checked']
  return min(shares), max(shares)


def _head(names: list[str]) -> list[str]:
  return [_line(names), '|' + '---|' * len(names)]


def _line(cells: list[str]) -> str:
  return f'| {" | ".join(cells)} |'


def to_markdown(
  rows: list[dict[str, Any]],
  billion: dict[str, Any],
  *,
  margins: Mapping[str, float],
  window: int,
) -> str:
  """The tables that a person reads.

  Args:
    rows: of the compiled programs.
    billion: the arithmetic of the large model.
    margins: by the figures that are compared.
    window: K, updates for each held-out batch.
  """
  return '\n'.join([
    'What they mean: [large_models.md](../../docs/large_models.md). '
    f'JAX {jax.__version__}. `python benchmarks/large_model.py` makes them.',
    '',
    f'## {billion["params"] / 1e9:.2f}B parameters: GB on each device',
    '',
    *memory_table(billion),
    '',
    '## An update: received by each device, and time',
    '',
    *time_table(billion, window),
    '',
    '## The arithmetic over the compiled figures',
    '',
    *check_table(rows, margins),
    '',
  ])  # fmt: skip
