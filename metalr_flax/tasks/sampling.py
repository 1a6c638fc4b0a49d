"""Draws batches inside a jitted loop: shuffled epochs, or made examples.

An epoch is a random permutation of the examples, a function of the stream's key
and of the epoch's number; a batch takes the next entries of it. What an epoch
has left over when it cannot fill a batch is dropped.

Where batches are not shuffled but made, batch t is a function of the stream's
key and of t.
"""

import functools
from typing import Any

import flax.struct
import jax
from jax import custom_batching
import jax.numpy as jnp

PyTree = Any
# A model's weights are drawn with `fold_in(key(seed), 0)` and so on, and its
# task is given that very `key(seed)`: without a number far from those, the task
# would draw the same values again, a target equal to the first weights, say.
_STREAM = 0x7461736B


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
  is_over = state.position + batch_size > num_examples
  state = _with_epoch(is_over, state).replace(key=state.key)  # a constant
  rows = jax.lax.dynamic_slice_in_dim(state.order, state.position, batch_size)
  batch = jax.tree.map(lambda array: jnp.take(array, rows, axis=0), arrays)
  return state.replace(position=state.position + batch_size), batch


def init_draws(rng: jax.Array) -> dict[str, jax.Array]:
  """The start of a stream of made batches.

  Args:
    rng: the run's key.

  Returns:
    `key`, shared with nothing else of the run, and `step`, int32 0.
  """
  key = jax.random.fold_in(rng, _STREAM)
  return {'key': key, 'step': jnp.zeros((), jnp.int32)}


def next_key(
  data_state: dict[str, jax.Array],
) -> tuple[dict[str, jax.Array], jax.Array]:
  """The position after, and the key of batch t, `fold_in(key, t)`."""
  key, step = data_state['key'], data_state['step']
  return {**data_state, 'step': step + 1}, jax.random.fold_in(key, step)


@custom_batching.custom_vmap
def _with_epoch(is_over: jax.Array, state: EpochState) -> EpochState:
  """The start of the next epoch where one is over."""
  return jax.lax.cond(is_over, _next_epoch, lambda s: s, state)


@_with_epoch.def_vmap
def _with_epochs(
  count: int, in_batched: Any, is_over: jax.Array, state: EpochState
) -> tuple[EpochState, Any]:
  """The same of a population, whose members end their epochs together.

  Left to itself vmap would shuffle at every batch, for it has no branches.
  """

  def spread(leaf: jax.Array, is_batched: bool) -> jax.Array:
    return leaf if is_batched else jnp.broadcast_to(leaf, (count, *leaf.shape))

  def shuffle(state: EpochState) -> EpochState:
    choose = lambda over, *leaves: jnp.where(over, *leaves)
    return jax.tree.map(
      functools.partial(jax.vmap(choose), is_over),
      jax.vmap(_next_epoch)(state),
      state,
    )

  is_over, state = jax.tree.map(spread, (is_over, state), tuple(in_batched))
  state = jax.lax.cond(jnp.any(is_over), shuffle, lambda s: s, state)
  return state, jax.tree.map(lambda _: True, state)


def _next_epoch(state: EpochState) -> EpochState:
  epoch = state.epoch + 1
  order = _shuffled(state.key, epoch, state.order.shape[0])
  return state.replace(
    epoch=epoch, position=jnp.zeros((), jnp.int32), order=order
  )


def _shuffled(key: jax.Array, epoch: jax.Array, num_examples: int) -> jax.Array:
  order = jax.random.permutation(jax.random.fold_in(key, epoch), num_examples)
  return order.astype(jnp.int32)
