"""The feed: the batches of a chunk, read on the host and put on the device."""

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from metalr_flax.engine import records
from metalr_flax.engine import sharding

PyTree = Any


class Feed(flax.struct.PyTreeNode, kw_only=True):
  """The batches of a chunk of outer steps, an argument of its program.

  Attributes:
    step: outer steps done before the chunk, int32 scalar.
    first: by split, the batches drawn before it, int32 scalars.
    batches: by split, its batches one above another, arrays [N, ...]; those
      that a shorter chunk does not need are zeros.
  """

  step: Any
  first: dict[str, Any]
  batches: dict[str, PyTree]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
  """What a feed is made of.

  Attributes:
    per_step: by split, the batches that an outer step draws.
    shapes: by split, a batch's `jax.ShapeDtypeStruct`s.
  """

  per_step: dict[str, int]
  shapes: dict[str, PyTree]

  def of_rows(self, rows: int) -> Feed:
    """The shapes of a feed for chunks of up to `rows` outer steps."""
    count = jax.ShapeDtypeStruct((), np.dtype(np.int32))
    stacked = {
      split: jax.tree.map(
        lambda s, n=rows * n: jax.ShapeDtypeStruct((n, *s.shape), s.dtype),
        self.shapes[split],
      )
      for split, n in self.per_step.items()
    }
    return Feed(
      step=count, first=dict.fromkeys(self.per_step, count), batches=stacked
    )

  @property
  def step_bytes(self) -> int:
    """Bytes of an outer step's batches."""
    leaves = jax.tree.leaves(self.of_rows(1).batches)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def shardings(feed: Feed, layout: sharding.Layout) -> Feed:
  """Where a feed, or its shapes, lies on several devices."""
  return jax.tree.map(lambda _: layout.whole, feed).replace(
    batches=layout.of_batches(feed.batches, axis=1)
  )


def blank(problem: records.Problem, spec: Spec) -> records.Problem:
  """The problem with batches of zeros: to trace it, never to train on."""
  zeros = jax.tree.map(
    lambda s: jnp.zeros(s.shape, s.dtype), spec.of_rows(1).batches
  )
  none = dict.fromkeys(spec.per_step, 0)
  return fed(problem, Feed(step=0, first=none, batches=zeros))


def fed(problem: records.Problem, feed: Feed) -> records.Problem:
  """The problem with the batches of a feed.

  Args:
    problem: the bilevel problem; its `data_state` counts, by split, the batches
      drawn.
    feed: of the chunk that is trained.
  """
  take = lambda split: functools.partial(_take, feed, split)
  return dataclasses.replace(
    problem,
    next_batch=take('train'),
    next_meta_batch=take('meta' if 'meta' in feed.batches else 'train'),
  )


def _take(feed: Feed, split: str, data_state: PyTree) -> tuple[PyTree, PyTree]:
  """The next batch of a split: `(data_state, batch)`."""
  place = data_state[split] - feed.first[split]
  batch = jax.tree.map(
    lambda leaf: jax.lax.dynamic_index_in_dim(leaf, place, keepdims=False),
    feed.batches[split],
  )
  return {**data_state, split: data_state[split] + 1}, batch
