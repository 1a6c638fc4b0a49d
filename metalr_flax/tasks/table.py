"""A user's own table, CSV or Parquet: predict one column from the others.

Without a file it is scikit-learn's diabetes data, 442 patients of 10
measurements (Efron et al. 2004, Least angle regression,
https://www4.stat.ncsu.edu/~boos/var.select/diabetes.html), `target` being the
disease's progression after a year.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from metalr_flax.tasks import arguments
from metalr_flax.tasks import classification
from metalr_flax.tasks import columns
from metalr_flax.tasks import frames
from metalr_flax.tasks import parts
from metalr_flax.tasks import table_parts
from metalr_flax.tasks import targets
from metalr_flax.tasks import task

_FEW = 20  # different integers, at most, that are classes


class Table(parts.InParts):
  """Classify the rows of a table, or predict a number for each.

  For a model from features `[B, D]` to logits `[B, C]`, or to numbers `[B]` or
  `[B, 1]`. What is missing, and what a category becomes, says
  `columns.Encoder`; everything is fitted to the train part alone.

  Attributes:
    kind: 'classification' or 'regression'.
    feature_names: of the D features, in their order.
    class_names: of the C classes, as the target column has them; `()` for a
      regression.
    batch_size: B, rows in an inner batch.
    meta_batch_size: rows in the outer loss's batch.
    train, meta, test: `{'features': float32 [N, D], 'label': [N]}`; a label is
      an int32 class, or a float32 target of mean 0 and standard deviation 1 in
      the train part.
  """

  input_name = 'features'

  def __init__(
    self,
    batch_size: int = 32,
    *,
    target: str,
    path: str = '',
    kind: str = '',
    numeric: Sequence[str] = (),
    categorical: Sequence[str] = (),
    drop: Sequence[str] = (),
    split_column: str = '',
    meta_path: str = '',
    test_path: str = '',
    meta_fraction: float = 0.15,
    test_fraction: float = 0.2,
    split_seed: int = 0,
    meta_batch_size: int | None = None,
  ):
    """Reads, splits and encodes the table.

    Args:
      batch_size: B, from 1 to the train part's size.
      target: the column to predict.
      path: the file, see `frames.read`; '' for scikit-learn's diabetes data.
      kind: 'classification' or 'regression'; '' for the one that fits the
        target: text, booleans and integers of at most 20 different values are
        classes.
      numeric: columns to read as numbers.
      categorical: columns to read as categories; what neither names is numeric
        where its type is a number's.
      drop: columns to leave out.
      split_column: a column that says of each row 'train', 'meta' or 'test'.
      meta_path: a file with the meta part; its columns are those of `path`.
      test_path: a file with the test part.
      meta_fraction: the random meta part's share of the rows, in (0, 1); not
        used where column or file give that part.
      test_fraction: the test part's; the two sum to less than 1.
      split_seed: of the random parts, which keep the shares of classes.
      meta_batch_size: rows in the outer loss's batch; unless given B, or the
        whole meta part where that is smaller.

    Raises:
      RefusedError: naming the field, or the file and row, that is wrong.
      ValueError: for an argument outside these.
    """
    arguments.check_fractions(meta_fraction, test_fraction)
    arguments.check_integer('split_seed', split_seed, 0)
    named = {
      'target': [target],
      'drop': _names('drop', drop),
      'split_column': [split_column] if split_column else [],
      'numeric': _names('numeric', numeric),
      'categorical': _names('categorical', categorical),
    }
    where = f'task.path={path}'
    frame = frames.read(path, 'task.path') if path else _own_table()
    frames.check_columns(
      {f'task.kwargs.{field}': names for field, names in named.items()}, frame
    )
    ways = table_parts.Ways(
      column=split_column,
      meta_path=meta_path,
      test_path=test_path,
      meta_fraction=meta_fraction,
      test_fraction=test_fraction,
      seed=split_seed,
    )
    given = table_parts.given(frame, where, ways)
    self.kind = _kind(kind, frame[target], where)
    self._target = target
    self._aim, found = self._divide(given, ways)
    self._encoder = columns.Encoder(
      found[0][0], *columns.choose(frame, named, where), where
    )
    train, meta, test = map(self._arrays, found)
    super().__init__(
      (train, meta, test),
      batch_size=batch_size,
      meta_batch_size=meta_batch_size,
      files=filter(None, (path, meta_path, test_path)),
    )
    if self.kind == 'regression':
      self.loss_label = 'squared error over the variance'

  @property
  def feature_names(self) -> list[str]:
    """Of the D features, in their order."""
    return self._encoder.feature_names

  @property
  def class_names(self) -> list[Any]:
    """Of the C classes in their order; none of a regression."""
    return getattr(self._aim, 'names', [])

  def loss(
    self,
    model: nnx.Module,
    batch: Any,
    *,
    label_smoothing: jax.typing.ArrayLike | None = None,
    class_weights: Mapping[str, jax.typing.ArrayLike] | None = None,
    dropout_rate: jax.typing.ArrayLike | None = None,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Of classes the cross-entropy in nats, of numbers the squared error.

    The squared error is in units of the train part's variance, 1 for a model
    that always says the mean. Both are means over the batch.

    Args:
      model: maps features `[B, D]` to logits `[B, C]`, or to standardised
        numbers `[B]` or `[B, 1]`.
      batch: features and labels.
      label_smoothing: see `classification.cross_entropy`.
      class_weights: the same.
      dropout_rate: in [0, 1), for a model whose call takes it, see
        `models.dropout.GaussianDropout`.

    Returns:
      The loss, and `accuracy`, or `rmse`: the root of the mean squared error
      in the target's own unit.

    Raises:
      ValueError: for a value outside these, or outputs of another shape.
    """
    outputs, labels = self.outputs(model, batch, dropout_rate), batch['label']
    if isinstance(self._aim, targets.Classes):
      classification.check_logits(outputs, labels, len(self._aim.names))
      return classification.cross_entropy(
        outputs,
        labels,
        label_smoothing=label_smoothing,
        class_weights=class_weights,
      )
    if label_smoothing is not None:
      raise ValueError('label_smoothing: is for classes, the target has none')
    if class_weights is not None:
      raise ValueError('class_weights: is for classes, the target has none')
    return _squared_error(outputs, labels, self._aim.deviation)

  def encode(self, data: Any) -> np.ndarray:
    """A model's inputs for new rows, float32 `[N, D]`.

    Args:
      data: a DataFrame, or what `pandas.DataFrame` makes one of, with the
        columns that the features come from; others are left alone.

    Raises:
      ValueError: for a column missing, or text where numbers are due.
    """
    return self._encoder(frames.as_frame(data), 'data')

  def decode(self, outputs: Any) -> np.ndarray:
    """What a model's outputs mean, in the target column's own terms.

    Args:
      outputs: logits `[N, C]`, or standardised numbers `[N]` or `[N, 1]`.

    Returns:
      The N most likely classes, or numbers in the target's unit, float64 `[N]`.
    """
    return self._aim.decode(outputs)

  def _divide(
    self, given: dict[str, table_parts.Part], ways: table_parts.Ways
  ) -> tuple[targets.Classes | targets.Standardised, table_parts.Parts]:
    """What is to be predicted, as the train part has it, and the parts."""
    for frame, where in given.values():
      frames.check_complete(frame[self._target], where)
    column, where = given['train'][0][self._target], given['train'][1]
    if self.kind == 'classification':
      names = frames.names_of(column)
      classes = targets.Classes(names, f'{where}: column {self._target}')
      labels = classes.encode(names, frames.rows_of(column), where)
      classes.check_counts(labels, 1 + len({'meta', 'test'} - {*given}), where)
      return classes, table_parts.complete(given, labels, ways)
    found = table_parts.complete(given, None, ways)
    numbers = frames.numbers_of(found[0][0][self._target], where)
    aim = targets.Standardised(numbers, f'{where}: column {self._target}')
    return aim, found

  def _arrays(self, part: table_parts.Part) -> parts.Arrays:
    frame, where = part
    column = frame[self._target]
    if isinstance(self._aim, targets.Classes):
      label = self._aim.encode(
        frames.names_of(column), frames.rows_of(column), f'{where}: row'
      )
    else:
      label = self._aim.encode(frames.numbers_of(column, where))
    return {'features': self._encoder(frame, where), 'label': label}


