"""Problems that other people made to break optimizers: LightBench's, no noise.

Written anew from the formulas of HomebrewML/LightBench
(https://github.com/HomebrewML/LightBench, BSD-3), with its published levels of
what counts as solved. Sizes are its own or smaller, all in float32; its points
to start from get some noise, so that seeds differ. It gives an optimizer 10 to
500 updates and many trials of its hyperparameters, we give one trial. Those
that draw batches or move are in `lightbench_noisy.py`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from problem import Batch
from problem import Loss
from problem import no_batch
from problem import Params
from problem import Problem


def normal(*shape: int) -> 'functools.partial[jax.Array]':
  """Makes first params `key -> array` of standard normal numbers."""
  return functools.partial(jax.random.normal, shape=shape)


def zeros(*shape: int) -> 'functools.partial[jax.Array]':
  """Makes the minimum `() -> array` at 0."""
  return functools.partial(jnp.zeros, shape)


def _without_noise(*, loss: Loss, **fields: Any) -> Problem:
  """A problem that has one loss at all steps, which is its objective."""
  return Problem(draw=no_batch, loss=loss, **{'objective': loss, **fields})


def quadratic_varying_scale() -> Problem:
  """Squares of curvatures 1 to 512, scaled so that they sum to 2."""
  size = 512
  scale = jnp.arange(1.0, size + 1)
  scale = scale / jnp.sum(scale)
  loss = lambda params, batch: jnp.sum(scale * params**2)
  return _without_noise(
    source='LightBench quadratic_varying_scale, medium',
    init=normal(size),
    loss=loss,
    floor=1e-4,
    scale=size,
    minimum=zeros(size),
    threshold=1e-7,
    threshold_of='distance',
  )


def layer_wise_scale() -> Problem:
  """Three layers whose gradients differ by factors of a thousand."""
  size, scales = 256, (1e3, 1.0, 1e-3)

  def loss(params: Params, batch: Batch) -> jax.Array:
    del batch
    squares = [jnp.mean(layer**2) for layer in params]
    return sum(s * m for s, m in zip(scales, squares, strict=True)) / 3

  return _without_noise(
    source='LightBench layer_wise_scale, medium',
    init=lambda key: [*jax.random.normal(key, (3, size))],
    loss=loss,
    floor=1e-3,
    minimum=lambda: [*jnp.zeros((3, size))],
    threshold=1e-4,
  )


def powers_varying_target() -> Problem:
  """Distances to targets in [0, 1), squared and to the powers 1 to 8."""
  size, powers = 64, 8
  target = jnp.arange(float(powers * size)).reshape(size, powers).T
  target = target / (powers * size)
  exponents = np.arange(1, powers + 1)

  def loss(params: Params, batch: Batch) -> jax.Array:
    del batch
    rows = [(params[i] - target[i]) ** int(p) for i, p in enumerate(exponents)]
    return jnp.mean(jnp.stack(rows) ** 2)

  return _without_noise(
    source='LightBench powers_varying_target, easy',
    init=lambda key: 2 * jax.random.uniform(key, (powers, size)),
    loss=loss,
    floor=1e-4,
    minimum=lambda: target,
    threshold=1e-6,
  )


def exploding_gradient() -> Problem:
  """exp(2 |x|): a kink at the minimum, gradients that grow exponentially."""
  size, steepness = 256, 2.0

  def loss(params: Params, batch: Batch) -> jax.Array:
    del batch
    return jnp.mean(jnp.exp(steepness * jnp.abs(params)))

  return _without_noise(
    source='LightBench exploding_gradient, easy',
    init=normal(size),
    loss=loss,
    objective=lambda params, batch: loss(params, batch) - 1,
    floor=1e-3,
    minimum=zeros(size),
    threshold=0.01,
    threshold_of='distance',
  )


def plateau_navigation() -> Problem:
  """A basin of two coordinates in a plateau that is flat to 1e-5."""
  steepness = 4.0

  def loss(params: Params, batch: Batch) -> jax.Array:
    del batch
    least = jax.nn.sigmoid(-steepness)
    return jax.nn.sigmoid(steepness * (jnp.sum(params**2) - 1)) - least

  return _without_noise(
    source='LightBench plateau_navigation, easy',
    init=lambda key: 1.5 + 0.1 * jax.random.normal(key, (2,)),
    loss=loss,
    floor=1e-4,
    scale=1e3,
    minimum=zeros(2),
    threshold=1e-4,
  )


def scale_invariant() -> Problem:
  """log(1 + x^2): x of sizes 1e-3 to 1e3, gradients that fade far away."""
  size = 512
  scales = jnp.logspace(-3, 3, size)

  def loss(params: Params, batch: Batch) -> jax.Array:
    del batch
    return jnp.mean(jnp.log1p(params**2))

  return _without_noise(
    source='LightBench scale_invariant, medium',
    init=lambda key: scales * jax.random.normal(key, (size,)),
    loss=loss,
    floor=1e-3,
    scale=size,
    minimum=zeros(size),
    threshold=1e-3,
  )


def quadratic_sparse() -> Problem:
  """The largest of 16 squares: a step sees one coordinate."""
  size = 16
  loss = lambda params, batch: jnp.max(params**2)
  return _without_noise(
    source='LightBench quadratic_sparse, easy',
    init=normal(size),
    loss=loss,
    floor=1e-3,
    minimum=zeros(size),
    threshold=1e-7,
    threshold_of='distance',
  )


def rosenbrock() -> Problem:
  """A bent valley of two coordinates, from far outside."""

  def loss(params: Params, batch: Batch) -> jax.Array:
    del batch
    x, y = params
    return (1 - x) ** 2 + (y - x**2) ** 2

  start = jnp.array([-7.0, -4.0])
  return _without_noise(
    source='LightBench rosenbrock',
    init=lambda key: start + 0.1 * jax.random.normal(key, (2,)),
    loss=loss,
    floor=1e-3,
    minimum=lambda: jnp.ones(2),
    threshold=1e-9,
  )


def beale() -> Problem:
  """Beale's valley with its minimum moved to 0, from a steep wall."""

  def loss(params: Params, batch: Batch) -> jax.Array:
    del batch
    x, y = params[0] + 3, params[1] + 0.5
    levels = enumerate((1.5, 2.25, 2.625), 1)
    return sum((level - x + x * y**power) ** 2 for power, level in levels)

  start = jnp.array([-7.0, -4.0])
  return _without_noise(
    source='LightBench beale',
    init=lambda key: start + 0.1 * jax.random.normal(key, (2,)),
    loss=loss,
    floor=1e-3,
    scale=1e-2,
    minimum=zeros(2),
    threshold=1e-8,
  )


def ill_conditioned() -> Problem:
  """A mean of squares whose curvatures span a factor of a million."""
  size = 256
  scale = jnp.logspace(-3, 3, size)
  loss = lambda params, batch: jnp.mean(scale * params**2)
  return _without_noise(
    source='LightBench ill_conditioned, medium',
    init=normal(size),
    loss=loss,
    floor=1e-3,
    minimum=zeros(size),
    threshold=1e-3,
  )
