"""Step-back's synthetic sets, and logistic regressions on scikit-learn's data.

The synthetic sets are written anew from fabian-sp/step-back
(https://github.com/fabian-sp/step-back), the benchmark of the MoMo papers.
"""

from data_sets import as_set
from data_sets import Set
from data_sets import split
import jax
import jax.numpy as jnp
import numpy as np
import optax
from problem import Batch
from problem import draw_from
from problem import MEMORISED
from problem import Params
from problem import Problem
from sklearn import datasets


def _logistic(
  source: str, sets: tuple[Set, Set], *, floor: float, scale: float
) -> Problem:
  """Multinomial logistic regression, from zeros and a little noise."""
  train, unseen = sets
  shape = train[0].shape[1], int(train[1].max()) + 1

  def init(key: jax.Array) -> Params:
    weights = jax.random.normal(key, shape)
    weights /= jnp.sqrt(jnp.sum(train[0] ** 2, 1).mean())  # logits of size 0.1
    return {'w': 0.1 * weights, 'b': jnp.zeros(shape[1])}

  def loss(params: Params, batch: Batch) -> jax.Array:
    x, y = batch
    logits = x @ params['w'] + params['b']
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

  return Problem(
    source=source,
    init=init,
    draw=draw_from(train, 32),
    loss=loss,
    objective=lambda params, batch: loss(params, train),
    unseen=lambda params: loss(params, unseen),
    floor=floor,
    scale=scale,
  )


def logistic_digits() -> Problem:
  """Ten digits from 64 pixels."""
  sets = split(*datasets.load_digits(return_X_y=True), 1200, standardise=True)
  return _logistic('scikit-learn digits', sets, floor=MEMORISED, scale=1.0)


def logistic_made() -> Problem:
  """Two classes; 8 of 50 features say which, a tenth of the labels is wrong."""
  x, y = datasets.make_classification(
    2000, 50, n_informative=8, n_redundant=0, flip_y=0.2, random_state=0
  )
  sets = split(x, y, 1000, standardise=True)
  source = 'scikit-learn make_classification'
  return _logistic(source, sets, floor=0.0, scale=1.0)


def logistic_wine_raw() -> Problem:
  """Three wines from 13 features as they are, of sizes 0.1 to 1700."""
  sets = split(*datasets.load_wine(return_X_y=True), 120, standardise=False)
  return _logistic('scikit-learn wine', sets, floor=MEMORISED, scale=1e-3)


def logistic_cancer_raw() -> Problem:
  """Two classes from 30 features as they are, of sizes 1e-3 to 4000."""
  data = datasets.load_breast_cancer(return_X_y=True)
  sets = split(*data, 400, standardise=False)
  source = 'scikit-learn breast_cancer'
  return _logistic(source, sets, floor=MEMORISED, scale=1e-4)


def matrix_factorisation() -> Problem:
  """Two linear layers learn a matrix whose rows span a factor of a million."""
  inputs, outputs, hidden, count = 6, 10, 10, 1000
  rng = np.random.default_rng(0)
  scales = np.logspace(1, -5, outputs)[:, None]
  matrix = scales * rng.random((outputs, inputs))
  x = rng.standard_normal((2 * count, inputs))
  train, unseen = (
    as_set(part, part @ matrix.T) for part in (x[:count], x[count:])
  )

  def init(key: jax.Array) -> Params:
    keys = jax.random.split(key)
    first = jax.random.normal(keys[0], (inputs, hidden)) / inputs**0.5
    second = jax.random.normal(keys[1], (hidden, outputs)) / hidden**0.5
    return [first, second]

  def loss(params: Params, batch: Batch) -> jax.Array:
    x, y = batch
    return jnp.mean(jnp.sum((x @ params[0] @ params[1] - y) ** 2, 1))

  return Problem(
    source='step-back synthetic matrix factorisation',
    init=init,
    draw=draw_from(train, 20),
    loss=loss,
    objective=lambda params, batch: loss(params, train),
    unseen=lambda params: loss(params, unseen),
    floor=MEMORISED,
    minimum=lambda: [
      jnp.eye(inputs, hidden),
      jnp.eye(hidden, inputs) @ jnp.asarray(matrix.T, jnp.float32),
    ],
  )


def ridge() -> Problem:
  """A linear model of 1000 features that are partly 0, on 200 examples."""
  size, count, scaling, column_norm = 1000, 200, 10, 10
  rng = np.random.default_rng(0)
  solution = rng.standard_normal(size)
  solution /= np.linalg.norm(solution)

  def make_inputs() -> np.ndarray:
    x = rng.standard_normal((count, size)) + 1
    x *= scaling * rng.standard_normal(size)
    x *= rng.random(x.shape) < 30 * np.log(count) / count
    return column_norm * x / np.linalg.norm(x, axis=0)

  x, y = make_inputs(), make_inputs()
  train, unseen = as_set(x, x @ solution), as_set(y, y @ solution)

  def loss(params: Params, batch: Batch) -> jax.Array:
    x, y = batch
    return jnp.mean((x @ params - y) ** 2)

  return Problem(
    source='step-back synthetic linear, of ridge.json',
    init=lambda key: 0.01 * jax.random.normal(key, (size,)),
    draw=draw_from(train, 20),
    loss=loss,
    objective=lambda params, batch: loss(params, train),
    unseen=lambda params: loss(params, unseen),
    floor=MEMORISED,
    minimum=lambda: jnp.asarray(solution, jnp.float32),
  )
