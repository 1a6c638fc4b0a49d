"""Embeddings and factors: for most rows of a table a step's gradient is 0."""

import data_sets
import jax
import jax.numpy as jnp
import networks
import numpy as np
from problem import Batch
from problem import MEMORISED
from problem import Params
from problem import Problem


def skipgram() -> Problem:
  """A word's neighbour by two tables of 300 words; rare words learn seldom."""
  size, width, count = 300, 16, 4000
  words = np.array(data_sets.manual().lower().split()[:30_000])
  names, codes, counts = np.unique(
    words, return_inverse=True, return_counts=True
  )
  common = np.argsort(-counts, kind='stable')[:size]
  place = np.full(len(names), -1)
  place[common] = np.arange(size)
  pairs = np.stack([place[codes[:-1]], place[codes[1:]]], 1)
  pairs = np.random.default_rng(0).permutation(pairs[(pairs >= 0).all(1)])
  x, y = jnp.asarray(pairs.T, jnp.int32)
  sets = (
    (x[:count], y[:count]),
    (x[count : count + 1000], y[count : count + 1000]),
  )

  def init(key: jax.Array) -> Params:
    keys = jax.random.split(key)
    return [
      0.3 * jax.random.normal(keys[0], (size, width)),
      0.3 * jax.random.normal(keys[1], (width, size)),
    ]

  forward = lambda params, x: params[0][x] @ params[1]
  return networks.on_fixed_data(
    init, networks.classify(forward), sets, batch=32
  )


def recommender() -> Problem:
  """Ratings of 60 people for 40 things by products of six factors."""
  people, things, rank = 60, 40, 6
  rng = np.random.default_rng(0)
  tastes = rng.standard_normal((people, 4)) @ rng.standard_normal((4, things))
  ratings = tastes / 2 + 0.3 * rng.standard_normal(tastes.shape)
  order = rng.permutation(people * things)
  who, what = (jnp.asarray(a) for a in np.divmod(order, things))
  rated = jnp.asarray(ratings.ravel()[order], jnp.float32)
  sets = tuple(
    (who[part], what[part], rated[part])
    for part in (slice(0, 1200), slice(1200, None))
  )

  def init(key: jax.Array) -> Params:
    keys = jax.random.split(key)
    return [
      0.1 * jax.random.normal(k, (n, rank))
      for k, n in zip(keys, (people, things), strict=True)
    ]

  def loss(params: Params, batch: Batch) -> jax.Array:
    who, what, rating = batch
    found = jnp.sum(params[0][who] * params[1][what], 1)
    return jnp.mean((found - rating) ** 2)

  return networks.on_fixed_data(init, loss, sets, batch=32, floor=MEMORISED)


def saddle_factorisation() -> Problem:
  """A matrix of rank four as a product, from next to the saddle at 0."""
  size, rank, batch = 20, 6, 16
  rng = np.random.default_rng(0)
  parts = rng.standard_normal((2, size, 4)) / 2
  matrix = jnp.asarray(parts[0] @ parts[1].T, jnp.float32)

  def loss(params: Params, x: Batch) -> jax.Array:
    return jnp.mean((x @ params[0] @ params[1] - x @ matrix) ** 2)

  def init(key: jax.Array) -> Params:
    shapes = (size, rank), (rank, size)
    keys = jax.random.split(key)
    return [
      1e-3 * jax.random.normal(k, shape)
      for k, shape in zip(keys, shapes, strict=True)
    ]

  def draw(key: jax.Array, step: jax.Array) -> Batch:
    return jax.random.normal(jax.random.fold_in(key, step), (batch, size))

  return Problem(
    source='ours',
    init=init,
    draw=draw,
    loss=loss,
    # The mean over all inputs: those along the axes, of length sqrt(size).
    objective=lambda params, x: loss(params, size**0.5 * jnp.eye(size)),
    floor=MEMORISED,
  )
