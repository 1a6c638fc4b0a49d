"""Reads tables with pandas, and refuses what is wrong with a file by its row.

Rows are counted from 1, the header left out.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import csv
import types
from typing import Any

import numpy as np

from metalr_flax.tasks import task

Frame = Any  # a pandas.DataFrame
_PLAIN = (
  'boolean', 'categorical', 'decimal', 'empty', 'floating', 'integer',
  'mixed-integer', 'mixed-integer-float', 'string',
)  # fmt: skip
_LARGEST = float(np.finfo(np.float32).max)
_SEPARATORS = ',;\t'


def read(path: str, field: str) -> Frame:
  """Reads a CSV file, or a Parquet file where its name ends so.

  Args:
    path: the file; a CSV is UTF-8, its first line names the columns, and its
      separator is the one of `,`, `;` and tab that this line has most.
    field: the config's field that names it, for messages.

  Returns:
    The table; empty cells and `NA`, `NaN`, `null`, `None` are missing values.

  Raises:
    RefusedError: naming the file and, where there is one, the row.
  """
  where = f'{field}={path}'
  with _refusing(where):
    if str(path).lower().endswith(('.parquet', '.pq')):
      frame = _pandas().read_parquet(path).reset_index(drop=True)
      frame.columns = [str(name) for name in frame.columns]
      _check_names(where, list(frame.columns))
    else:
      separator = _check_csv(where, path)
      frame = _pandas().read_csv(
        path,
        sep=separator,
        encoding='utf-8-sig',
        index_col=False,
        low_memory=False,
      )
  if not len(frame):
    raise task.RefusedError(f'{where}: has no rows; give a table with data')
  return frame


def as_frame(data: Any) -> Frame:
  """A table of rows given from Python: a DataFrame, or what makes one."""
  pandas = _pandas()
  return pandas.DataFrame(data).reset_index(drop=True)


def is_number(column: Any) -> bool:
  """Whether a column's type is a number's; a boolean is none."""
  types_of = _pandas().api.types
  return types_of.is_numeric_dtype(column) and not types_of.is_bool_dtype(
    column
  )


def is_flag(column: Any) -> bool:
  """Whether a column holds booleans alone."""
  return _pandas().api.types.infer_dtype(column, skipna=True) == 'boolean'


def check_plain(column: Any, where: str) -> None:
  """Refuses a column of anything but numbers, booleans and text."""
  kind = _pandas().api.types.infer_dtype(column, skipna=True)
  if kind not in _PLAIN:
    raise task.RefusedError(
      f'{where}: column {column.name} holds {kind} values; make numbers or '
      f'text of them, or name it in task.kwargs.drop'
    )


def is_integer(column: Any) -> bool:
  """Whether a column's type is that of whole numbers."""
  return bool(_pandas().api.types.is_integer_dtype(column))


def rows_of(column: Any) -> list[int]:
  """The number of each row in the file it was read from."""
  return [int(number) + 1 for number in column.index]


def names_of(column: Any) -> list[Any]:
  """A column's values as classes: numbers, booleans or text."""
  if is_number(column) or is_flag(column):
    return column.astype(object).tolist()
  return texts_of(column).tolist()


def check_complete(column: Any, where: str) -> None:
  """Refuses a column with missing values, naming the first row of them."""
  missing = column.isna().to_numpy()
  if missing.any():
    raise task.RefusedError(
      f'{where}: column {column.name} has no value in row '
      f'{first(missing, column)}; leave such rows out'
    )


def numbers_of(column: Any, where: str) -> np.ndarray:
  """A column as float64 `[N]`, NaN where a value is missing.

  Args:
    column: a pandas.Series.
    where: the field or file that gave it, for messages.

  Raises:
    RefusedError: naming the first row that is no finite number.
  """
  numbers = _coerced(column)
  wrong = np.isnan(numbers) & column.notna().to_numpy()
  wrong |= np.abs(numbers) > _LARGEST
  if wrong.any():
    raise task.RefusedError(
      f'{where}: column {column.name} has {column[wrong].tolist()[0]!r} in row '
      f'{first(wrong, column)}, which is no finite number; correct it'
    )
  return numbers


