"""The models of `meta_gradient.py`, and one outer step of each."""

from collections.abc import Callable
import itertools
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import optax

import metalr_flax
from metalr_flax import models


class Model(NamedTuple):
  """A model with its data.

  Attributes:
    make: the module.
    loss: `(model, batch) -> (loss, metrics)`.
    data: arrays of [batches, ...]; batches are drawn in turn.
    floor: operations of an exact meta-gradient over plain training.
  """

  make: Callable[[], nnx.Module]
  loss: Callable
  data: Any
  floor: float


def classify(model: nnx.Module, batch: Any) -> tuple[jax.Array, dict]:
  """Mean softmax cross-entropy."""
  logits = model(batch['x'])
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch['y'])
  return jnp.mean(losses), {}


def _data(shape: tuple, classes: int, labels: tuple = ()) -> dict:
  key_x, key_y = jax.random.split(jax.random.key(0))
  x = jax.random.normal(key_x, (8, *shape))
  y = jax.random.randint(key_y, (8, shape[0], *labels), 0, classes)
  return {'x': x, 'y': y}


def make_models() -> dict[str, Model]:
  """The three models. The floor counts matrix products and convolutions.

  Each does one product forward and two backward, and its first derivative six
  more: 9 / 3. The first layer's input does not move: 4 / 2.
  """
  widths = (784, 512, 512, 10)
  sizes = [a * b for a, b in itertools.pairwise(widths)]
  plain = 2 * sizes[0] + 3 * sum(sizes[1:])
  exact = 4 * sizes[0] + 9 * sum(sizes[1:])
  tokens = jax.random.randint(jax.random.key(1), (8, 8, 32), 0, 256)
  return {
    'mlp': Model(
      lambda: models.MLP(features=widths, rngs=nnx.Rngs(0)),
      classify,
      _data((128, 784), 10),
      exact / plain,
    ),
    'cnn': Model(
      lambda: models.CNN(features=(16, 32), num_classes=10, rngs=nnx.Rngs(0)),
      classify,
      _data((64, 8, 8, 1), 10),
      3.0,
    ),
    'transformer': Model(
      lambda: models.Transformer(
        vocab_size=256, d_model=64, num_heads=4, num_layers=2, rngs=nnx.Rngs(0)
      ),
      classify,
      {'x': tokens, 'y': jnp.roll(tokens, -1, axis=-1)},
      3.0,
    ),
  }


def make_step(
  model: Model,
  estimator: metalr_flax.Estimator,
  learned: dict,
  unroll_length: int,
) -> tuple[Callable, Any]:
  """The outer step `(state, data) -> state` and its first state."""
  parts = metalr_flax.split(model.make())
  loss_fn = metalr_flax.make_loss_fn(parts.train, model.loss)
  meta_tx = optax.adam(1e-3)

  def problem(data: Any) -> metalr_flax.Problem:
    def next_batch(count: jax.Array) -> tuple[jax.Array, Any]:
      return count + 1, jax.tree.map(lambda a: a[count % len(a)], data)

    return metalr_flax.Problem(
      loss_fn=loss_fn,
      meta_loss_fn=loss_fn,
      next_batch=next_batch,
      next_meta_batch=next_batch,
      tx=metalr_flax.make_injected(
        'rmsprop', {n: v for n, (_, v) in learned.items()}, learned
      ),
      bijections={name: spec for name, (spec, _) in learned.items()},
      unroll_length=unroll_length,
    )

  def step(state: Any, data: Any) -> Any:
    state, _ = metalr_flax.outer_step(
      state, problem(data), meta_tx=meta_tx, estimator=estimator
    )
    return state

  state = metalr_flax.init_state(
    problem(model.data),
    params=parts.params,
    model_state=parts.model_state,
    data_state=jnp.zeros((), jnp.int32),
    hyperparams={name: value for name, (_, value) in learned.items()},
    meta_tx=meta_tx,
    estimator=estimator,
  )
  return step, jax.tree.map(jnp.copy, state)


def make_handwritten(unroll_length: int, data: Any) -> tuple[Callable, Any]:
  """The MLP's exact forward meta-gradient with no help: one jvp of one scan."""
  parts = metalr_flax.split(make_models()['mlp'].make())

  def forward(params: Any, x: jax.Array) -> jax.Array:
    layers = [params['layers'][i] for i in sorted(params['layers'])]
    for layer in layers[:-1]:
      x = jax.nn.relu(x @ layer['kernel'] + layer['bias'])
    return x @ layers[-1]['kernel'] + layers[-1]['bias']

  def loss(params: Any, batch: Any) -> jax.Array:
    return jnp.mean(
      optax.softmax_cross_entropy_with_integer_labels(
        forward(params, batch['x']), batch['y']
      )
    )

  def window(eta: jax.Array, carry: tuple, data: Any) -> tuple:
    rate = jnp.exp(eta)

    def body(carry: tuple, _: None) -> tuple[tuple, None]:
      params, nu, count = carry
      batch = jax.tree.map(lambda a: a[count % len(a)], data)
      grads = jax.grad(loss)(params, batch)
      nu = jax.tree.map(lambda n, g: 0.9 * n + 0.1 * g * g, nu, grads)
      params = jax.tree.map(
        lambda p, g, n: p - rate * g * jax.lax.rsqrt(n + 1e-8),
        params,
        grads,
        nu,
      )
      return (params, nu, count + 1), None

    carry, _ = jax.lax.scan(body, carry, length=unroll_length)
    params, _, count = carry
    batch = jax.tree.map(lambda a: a[count % len(a)], data)
    return loss(params, batch), carry

  def step(state: tuple, data: Any) -> tuple:
    eta, carry = state
    _, slope, carry = jax.jvp(
      lambda e: window(e, carry, data),
      (eta,),
      (jnp.ones_like(eta),),
      has_aux=True,
    )
    return eta - 1e-3 * slope, carry

  params = parts.params
  nu = jax.tree.map(jnp.zeros_like, params)
  state = jnp.log(jnp.float32(1e-3)), (params, nu, jnp.zeros((), jnp.int32))
  return step, jax.tree.map(jnp.copy, state)
