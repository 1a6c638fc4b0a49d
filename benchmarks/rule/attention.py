"""Vision transformers and transformers of characters: one block, pre-norm.

Shape legend: B batch, T tokens.
"""

import argparse
import inspect

import data_sets
from data_sets import Set
import jax
import jax.numpy as jnp
import networks
from problem import MEMORISED
from problem import Params
from problem import Problem


def _init_block(key: jax.Array, width: int) -> Params:
  keys = jax.random.split(key, 4)
  return {
    'qkv': networks.dense(keys[0], width, 3 * width),
    'out': networks.dense(keys[1], width, width),
    'up': networks.dense(keys[2], width, 2 * width, 2.0),
    'down': networks.dense(keys[3], 2 * width, width),
    'norms': [jnp.ones(width), jnp.ones(width)],
  }


def _layer_norm(scale: jax.Array, x: jax.Array) -> jax.Array:
  x = x - x.mean(-1, keepdims=True)
  return scale * x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-5)


def _block(params: Params, x: jax.Array, *, causal: bool) -> jax.Array:
  """Attention with two heads and a hidden layer, [B, T, width]."""
  batch, length, width = x.shape
  heads = networks.apply(params['qkv'], _layer_norm(params['norms'][0], x))
  q, k, v = jnp.moveaxis(heads.reshape(batch, length, 3, 2, width // 2), 2, 0)
  scores = jnp.einsum('bqhd,bkhd->bhqk', q, k) * (width / 2) ** -0.5
  if causal:
    scores = jnp.where(jnp.tri(length, dtype=bool), scores, -1e9)
  mixed = jnp.einsum('bhqk,bkhd->bqhd', jax.nn.softmax(scores), v)
  x = x + networks.apply(params['out'], mixed.reshape(batch, length, width))
  hidden = networks.apply(params['up'], _layer_norm(params['norms'][1], x))
  return x + networks.apply(params['down'], jax.nn.gelu(hidden))


def _vit_problem(
  sets: tuple[Set, Set], classes: int, width: int = 16
) -> Problem:
  """A vision transformer on 16 patches of 2 x 2 pixels."""

  def init(key: jax.Array) -> Params:
    keys = jax.random.split(key, 4)
    return {
      'patches': networks.dense(keys[0], 4, width),
      'places': 0.02 * jax.random.normal(keys[1], (16, width)),
      'block': _init_block(keys[2], width),
      'norm': jnp.ones(width),
      'head': networks.dense(keys[3], width, classes),
    }

  def forward(params: Params, x: jax.Array) -> jax.Array:
    x = x.reshape(-1, 4, 2, 4, 2).swapaxes(2, 3).reshape(-1, 16, 4)
    x = networks.apply(params['patches'], x) + params['places']
    x = _block(params['block'], x, causal=False)
    x = _layer_norm(params['norm'], x).mean(1)
    return networks.apply(params['head'], x)

  return networks.on_fixed_data(
    init, networks.classify(forward), sets, batch=16, floor=MEMORISED
  )


def vit_digits() -> Problem:
  """A vision transformer on digits."""
  return _vit_problem(data_sets.digits(), 10)


def vit_photos() -> Problem:
  """A vision transformer on patches of photos."""
  return _vit_problem(data_sets.photos(), 2)


def _transformer_problem(
  text: str, length: int = 16, width: int = 32
) -> Problem:
  """A causal transformer of characters."""
  sets, size = data_sets.pieces_of(text, length)

  def init(key: jax.Array) -> Params:
    keys = jax.random.split(key, 4)
    return {
      'table': 0.1 * jax.random.normal(keys[0], (size, width)),
      'places': 0.02 * jax.random.normal(keys[1], (length, width)),
      'block': _init_block(keys[2], width),
      'norm': jnp.ones(width),
      'head': networks.dense(keys[3], width, size),
    }

  def forward(params: Params, x: jax.Array) -> jax.Array:
    x = params['table'][x] + params['places']
    x = _block(params['block'], x, causal=True)
    return networks.apply(params['head'], _layer_norm(params['norm'], x))

  return networks.on_fixed_data(init, networks.classify(forward), sets, batch=8)


def transformer_manual() -> Problem:
  """A transformer of the characters of Python's manual."""
  return _transformer_problem(data_sets.manual())


def transformer_code() -> Problem:
  """A transformer of the characters of a Python module."""
  return _transformer_problem(inspect.getsource(argparse))