def texts_of(column: Any) -> np.ndarray:
  """A column's values as text `[N]`; '' where one is missing.

  A whole number is written without a fraction, whatever its type: a column of
  integers is read as floats where one of them is missing.
  """
  missing = column.isna().to_numpy()
  return np.array(
    ['' if m else _text(v) for m, v in zip(missing, column, strict=True)],
    dtype=object,
  )


def mostly_numbers(column: Any) -> np.ndarray | None:
  """Which rows of a text column are not the numbers that most others are.

  Args:
    column: a pandas.Series.

  Returns:
    Flags `[N]`, or None where the column is not mostly numbers.
  """
  given = column.notna().to_numpy()
  wrong = np.isnan(_coerced(column)) & given
  return wrong if 2 * wrong.sum() < given.sum() else None


def first(flags: np.ndarray, column: Any) -> int:
  """The number of the first row that is flagged, from 1."""
  return rows_of(column[flags])[0]


def _coerced(column: Any) -> np.ndarray:
  numbers = _pandas().to_numeric(column.astype(object), errors='coerce')
  return numbers.to_numpy(dtype=np.float64, na_value=np.nan)


def _text(value: Any) -> str:
  whole = isinstance(value, (float, np.floating)) and float(value).is_integer()
  return str(int(value) if whole else value)


def _pandas() -> types.ModuleType:
  try:
    import pandas  # not every user needs it
  except ImportError as error:
    raise task.RefusedError(
      "task.name=table: needs pandas; pip install 'metalr_flax[data]'"
    ) from error
  return pandas


@contextlib.contextmanager
def _refusing(where: str) -> Iterator[None]:
  """Turns what reading a file raises into a line that names it."""
  try:
    yield
  except task.RefusedError:
    raise
  except ImportError as error:
    raise task.RefusedError(
      f"{where}: needs pyarrow; pip install 'metalr_flax[data]'"
    ) from error
  except UnicodeDecodeError as error:
    raise task.RefusedError(
      f'{where}: is not UTF-8 text (byte {error.start}); convert it'
    ) from error
  except OSError as error:
    raise task.RefusedError(
      f'{where}: cannot be read ({error.strerror or error}); give a CSV or '
      f'Parquet file'
    ) from error
  except (ValueError, csv.Error) as error:
    raise task.RefusedError(
      f'{where}: is no table that can be read ({error}); give a CSV or Parquet '
      f'file'
    ) from error


def _check_csv(where: str, path: str) -> str:
  """Refuses what pandas would read as something else; returns the separator.

  It fills up a row that is too short, and renames a column that is there twice.
  """
  with open(path, encoding='utf-8-sig', newline='') as file:
    line = file.readline()
    separator = max(_SEPARATORS, key=line.count)
    file.seek(0)
    rows = csv.reader(file, delimiter=separator)
    header = next(rows, [])
    _check_names(where, header)
    for number, row in enumerate(filter(None, rows), 1):
      if len(row) != len(header):
        raise task.RefusedError(
          f'{where}: row {number} (line {rows.line_num}) has {len(row)} cells '
          f'and the header {len(header)}; correct the row'
        )
  return separator


def _check_names(where: str, names: Sequence[str]) -> None:
  """Refuses a header without names, or with one of them twice."""
  if not any(names):
    raise task.RefusedError(
      f'{where}: is empty; give a table whose first line names its columns'
    )
  for number, name in enumerate(names, 1):
    if not name:
      raise task.RefusedError(
        f'{where}: column {number} has no name; give it one, or write the file '
        f'without its index'
      )
    if name in names[: number - 1]:
      raise task.RefusedError(
        f'{where}: two columns are named {name}; rename one'
      )


def check_columns(names: Mapping[str, Sequence[str]], frame: Frame) -> None:
  """Refuses names that a table's columns do not have, or that are there twice.

  Args:
    names: columns by the field that names them.
    frame: the table.

  Raises:
    RefusedError: naming the field.
  """
  known = [*map(str, frame.columns)]
  seen: dict[str, str] = {}
  for field, columns in names.items():
    for name in columns:
      if name not in known:
        shown = ', '.join(known[:20]) + (', ...' if len(known) > 20 else '')
        raise task.RefusedError(
          f'{field}={name}: there is no such column; the columns are {shown}'
        )
      if name in seen:
        raise task.RefusedError(
          f'{field}={name}: {seen[name]} names it as well; leave one out'
        )
      seen[name] = field
