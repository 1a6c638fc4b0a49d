"""Cuts the rows of a data set into train, meta and test parts."""

import numpy as np

from metalr_flax.tasks import task


def divide(
  count: int,
  labels: np.ndarray | None,
  fractions: tuple[float, float],
  seed: int,
  where: str,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Disjoint random parts of the rows 0 to count - 1.

  Args:
    count: how many rows there are.
    labels: classes `[count]`, whose shares are kept in all parts; None for
      rows that have none.
    fractions: the meta and the test part's share of the rows; 0 for an empty
      part.
    seed: of the split.
    where: what the rows are of, for messages.

  Returns:
    The rows of the train, the meta and the test part, int `[...]`.

  Raises:
    RefusedError: for too few rows.
  """
  meta_fraction, test_fraction = fractions
  try:
    rest, test = _cut(np.arange(count), labels, test_fraction, seed)
    share = meta_fraction / (1 - test_fraction)
    return (*_cut(rest, labels, share, seed), test)
  except ValueError as error:
    raise task.RefusedError(
      f'{where}: {count} examples are too few for a train, a meta and a test '
      f'part with all classes in each; give more'
    ) from error


def _cut(
  rows: np.ndarray, labels: np.ndarray | None, share: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """The rows without a random share of them, and that share."""
  from sklearn import model_selection  # slow to import: only where it is used

  if not share:
    return rows, rows[:0]
  rest, part = model_selection.train_test_split(
    rows,
    test_size=share,
    stratify=None if labels is None else labels[rows],
    random_state=seed,
  )
  return rest, part
