"""A comparison's workdir: its config, and the cells that are finished."""

from collections.abc import Mapping
import pathlib
from typing import Any

from absl import logging

from metalr_flax.comparison import cells
from metalr_flax.comparison import outcomes
from metalr_flax.workdir import files
from metalr_flax.workdir import folder

CELLS = 'cells'
CSV = 'comparison.csv'
SUMMARY = 'summary.json'
TABLE = 'table.md'
PLOTS = 'plots'


def check(path: pathlib.Path, config: Mapping[str, Any], command: str) -> None:
  """Refuses a workdir that is foreign or belongs to another comparison.

  `only` and `methods` may change, and problems may be added or left out.

  Args:
    path: the workdir; one that does not exist is fine.
    config: the resolved config of this comparison.
    command: this command without its workdir.

  Raises:
    ConfigError: where it cannot be written.
    WorkdirError: where it is another's.
    StorageError: where the storage does not answer.
  """
  before = _read_config(path)
  problems = {
    name: config['problems'].get(name, section)
    for name, section in before.get('problems', config['problems']).items()
  }
  expected = {**config, 'problems': problems}
  for name in ('only', 'methods'):
    expected[name] = before.get(name, config[name])
  folder.check(path, expected, command)


def write_config(path: pathlib.Path, config: Mapping[str, Any]) -> None:
  """Writes the config, with the problems of earlier commands kept."""
  before = _read_config(path)
  problems = {**before.get('problems', {}), **config['problems']}
  files.write_json(path / folder.CONFIG, {**config, 'problems': problems})


def write_cell(path: pathlib.Path, outcome: outcomes.Outcome) -> None:
  """Writes the file of a finished cell."""
  name = f'{outcome.cell.id}.json'
  files.write_json(path / CELLS / name, outcomes.to_json(outcome))


def read_cells(
  path: pathlib.Path, wanted: list[cells.Cell]
) -> dict[str, outcomes.Outcome]:
  """The finished cells among those wanted, by id and in their order."""
  found = {}
  for cell in wanted:
    file = path / CELLS / f'{cell.id}.json'
    if not file.exists():
      continue
    try:
      values = files.read_json(file)
    except ValueError:
      values = None
    outcome = outcomes.from_json(cell, values)
    if outcome is None:
      logging.warning('%s: not this cell as it is now; doing it again', file)
    else:
      found[cell.id] = outcome
  return found


def _read_config(path: pathlib.Path) -> dict[str, Any]:
  """The config of the comparison in a workdir, `{}` where there is none."""
  try:
    config = files.read_json(path / folder.CONFIG)
  except (OSError, ValueError):
    return {}  # the workdir's own check says what is wrong
  ours = isinstance(config, dict) and isinstance(config.get('problems'), dict)
  return config if ours else {}
