"""The tasks of held_out_size.py: few features of use among many, made to order.

Each input has 64 features, of which the first four say something; 300 training
examples are too few to tell them from the others. The first layer's weights
are cut into blocks of features, each a parameter, so that a block may have a
rate and a decay of its own: the more blocks, the fewer useless features share
those of the useful ones.
"""

from collections.abc import Callable
import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

FEATURES = 64
TRAINING = 300
TEST = 5000
SIZES = (25, 50, 100, 200, 400, 800, 1600)

Arrays = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Task:
  """What is learned.

  Attributes:
    make: targets of inputs [N, 64].
    outputs: of the network; one is a regression.
    hidden: width of its hidden layer; None for a linear model.
  """

  make: Callable[[np.random.Generator, np.ndarray], np.ndarray]
  outputs: int
  hidden: int | None


def make_labels(rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
  """Two classes by a noisy sum; a tenth of the labels is wrong."""
  noise = rng.standard_normal(len(x))
  labels = x[:, 0] - x[:, 1] + x[:, 2] - x[:, 3] + noise > 0
  return (labels ^ (rng.random(len(x)) < 0.1)).astype(np.int32)


def make_curve(rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
  """A sum, a product and an absolute value, with noise."""
  noise = 0.5 * rng.standard_normal(len(x))
  y = x[:, 0] + x[:, 1] * x[:, 2] + np.abs(x[:, 3]) + noise
  y = (y - y[:TRAINING].mean()) / y[:TRAINING].std()
  return y.astype(np.float32)


TASKS = {
  'classes, linear': Task(make_labels, 2, None),
  'classes, network': Task(make_labels, 2, 32),
  'regression, network': Task(make_curve, 1, 32),
}


def make_data(task: Task, seed: int) -> list[Arrays]:
  """Training, held-out and test examples.

  The first n of the held-out ones are a held-out set of n.
  """
  rng = np.random.default_rng(seed)
  counts = TRAINING, SIZES[-1], TEST
  x = rng.standard_normal((sum(counts), FEATURES)).astype(np.float32)
  y = task.make(rng, x)
  ends = np.cumsum((0, *counts))
  return [(x[a:b], y[a:b]) for a, b in itertools.pairwise(ends)]


def init_params(task: Task, blocks: int, seed: int) -> dict[str, Any]:
  """First weights, the first layer's in blocks; the same for any number."""
  rng = np.random.default_rng([seed, 1])
  width = task.hidden or task.outputs
  scale = np.sqrt((2 if task.hidden else 1) / FEATURES)
  w = (scale * rng.standard_normal((FEATURES, width))).astype(np.float32)
  params = {'blocks': np.split(w, blocks), 'b': np.zeros(width, np.float32)}
  if task.hidden:
    last = rng.standard_normal((width, task.outputs)) / np.sqrt(width)
    params['last'] = {
      'w': last.astype(np.float32),
      'b': np.zeros(task.outputs, np.float32),
    }
  return params


def label_blocks(params: dict[str, Any]) -> dict[str, Any]:
  """Each block a group of its own; all else goes with the first."""
  labels = jax.tree.map(lambda _: '0', params)
  names = [str(number) for number in range(len(params['blocks']))]
  return {**labels, 'blocks': names}


def make_losses(task: Task) -> Callable[[Any, Any], jax.Array]:
  """The loss of parameters on each example of a batch."""

  def losses(params: Any, batch: Any) -> jax.Array:
    x, y = batch
    out = x @ jnp.concatenate(params['blocks']) + params['b']
    if task.hidden:
      last = params['last']
      out = jax.nn.relu(out) @ last['w'] + last['b']
    if task.outputs == 1:
      return (out[:, 0] - y) ** 2 / 2
    return optax.softmax_cross_entropy_with_integer_labels(out, y)

  return losses
