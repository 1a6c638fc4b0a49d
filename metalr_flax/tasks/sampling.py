"""Batches from arrays in memory, drawn inside a jitted loop.

An epoch is a random permutation of the examples, a function of the stream's key
and of the epoch's number; a batch takes the next entries of it. What an epoch
has left over when it cannot fill a batch is dropped.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

PyTree = Any


class EpochState(flax.struct.PyTreeNode, kw_only=True):
  """Position in an endless stream of shuffled epochs.

  Attributes:
    key: the stream's key; epoch e is shuffled with `fold_in(key, e)`.
    epoch: number of the epoch, int32 scalar.
    position: examples of it already drawn, int32 scalar.
    order: the epoch's permutation, int32 [examples].
  """

  key: jax.Array
  epoch: jax.Array
  position: jax.Array
  order: jax.Array


def init_epochs(key: jax.Array, num_examples: int) -> EpochState:
  """The start of a stream over `num_examples` examples."""
  epoch = jnp.zeros((), jnp.int32)
  order = _shuffled(key, epoch, num_examples)
  return EpochState(key=key, epoch=epoch, position=epoch, order=order)


def next_batch(
  state: EpochState, arrays: PyTree, batch_size: int
) -> tuple[EpochState, PyTree]:
  """The next `batch_size` examples of the stream.

  Args:
    state: the position before.
    arrays: pytree of arrays [examples, ...].
    batch_size: at most the number of examples.

  Returns:
    The position after, and the arrays' rows [batch_size, ...].
  """
  num_examples = state.order.shape[0]
  state = jax.lax.cond(
    state.position + batch_size > num_examples, _next_epoch, lambda s: s, state
  )
  rows = jax.lax.dynamic_slice_in_dim(state.order, state.position, batch_size)
  batch = jax.tree.map(lambda array: jnp.take(array, rows, axis=0), arrays)
  return state.replace(position=state.position + batch_size), batch


def _next_epoch(state: EpochState) -> EpochState:
  epoch = state.epoch + 1
  order = _shuffled(state.key, epoch, state.order.shape[0])
  return state.replace(
    epoch=epoch, position=jnp.zeros((), jnp.int32), order=order
  )


def _shuffled(key: jax.Array, epoch: jax.Array, num_examples: int) -> jax.Array:
  order = jax.random.permutation(jax.random.fold_in(key, epoch), num_examples)
  return order.astype(jnp.int32)
