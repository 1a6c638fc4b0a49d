"""Gated recurrent units, on made numbers and on characters.

Shape legend: B batch, T inputs.
"""

import data_sets
import jax
import jax.numpy as jnp
import networks
from problem import Batch
from problem import Params
from problem import Problem


def _init_gru(key: jax.Array, inputs: int, width: int, outputs: int) -> Params:
  keys = jax.random.split(key, 3)
  return {
    'gates': networks.dense(keys[0], inputs + width, 2 * width),
    'new': networks.dense(keys[1], inputs + width, width),
    'head': networks.dense(keys[2], width, outputs),
  }


def _gru(params: Params, x: jax.Array) -> jax.Array:
  """States after each input, [B, T, inputs] to [B, T, width]."""
  state = jnp.zeros((len(x), params['head']['w'].shape[0]))
  states = []
  for t in range(x.shape[1]):
    both = jnp.concatenate([x[:, t], state], -1)
    keep, reset = jnp.split(
      jax.nn.sigmoid(networks.apply(params['gates'], both)), 2, -1
    )
    both = jnp.concatenate([x[:, t], reset * state], -1)
    state = keep * state + (1 - keep) * jnp.tanh(
      networks.apply(params['new'], both)
    )
    states.append(state)
  return jnp.stack(states, 1)


def gru_adding() -> Problem:
  """The sum of the two marked ones of eight numbers; each batch is new."""
  length, batch = 8, 16

  def make(key: jax.Array, count: int) -> Batch:
    keys = jax.random.split(key)
    numbers = jax.random.uniform(keys[0], (count, length))
    ranks = jax.random.uniform(keys[1], (count, length)).argsort(1)
    return jnp.stack([numbers, ranks < 2.0], -1)

  def loss(params: Params, x: Batch) -> jax.Array:
    found = networks.apply(params['head'], _gru(params, x)[:, -1])[:, 0]
    return jnp.mean((found - jnp.prod(x, -1).sum(1)) ** 2)

  fixed = make(jax.random.key(1), 1000)
  return Problem(
    source='ours',
    init=lambda key: _init_gru(key, 2, 16, 1),
    draw=lambda key, step: make(jax.random.fold_in(key, step), batch),
    loss=loss,
    objective=lambda params, batch: loss(params, fixed),
    floor=1e-3,
  )


def gru_manual() -> Problem:
  """A recurrent network of the characters of Python's manual."""
  sets, size = data_sets.pieces_of(data_sets.manual()[100_000:], 8)

  def init(key: jax.Array) -> Params:
    table = 0.3 * jax.random.normal(jax.random.fold_in(key, 1), (size, 16))
    return {'table': table, **_init_gru(key, 16, 32, size)}

  def forward(params: Params, x: jax.Array) -> jax.Array:
    return networks.apply(params['head'], _gru(params, params['table'][x]))

  return networks.on_fixed_data(
    init, networks.classify(forward), sets, batch=16
  )
