"""Turns the columns of a table into the numbers that a model takes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metalr_flax.tasks import frames
from metalr_flax.tasks import task

_MAX_CATEGORIES = 1000


def choose(
  frame: frames.Frame, named: Mapping[str, Sequence[str]], where: str
) -> tuple[list[str], list[str]]:
  """The numeric and the categorical columns, in the table's order.

  Args:
    frame: the table.
    named: columns by the argument of `Table` that names them; those that none
      does are numeric where their type is a number's, else categorical.
    where: the table's field and file, for messages.

  Raises:
    RefusedError: for a column of another type, or text among numbers.
  """
  found: tuple[list[str], list[str]] = ([], [])
  left_out = [*named['target'], *named['drop'], *named['split_column']]
  for name in frame.columns:
    if name not in left_out:
      of_text = name in named['categorical'] or (
        name not in named['numeric'] and is_text(frame[name], where)
      )
      found[of_text].append(name)
  if not any(found):
    raise task.RefusedError(
      f'{where}: has no column to learn from beside {", ".join(left_out)}; '
      f'leave one'
    )
  return found


class Encoder:
  """Columns of a table as float32 features, fitted to the train part.

  A number has mean 0 and standard deviation 1 in the train part; where it is
  missing it is the train part's median, and a feature more says so, for columns
  in which the train part has such gaps. Each category of the train part is a
  feature of 0 or 1, also that of a missing value; of a category that is not
  among them all are 0.

  Attributes:
    numeric: names of the columns of numbers.
    categorical: names of the columns of categories.
    feature_names: of the D features, in their order.
  """

  def __init__(
    self,
    train: frames.Frame,
    numeric: list[str],
    categorical: list[str],
    where: str,
  ):
    """Takes medians, means, deviations and categories from the train part.

    Args:
      train: the train part.
      numeric: columns of numbers, may be empty where there are categories.
      categorical: columns of categories.
      where: the table's field and file, for messages.

    Raises:
      RefusedError: for a column without values, or too many categories.
    """
    # A second to import: only where they are used.
    from sklearn import impute
    from sklearn import pipeline
    from sklearn import preprocessing

    self.numeric, self.categorical = numeric, categorical
    self._scaling = pipeline.make_pipeline(
      impute.SimpleImputer(strategy='median'), preprocessing.StandardScaler()
    )
    self._one_hot = preprocessing.OneHotEncoder(
      handle_unknown='ignore', sparse_output=False
    )
    self._gaps = np.zeros(len(numeric), bool)
    self.feature_names = [*numeric]
    if numeric:
      self._fit_numbers(self._numbers(train, where), where)
    if categorical:
      self._fit_categories(self._texts(train), where)

  def __call__(self, frame: frames.Frame, where: str) -> np.ndarray:
    """The features of a table, float32 `[N, D]`.

    Args:
      frame: has the columns; others in it are left alone.
      where: what gave it, for messages.

    Raises:
      RefusedError: for a column missing, or text where numbers are due.
    """
    self.check(frame, where)
    found = []
    if self.numeric:
      numbers = self._numbers(frame, where)
      found += [
        self._scaling.transform(numbers),
        np.isnan(numbers[:, self._gaps]),
      ]
    if self.categorical:
      found.append(self._one_hot.transform(self._texts(frame)))
    return np.concatenate(found, axis=1).astype(np.float32)

  def check(self, frame: frames.Frame, where: str) -> None:
    """Refuses a table without one of the columns."""
    for name in (*self.numeric, *self.categorical):
      if name not in frame.columns:
        raise task.RefusedError(
          f'{where}: has no column {name}; give the columns of the train part'
        )

  def _fit_numbers(self, numbers: np.ndarray, where: str) -> None:
    missing = np.isnan(numbers)
    for name, empty in zip(self.numeric, missing.all(axis=0), strict=True):
      if empty:
        raise task.RefusedError(
          f'{where}: column {name} has no value in the train part; name it in '
          f'task.kwargs.drop'
        )
    self._gaps = missing.any(axis=0)
    self._scaling.fit(numbers)
    self.feature_names += [
      f'{name} is missing'
      for name, gap in zip(self.numeric, self._gaps, strict=True)
      if gap
    ]

  def _fit_categories(self, texts: np.ndarray, where: str) -> None:
    self._one_hot.fit(texts)
    for name, categories in zip(
      self.categorical, self._one_hot.categories_, strict=True
    ):
      if len(categories) > _MAX_CATEGORIES:
        raise task.RefusedError(
          f'{where}: column {name} has {len(categories)} categories, at most '
          f'{_MAX_CATEGORIES} do; name it in task.kwargs.drop'
        )
      self.feature_names += [f'{name}={category}' for category in categories]

  def _numbers(self, frame: frames.Frame, where: str) -> np.ndarray:
    columns = [frames.numbers_of(frame[name], where) for name in self.numeric]
    return np.stack(columns, axis=1)

  def _texts(self, frame: frames.Frame) -> np.ndarray:
    columns = [frames.texts_of(frame[name]) for name in self.categorical]
    return np.stack(columns, axis=1)


def is_text(column: Any, where: str) -> bool:
  """Whether a column's values are categories and no numbers.

  Args:
    column: a pandas.Series.
    where: what gave it, for messages.

  Raises:
    RefusedError: for text in a column of numbers, naming the row.
  """
  if frames.is_number(column):
    return False
  frames.check_plain(column, where)
  wrong = frames.mostly_numbers(column)
  if wrong is not None and not frames.is_flag(column):
    value = column[wrong].tolist()[0] if wrong.any() else column.iloc[0]
    row = frames.first(wrong if wrong.any() else column.notna(), column)
    raise task.RefusedError(
      f'{where}: column {column.name} has text, {value!r}, in row {row} where '
      f'most rows are numbers; correct it, or name the column in '
      f'task.kwargs.categorical (for the target, set task.kwargs.kind)'
    )
  return True
