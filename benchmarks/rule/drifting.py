"""What is learned moves: waves in time, of periods of 200 to 2000 updates.

A random walk would not be a function of the step alone.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import networks
import numpy as np
from problem import Batch
from problem import Params
from problem import Problem

BATCH = 32


def _waves(size: int) -> Callable[[jax.Array], jax.Array]:
  """Weights that move smoothly with the step, [size], of size about 1."""
  rng = np.random.default_rng(0)
  sines, cosines = jnp.asarray(rng.standard_normal((2, 4, size)) / 2)
  speeds = jnp.asarray(2 * np.pi / np.geomspace(200, 2000, 4)[:, None])

  def weights(step: jax.Array) -> jax.Array:
    angle = speeds * step
    return jnp.sum(sines * jnp.sin(angle) + cosines * jnp.cos(angle), 0)

  return weights


def _drifting(
  init: Callable[[jax.Array], Params],
  found: Callable[[Params, jax.Array], jax.Array],
  right: Callable[[jax.Array, jax.Array], jax.Array],
  size: int,
) -> Problem:
  """A regression on noisy targets that move, judged without the noise.

  Args:
    init: makes the first params.
    found: the outputs of params on inputs [B, size].
    right: the targets of inputs at a step.
    size: of an input.
  """
  fixed = jax.random.normal(jax.random.key(1), (256, size))

  def draw(key: jax.Array, step: jax.Array) -> Batch:
    keys = jax.random.split(jax.random.fold_in(key, step))
    x = jax.random.normal(keys[0], (BATCH, size))
    noise = 0.3 * jax.random.normal(keys[1], (BATCH,))
    return x, right(x, step) + noise, step

  def loss(params: Params, batch: Batch) -> jax.Array:
    x, y, _ = batch
    return jnp.mean((found(params, x) - y) ** 2)

  def objective(params: Params, batch: Batch) -> jax.Array:
    return jnp.mean((found(params, fixed) - right(fixed, batch[2])) ** 2)

  return Problem(
    source='ours',
    init=init,
    draw=draw,
    loss=loss,
    objective=objective,
    moving=True,
    floor=1e-3,
  )


def drifting_network() -> Problem:
  """A perceptron learns a sine of eight inputs whose weights move."""
  size, weights = 8, _waves(8)
  return _drifting(
    lambda key: networks.init_mlp(key, (size, 32, 1)),
    lambda params, x: networks.mlp(params, x)[:, 0],
    lambda x, step: jnp.sin(x @ weights(step)),
    size,
  )


def drifting_regression() -> Problem:
  """Twenty weights of a linear model move."""
  size, weights = 20, _waves(20)
  return _drifting(
    lambda key: 0.1 * jax.random.normal(key, (size,)),
    lambda params, x: x @ params,
    lambda x, step: x @ weights(step),
    size,
  )
