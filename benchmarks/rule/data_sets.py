"""The data sets that several problems share: no network is asked.

Data are those that scikit-learn and Python bring along. Shape legend: N
examples, D features, T characters.
"""

import functools
import pydoc_data.topics

import jax
import jax.numpy as jnp
import numpy as np
from sklearn import datasets

Set = tuple[jax.Array, jax.Array]  # inputs [N, D] and labels or targets [N]


def as_set(x: np.ndarray, y: np.ndarray) -> Set:
  """Inputs in float32 and labels in int32, or targets in float32."""
  kind = jnp.int32 if np.issubdtype(y.dtype, np.integer) else jnp.float32
  return jnp.asarray(x, jnp.float32), jnp.asarray(y, kind)


def split(
  x: np.ndarray, y: np.ndarray, count: int, *, standardise: bool
) -> tuple[Set, Set]:
  """A fixed split into `count` training examples and unseen ones.

  Args:
    x: inputs, [N, D].
    y: labels or targets, [N].
    count: of training examples.
    standardise: whether features get the mean 0 and the deviation 1 of the
      training examples.
  """
  order = np.random.default_rng(0).permutation(len(x))
  x, y = x[order], y[order]
  if standardise:
    deviation = x[:count].std(0)
    x = (x - x[:count].mean(0)) / np.where(deviation > 0, deviation, 1)
  return as_set(x[:count], y[:count]), as_set(x[count:], y[count:])


@functools.cache
def digits() -> tuple[Set, Set]:
  """1000 digits and 797 unseen ones, in [0, 1]."""
  x, y = datasets.load_digits(return_X_y=True)
  return split(x / 16, y, 1000, standardise=False)


@functools.cache
def photos() -> tuple[Set, Set]:
  """Which of two photos a grey patch of 8 x 8 is from; 1000 and as many."""
  rng, patches = np.random.default_rng(0), []
  for name in ('china.jpg', 'flower.jpg'):
    grey = datasets.load_sample_image(name).mean(-1) / 255
    rows, columns = (rng.integers(0, n - 8, (1000, 1)) for n in grey.shape)
    at = rows + np.repeat(range(8), 8), columns + np.tile(range(8), 8)
    patches.append(grey[at])
  x, y = np.concatenate(patches), np.repeat([0, 1], 1000)
  return split((x - x.mean()) / x.std(), y, 1000, standardise=False)


@functools.cache
def manual() -> str:
  """The texts of Python's `help`, which differ a little with its version."""
  topics = sorted(pydoc_data.topics.topics.items())
  return '\n'.join(text for _, text in topics)


def pieces_of(text: str, length: int) -> tuple[tuple[Set, Set], int]:
  """Next characters: 1500 pieces, 500 unseen ones of later text, the alphabet.

  Args:
    text: at least 2000 (length + 1) characters of it.
    length: T, of the inputs and of the labels, [N, T].
  """
  text = text[: 2000 * (length + 1)]
  alphabet, codes = np.unique(np.array([*text]), return_inverse=True)
  pieces = jnp.asarray(codes.reshape(2000, length + 1), jnp.int32)
  x, y = pieces[:, :-1], pieces[:, 1:]
  return ((x[:1500], y[:1500]), (x[1500:], y[1500:])), len(alphabet)
