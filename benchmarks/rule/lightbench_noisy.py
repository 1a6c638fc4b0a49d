"""LightBench's problems that draw batches, or move by a clock.

Of its other problems and their source see `lightbench.py`.
"""

import jax
import jax.numpy as jnp
from lightbench import normal
from lightbench import zeros
from problem import Batch
from problem import Params
from problem import Problem


def _of_step(key: jax.Array, step: jax.Array) -> jax.Array:
  """The number of the step, float32: for losses that move by a clock."""
  del key
  return jnp.asarray(step, jnp.float32)


def dynamic_landscape() -> Problem:
  """A mean square around a sine wave that travels along the coordinates."""
  size, speed = 256, 1.1 / 20
  along = jnp.linspace(0, 2 * jnp.pi, size)

  def loss(params: Params, step: Batch) -> jax.Array:
    return jnp.mean((params - jnp.sin(along + speed * (step + 1))) ** 2)

  return Problem(
    source='LightBench dynamic_landscape, medium',
    init=normal(size),
    draw=_of_step,
    loss=loss,
    objective=loss,
    moving=True,
    floor=1e-4,
    scale=size,
    threshold=0.01,
  )


def adversarial_gradient() -> Problem:
  """A mean square, and a slope of all coordinates that swings to and fro."""
  size, frequency = 256, 1.1 / 10

  def loss(params: Params, step: Batch) -> jax.Array:
    direction = jnp.sin((step + 1) * jnp.pi * frequency)
    return jnp.mean(params**2) + direction * jnp.mean(params)

  return Problem(
    source='LightBench adversarial_gradient, medium',
    init=normal(size),
    draw=_of_step,
    loss=loss,
    objective=lambda params, step: jnp.mean(params**2),
    moving=True,
    floor=1e-4,
    scale=size,
    minimum=zeros(size),
    threshold=1e-3,
    threshold_of='distance',
  )


def heavy_tails() -> Problem:
  """A mean square whose gradient has noise of no finite variance: Cauchy's."""
  size, offset = 512, 8

  def draw(key: jax.Array, step: jax.Array) -> Batch:
    return jax.random.cauchy(jax.random.fold_in(key, step), (size,)) / offset

  return Problem(
    source='LightBench gradient_noise_scale_heavy_tailed, medium',
    init=normal(size),
    draw=draw,
    loss=lambda params, noise: jnp.mean((params + noise) ** 2),
    objective=lambda params, noise: jnp.mean(params**2),
    floor=1e-3,
    scale=size,
    minimum=zeros(size),
    threshold=1e-3,
    threshold_of='distance',
  )


def quadratic_outliers() -> Problem:
  """A mean square in which coordinates count 512 times at random."""
  size, spike = 128, 512.0
  chance = jnp.arange(1.0, size + 1) / (size + 1)

  def draw(key: jax.Array, step: jax.Array) -> Batch:
    return jax.random.uniform(jax.random.fold_in(key, step), (size,)) < chance

  def loss(params: Params, spikes: Batch) -> jax.Array:
    return jnp.mean(jnp.where(spikes, spike, 1) * params**2)

  def objective(params: Params, spikes: Batch) -> jax.Array:
    return jnp.mean((1 + (spike - 1) * chance) * params**2)

  return Problem(
    source='LightBench quadratic_outliers, medium',
    init=normal(size),
    draw=draw,
    loss=loss,
    objective=objective,
    floor=1e-3,
    minimum=zeros(size),
    threshold=1e-7,
    threshold_of='distance',
  )


def sparse_gradient() -> Problem:
  """A mean square of which a step sees one coordinate in 32."""
  size, density = 2048, 2**-6

  def draw(key: jax.Array, step: jax.Array) -> Batch:
    masks = [
      jax.random.bernoulli(jax.random.fold_in(key, s), density, (size,))
      for s in (step, step + 1)
    ]
    return masks[0] | masks[1]  # half of them are those of the step before

  def loss(params: Params, mask: Batch) -> jax.Array:
    return jnp.mean(mask * params**2)

  return Problem(
    source='LightBench sparse_gradient, medium',
    init=normal(size),
    draw=draw,
    loss=loss,
    objective=lambda params, mask: jnp.mean(params**2),
    floor=1e-3,
    scale=size,
    minimum=zeros(size),
    threshold=1e-4,
  )


def noisy_matmul() -> Problem:
  """A vector sent through two random matrices of each example must vanish."""
  size, depth, batch = 16, 2, 16
  offset = jax.random.normal(jax.random.key(1), (size,))

  def draw(key: jax.Array, step: jax.Array) -> Batch:
    key = jax.random.fold_in(key, step)
    matrices = jax.random.normal(key, (depth, batch, size, size))
    return matrices / size**0.5

  def loss(params: Params, matrices: Batch) -> jax.Array:
    x = jnp.broadcast_to(params + offset, (batch, size))
    for matrix in matrices[:-1]:
      x = jax.nn.leaky_relu(jnp.einsum('bi,bik->bk', x, matrix), 0.1)
    return jnp.mean(jnp.einsum('bi,bik->bk', x, matrices[-1]) ** 2)

  return Problem(
    source='LightBench noisy_matmul, easy',
    init=normal(size),
    draw=draw,
    loss=loss,
    objective=lambda params, batch: jnp.mean((params + offset) ** 2),
    floor=1e-3,
    scale=size,
    minimum=lambda: -offset,
    threshold=1e-7,
    threshold_of='distance',
  )


def summod() -> Problem:
  """The sum of two numbers modulo 64, by an embedding and a hidden layer."""
  classes, items, features, hidden, batch = 64, 2, 4, 32, 16

  def init(key: jax.Array) -> Params:
    keys = jax.random.split(key, 5)
    bounds = (1.0, *2 * [(items * features) ** -0.5], *2 * [hidden**-0.5])
    shapes = (
      (classes, features), (items * features, hidden), (hidden,),
      (hidden, classes), (classes,),
    )  # fmt: skip
    table, *layers = (
      jax.random.uniform(k, shape, minval=-b, maxval=b)
      for k, shape, b in zip(keys, shapes, bounds, strict=True)
    )
    normal = jax.random.normal(keys[0], table.shape)  # as torch's embedding
    return [normal, *layers]

  def draw(key: jax.Array, step: jax.Array) -> Batch:
    key = jax.random.fold_in(key, step)
    return jax.random.randint(key, (batch, items), 0, classes)

  def loss(params: Params, pairs: Batch) -> jax.Array:
    table, w1, b1, w2, b2 = params
    x = table[pairs].reshape(len(pairs), -1)
    logits = jax.nn.relu(x @ w1 + b1) @ w2 + b2
    right = (pairs.sum(1) % classes)[:, None]
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), right, 1)
    return -jnp.mean(chosen)

  every = jnp.stack(jnp.divmod(jnp.arange(classes**2), classes), 1)
  return Problem(
    source='LightBench generalization_summod, trivial',
    init=init,
    draw=draw,
    loss=loss,
    objective=lambda params, pairs: loss(params, every),
    floor=1e-2,
    threshold=1e-8,
  )