def _squared_error(
  outputs: jax.Array, labels: jax.Array, deviation: float
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The mean squared error, and its root in the target's unit."""
  if jnp.shape(outputs) not in (labels.shape, (*labels.shape, 1)):
    raise task.RefusedError(
      f'model.kwargs: the model gives outputs of shape {jnp.shape(outputs)} '
      f'for {len(labels)} examples of one number each; give it 1 output'
    )
  loss = jnp.mean((outputs.reshape(labels.shape) - labels) ** 2)
  return loss, {'rmse': deviation * jnp.sqrt(loss)}


def _kind(kind: str, column: Any, where: str) -> str:
  """Whether the target is classes or numbers."""
  if kind not in ('', 'classification', 'regression'):
    raise task.RefusedError(
      f"task.kwargs.kind={kind}: must be 'classification', 'regression' or ''; "
      f'set one of them'
    )
  if kind:
    return kind
  few = frames.is_integer(column) and column.nunique() <= _FEW
  classes = few or columns.is_text(column, where)
  return 'classification' if classes else 'regression'


def _names(field: str, names: Sequence[str]) -> list[str]:
  """The names of columns that a field gives."""
  if isinstance(names, str) or not isinstance(names, Sequence):
    raise task.RefusedError(
      f"task.kwargs.{field}={names}: must be a list of columns; write ['...']"
    )
  return [*names]


def _own_table() -> frames.Frame:
  from sklearn import datasets  # a second to import: only where it is used

  return datasets.load_diabetes(as_frame=True, scaled=False).frame
