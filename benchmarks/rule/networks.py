"""Perceptrons, conv nets with batch norm and autoencoders, in small.

Weights start as He et al. 2015 advise; `dense`, `classify` and `on_fixed_data`
are for all networks.
"""

from collections.abc import Callable
from typing import Any

import data_sets
from data_sets import Set
import jax
import jax.numpy as jnp
import numpy as np
import optax
from problem import Batch
from problem import draw_from
from problem import Loss
from problem import MEMORISED
from problem import Params
from problem import Problem
from sklearn import datasets

Forward = Callable[[Params, jax.Array], jax.Array]


def on_fixed_data(
  init: Callable[[jax.Array], Params],
  loss: Loss,
  sets: tuple[Any, Any],
  *,
  batch: int,
  floor: float = 0.0,
) -> Problem:
  """What all problems with a fixed data set share."""
  train, unseen = sets
  return Problem(
    source='ours',
    init=init,
    draw=draw_from(train, batch),
    loss=loss,
    objective=lambda params, batch: loss(params, train),
    unseen=lambda params: loss(params, unseen),
    floor=floor,
  )


def classify(forward: Forward) -> Loss:
  """Cross-entropy, over all axes of the labels."""

  def loss(params: Params, batch: Batch) -> jax.Array:
    x, y = batch
    logits = forward(params, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

  return loss


def dense(key: jax.Array, inputs: int, outputs: int, gain: float = 1) -> Any:
  """A layer's first weights, of variance `gain / inputs`, and zeros."""
  w = jax.random.normal(key, (inputs, outputs)) * (gain / inputs) ** 0.5
  return {'w': w, 'b': jnp.zeros(outputs)}


def apply(layer: Any, x: jax.Array) -> jax.Array:
  """A layer's outputs."""
  return x @ layer['w'] + layer['b']


# Multilayer perceptrons.


def init_mlp(key: jax.Array, widths: tuple[int, ...]) -> Params:
  """The first params of a perceptron."""
  keys = jax.random.split(key, len(widths) - 1)
  gains = [2.0] * (len(widths) - 2) + [1.0]
  return [
    dense(*each)
    for each in zip(keys, widths[:-1], widths[1:], gains, strict=True)
  ]


def mlp(params: Params, x: jax.Array, act: Any = jax.nn.relu) -> jax.Array:
  """A perceptron's outputs; `act` follows all layers but the last."""
  for layer in params[:-1]:
    x = act(apply(layer, x))
  return apply(params[-1], x)


def _square(params: Params, batch: Batch) -> jax.Array:
  """Mean squared error of an MLP with one output."""
  x, y = batch
  return jnp.mean((mlp(params, x)[:, 0] - y) ** 2)


def mlp_digits() -> Problem:
  """A classifier of 500 digits, which it memorises."""
  sets = data_sets.split(
    *datasets.load_digits(return_X_y=True), 500, standardise=True
  )
  init = lambda key: init_mlp(key, (64, 64, 10))
  return on_fixed_data(init, classify(mlp), sets, batch=32, floor=MEMORISED)


def mlp_friedman() -> Problem:
  """Friedman's first regression with noise, 500 examples."""
  x, y = datasets.make_friedman1(1500, noise=1.0, random_state=0)
  sets = data_sets.split(x, (y - y.mean()) / y.std(), 500, standardise=True)
  init = lambda key: init_mlp(key, (10, 64, 1))
  return on_fixed_data(init, _square, sets, batch=32, floor=MEMORISED)


# Convolutional networks with batch norm, by matrix products alone: side by
# side, with kernels of their own, XLA's convolutions are slow.


def _pieces(size: int, stride: int) -> np.ndarray:
  """Where 3 x 3 pieces of an image lie in it, with zeros around it.

  Args:
    size: height and width of the image.
    stride: from one piece to the next.

  Returns:
    Ones and zeros, [size^2, (size / stride)^2, 9].
  """
  places = np.pad(
    np.eye(size**2).reshape(-1, size, size), [[0, 0], *[[1, 1]] * 2]
  )
  shifted = [
    places[:, i : i + size : stride, j : j + size : stride]
    for i in range(3)
    for j in range(3)
  ]
  return np.stack(shifted, -1).reshape(size**2, -1, 9).astype(np.float32)


LAYERS = _pieces(8, 1), _pieces(8, 2)  # of images [8, 8]


def _init_conv(key: jax.Array, classes: int) -> Params:
  keys = jax.random.split(key, 3)
  norm = lambda size: {'scale': jnp.ones(size), 'bias': jnp.zeros(size)}
  return {
    'conv': [
      jax.random.normal(keys[0], (9, 8)) * (2 / 9) ** 0.5,
      jax.random.normal(keys[1], (72, 16)) * (2 / 72) ** 0.5,
    ],
    'norm': [norm(8), norm(16)],
    'head': dense(keys[2], 16, classes),
  }


def _conv(
  params: Params, x: jax.Array, statistics: Any = None
) -> tuple[jax.Array, Any]:
  """Logits of images [B, 64], and the statistics of batch norm.

  Args:
    params: of `_init_conv`.
    x: the images.
    statistics: means and variances of each layer; those of `x` unless given.
  """
  x, found = x[..., None], []
  for number, (kernel, norm) in enumerate(
    zip(params['conv'], params['norm'], strict=True)
  ):
    pieces = jnp.einsum('bpc,pqk->bqkc', x, LAYERS[number])
    x = pieces.reshape(*pieces.shape[:2], -1) @ kernel
    found.append((x.mean((0, 1)), x.var((0, 1))))
    mean, variance = (statistics or found)[number]
    x = (x - mean) * jax.lax.rsqrt(variance + 1e-5)
    x = jax.nn.relu(norm['scale'] * x + norm['bias'])
  return apply(params['head'], x.mean(1)), found


def _conv_problem(sets: tuple[Set, Set], classes: int) -> Problem:
  """A conv net on 8 x 8 pixels; unseen images get the training set's norm."""
  train, unseen = sets
  loss = classify(lambda params, x: _conv(params, x)[0])

  def unseen_loss(params: Params) -> jax.Array:
    _, statistics = _conv(params, train[0])
    logits, _ = _conv(params, unseen[0], statistics)
    return optax.softmax_cross_entropy_with_integer_labels(
      logits, unseen[1]
    ).mean()

  return Problem(
    source='ours',
    init=lambda key: _init_conv(key, classes),
    draw=draw_from(train, 32),
    loss=loss,
    objective=lambda params, batch: loss(params, train),
    unseen=unseen_loss,
    floor=MEMORISED,
  )


def conv_digits() -> Problem:
  """A conv net with batch norm on digits."""
  return _conv_problem(data_sets.digits(), 10)


def conv_photos() -> Problem:
  """A conv net with batch norm on patches of photos."""
  return _conv_problem(data_sets.photos(), 2)


# Autoencoders with a bottleneck of eight.


def _autoencoder(sets: tuple[Set, Set]) -> Problem:
  def loss(params: Params, x: Batch) -> jax.Array:
    return jnp.mean((mlp(params, x, jnp.tanh) - x) ** 2)

  init = lambda key: init_mlp(key, (64, 32, 8, 32, 64))
  images = sets[0][0], sets[1][0]
  return on_fixed_data(init, loss, images, batch=32)


def autoencoder_digits() -> Problem:
  """Digits through eight numbers."""
  return _autoencoder(data_sets.digits())


def autoencoder_photos() -> Problem:
  """Patches of photos through eight numbers."""
  return _autoencoder(data_sets.photos())
