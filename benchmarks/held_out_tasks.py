"""The tasks of held_out.py: small and large data sets, small networks."""

from collections.abc import Callable
import dataclasses
import itertools
import pydoc_data.topics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn import datasets

CONTEXT = 8
EMBEDDING = 16
TEXT = '\n'.join(text for _, text in sorted(pydoc_data.topics.topics.items()))[
  :60_000
]
ALPHABET = sorted(set(TEXT))

Arrays = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Task:
  """What is learned.

  Attributes:
    make: inputs and targets, from a generator.
    counts: training, held-out and test examples.
    widths: of the network's layers; one output is a regression.
    noise: share of all labels, test included, drawn anew at random.
  """

  make: Callable[[np.random.Generator], Arrays]
  counts: tuple[int, int, int]
  widths: tuple[int, ...]
  noise: float = 0.0

  @property
  def regression(self) -> bool:
    """Whether the loss is half the squared error, not the cross-entropy."""
    return self.widths[-1] == 1


def loaded(load: Callable[..., Any]) -> Callable[..., Arrays]:
  """A maker of one of scikit-learn's data sets, which draws nothing."""
  return lambda rng: load(return_X_y=True)


def make_sparse(rng: np.random.Generator) -> Arrays:
  """Two classes; 8 of 50 features say which, 10% of the labels are wrong."""
  return datasets.make_classification(
    n_samples=1400,
    n_features=50,
    n_informative=8,
    n_redundant=0,
    flip_y=0.2,
    random_state=int(rng.integers(2**31)),
  )


def make_friedman(rng: np.random.Generator) -> Arrays:
  """Friedman's first regression: 5 of 10 features matter."""
  seed = int(rng.integers(2**31))
  return datasets.make_friedman1(1150, noise=1.0, random_state=seed)


def make_bars(rng: np.random.Generator) -> Arrays:
  """A bar in noise, 12 x 12 pixels: upright, lying or along a diagonal."""
  labels = rng.integers(0, 4, 1800)
  places = rng.integers(0, 12, 1800)
  row, column = np.mgrid[:12, :12]
  along = np.stack([row, column, (row + column) % 12, (row - column) % 12])
  bars = along[labels] == places[:, None, None]
  images = 1.5 * bars + 0.7 * rng.standard_normal(bars.shape)
  return images.reshape(len(images), -1), labels


def make_text(rng: np.random.Generator) -> Arrays:
  """The next character after eight, from pieces that do not overlap."""
  codes = np.searchsorted(ALPHABET, list(TEXT))
  length = CONTEXT + 1
  pieces = codes[: len(codes) // length * length].reshape(-1, length)
  return pieces[:, :-1], pieces[:, -1]


TASKS = {
  'breast_cancer': Task(
    loaded(datasets.load_breast_cancer), (200, 80, 289), (30, 2)
  ),
  'wine_noisy': Task(
    loaded(datasets.load_wine), (80, 40, 58), (13, 64, 3), noise=0.2
  ),
  'diabetes': Task(
    loaded(datasets.load_diabetes), (200, 80, 162), (10, 64, 64, 1)
  ),
  'sparse': Task(make_sparse, (300, 100, 1000), (50, 64, 2)),
  'friedman': Task(make_friedman, (100, 50, 1000), (10, 64, 64, 1)),
  'digits_small': Task(
    loaded(datasets.load_digits), (200, 100, 800), (64, 64, 10), noise=0.1
  ),
  'digits_large': Task(
    loaded(datasets.load_digits), (1200, 250, 347), (64, 64, 10)
  ),
  'bars': Task(make_bars, (600, 200, 1000), (144, 64, 4)),
  'text': Task(
    make_text, (4000, 500, 1000), (CONTEXT * EMBEDDING, 64, len(ALPHABET))
  ),
}


def make_data(task: Task, seed: int) -> list[Arrays]:
  """Training, held-out and test examples: a fresh split for each seed."""
  rng = np.random.default_rng(seed)
  x, y = task.make(rng)
  order = rng.permutation(len(x))
  x, y = x[order], y[order]
  if task.noise:
    wrong = rng.random(len(y)) < task.noise
    y = np.where(wrong, rng.integers(0, task.widths[-1], len(y)), y)
  if np.issubdtype(x.dtype, np.floating):
    x = _standardised(x, task.counts[0])
  if task.regression:
    y = _standardised(y, task.counts[0])
  x, y = (
    a.astype(np.float32 if a.dtype == float else np.int32) for a in (x, y)
  )
  ends = np.cumsum((0, *task.counts))
  return [(x[a:b], y[a:b]) for a, b in itertools.pairwise(ends)]


def _standardised(values: np.ndarray, count: int) -> np.ndarray:
  """Values less the mean, over the deviation, of the first ones."""
  deviation = values[:count].std(0)
  mean = values[:count].mean(0)
  return (values - mean) / np.where(deviation > 0, deviation, 1)


def init_params(task: Task, seed: int) -> dict[str, Any]:
  """The network's first weights, and those of characters."""
  rng = np.random.default_rng([seed, 1])
  layers = []
  for number, (m, n) in enumerate(
    zip(task.widths, task.widths[1:], strict=False), 2
  ):
    scale = np.sqrt((1 if number == len(task.widths) else 2) / m)
    w = scale * rng.standard_normal((m, n))
    layers.append({'w': w.astype(np.float32), 'b': np.zeros(n, np.float32)})
  params: dict[str, Any] = {'layers': layers}
  if task.make is make_text:
    table = rng.standard_normal((len(ALPHABET), EMBEDDING))
    params['embedding'] = table.astype(np.float32)
  return params


def make_loss(task: Task) -> Callable[[Any, Any], jax.Array]:
  """The mean loss of parameters on a batch."""

  def loss(params: Any, batch: Any) -> jax.Array:
    x, y = batch
    if 'embedding' in params:
      x = params['embedding'][x].reshape(*x.shape[:-1], -1)
    *hidden, last = params['layers']
    for layer in hidden:
      x = jax.nn.relu(x @ layer['w'] + layer['b'])
    out = x @ last['w'] + last['b']
    if task.regression:
      return jnp.mean((out[:, 0] - y) ** 2) / 2
    return optax.softmax_cross_entropy_with_integer_labels(out, y).mean()

  return loss
