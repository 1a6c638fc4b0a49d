"""Problems that other people made to break optimizers: LightBench's.

Written anew from the formulas of HomebrewML/LightBench
(https://github.com/HomebrewML/LightBench, BSD-3), with its published levels of
what counts as solved. Sizes are its own or smaller, all in float32; its points
to start from get some noise, so that seeds differ. It gives an optimizer 10 to
500 updates and many trials of its hyperparameters, we give one trial.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from problem import Batch
from problem import no_batch
from problem import Params
from problem import Problem


def _normal(*shape: int) -> 'functools.partial[jax.Array]':
  return functools.partial(jax.random.normal, shape=shape)


def _zeros(*shape: int) -> 'functools.partial[jax.Array]':
  return functools.partial(jnp.zeros, shape)


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
    init=_normal(size),
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
    init=_normal(size),
    draw=_of_step,
    loss=loss,
    objective=lambda params, step: jnp.mean(params**2),
    moving=True,
    floor=1e-4,
    scale=size,
    minimum=_zeros(size),
    threshold=1e-3,
    threshold_of='distance',
  )


def quadratic_varying_scale() -> Problem:
  """Squares of curvatures 1 to 512, scaled so that they sum to 2."""
  size = 512
  scale = jnp.arange(1.0, size + 1)
  scale = scale / jnp.sum(scale)
  loss = lambda params, batch: jnp.sum(scale * params**2)
  return Problem(
    source='LightBench quadratic_varying_scale, medium',
    init=_normal(size),
    draw=no_batch,
    loss=loss,
    objective=loss,
    floor=1e-4,
    scale=size,
    minimum=_zeros(size),
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

  return Problem(
    source='LightBench layer_wise_scale, medium',
    init=lambda key: [*jax.random.normal(key, (3, size))],
    draw=no_batch,
    loss=loss,
    objective=loss,
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

  return Problem(
    source='LightBench powers_varying_target, easy',
    init=lambda key: 2 * jax.random.uniform(key, (powers, size)),
    draw=no_batch,
    loss=loss,
    objective=loss,
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

  return Problem(
    source='LightBench exploding_gradient, easy',
    init=_normal(size),
    draw=no_batch,
    loss=loss,
    objective=lambda params, batch: loss(params, batch) - 1,
    floor=1e-3,
    minimum=_zeros(size),
    threshold=0.01,
    threshold_of='distance',
  )


def heavy_tails() -> Problem:
  """A mean square whose gradient has noise of no finite variance: Cauchy's."""
  size, offset = 512, 8

  def draw(key: jax.Array, step: jax.Array) -> Batch:
    return jax.random.cauchy(jax.random.fold_in(key, step), (size,)) / offset

  return Problem(
    source='LightBench gradient_noise_scale_heavy_tailed, medium',
    init=_normal(size),
    draw=draw,
    loss=lambda params, noise: jnp.mean((params + noise) ** 2),
    objective=lambda params, noise: jnp.mean(params**2),
    floor=1e-3,
    scale=size,
    minimum=_zeros(size),
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
    init=_normal(size),
    draw=draw,
    loss=loss,
    objective=objective,
    floor=1e-3,
    minimum=_zeros(size),
    threshold=1e-7,
    threshold_of='distance',
  )


def plateau_navigation() -> Problem:
  """A basin of two coordinates in a plateau that is flat to 1e-5."""
  steepness = 4.0

  def loss(params: Params, batch: Batch) -> jax.Array:
    del batch
    least = jax.nn.sigmoid(-steepness)
    return jax.nn.sigmoid(steepness * (jnp.sum(params**2) - 1)) - least

  return Problem(
    source='LightBench plateau_navigation, easy',
    init=lambda key: 1.5 + 0.1 * jax.random.normal(key, (2,)),
    draw=no_batch,
    loss=loss,
    objective=loss,
    floor=1e-4,
    scale=1e3,
    minimum=_zeros(2),
    threshold=1e-4,
  )


def scale_invariant() -> Problem:
  """log(1 + x^2): x of sizes 1e-3 to 1e3, gradients that fade far away."""
  size = 512
  scales = jnp.logspace(-3, 3, size)

  def loss(params: Params, batch: Batch) -> jax.Array:
    del batch
    return jnp.mean(jnp.log1p(params**2))

  return Problem(
    source='LightBench scale_invariant, medium',
    init=lambda key: scales * jax.random.normal(key, (size,)),
    draw=no_batch,
    loss=loss,
    objective=loss,
    floor=1e-3,
    scale=size,
    minimum=_zeros(size),
    threshold=1e-3,
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
    init=_normal(size),
    draw=draw,
    loss=loss,
    objective=lambda params, mask: jnp.mean(params**2),
    floor=1e-3,
    scale=size,
    minimum=_zeros(size),
    threshold=1e-4,
  )


def quadratic_sparse() -> Problem:
  """The largest of 16 squares: a step sees one coordinate."""
  size = 16
  loss = lambda params, batch: jnp.max(params**2)
  return Problem(
    source='LightBench quadratic_sparse, easy',
    init=_normal(size),
    draw=no_batch,
    loss=loss,
    objective=loss,
    floor=1e-3,
    minimum=_zeros(size),
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
  return Problem(
    source='LightBench rosenbrock',
    init=lambda key: start + 0.1 * jax.random.normal(key, (2,)),
    draw=no_batch,
    loss=loss,
    objective=loss,
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
  return Problem(
    source='LightBench beale',
    init=lambda key: start + 0.1 * jax.random.normal(key, (2,)),
    draw=no_batch,
    loss=loss,
    objective=loss,
    floor=1e-3,
    scale=1e-2,
    minimum=_zeros(2),
    threshold=1e-8,
  )


def ill_conditioned() -> Problem:
  """A mean of squares whose curvatures span a factor of a million."""
  size = 256
  scale = jnp.logspace(-3, 3, size)
  loss = lambda params, batch: jnp.mean(scale * params**2)
  return Problem(
    source='LightBench ill_conditioned, medium',
    init=_normal(size),
    draw=no_batch,
    loss=loss,
    objective=loss,
    floor=1e-3,
    minimum=_zeros(size),
    threshold=1e-3,
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
    init=_normal(size),
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
