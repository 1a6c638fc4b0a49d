r"""Decides where each array of a run lies on several devices.

A mesh has two axes, `data` and `model`. Params, and what has their shapes
(momenta, tangents, averages), are split over `model`; each batch is split over
the devices that hold different examples; all else is whole on every device.

- By size (as fully sharded data parallelism, ZeRO stage 3, does it,
  https://arxiv.org/abs/1910.02054): a large leaf is split over `model` along
  its largest axis, and batches are split over both axes. A loss gathers the
  params that it needs, and its gradient is reduced to the shards.
- By the model's own annotations: as it says, and batches over `data` alone, so
  that `model` is free for the products of its layers (tensor parallelism).

The axes are automatic (`AxisType.Auto`): a program is written as for one
device, and XLA's partitioner finds the collectives. So every estimator works as
it is, and a loss that is a mean over a batch has the meta-gradient of the whole
batch on each device.

Shape legend: B batch, N batches, k directions of tangents.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np
import optax

from metalr_flax.engine.records import LossFn, MetaTrainState, Problem, PyTree

DATA = 'data'
MODEL = 'model'
AXES = (DATA, MODEL)
# Elements of the smallest leaf that is split by its size: to gather a smaller
# one costs more time than its memory is worth.
MIN_SIZE = 4096
# Fields of a state with leaves of the params' shapes.
_SPLIT = ('params', 'opt_state', 'tangents', 'average')
_WHOLE = PartitionSpec()


class Annotation(NamedTuple):
  """How a model says that one of its variables is to be split.

  Attributes:
    shape: the variable's.
    spec: axes of the mesh by axis of the variable.
  """

  shape: tuple[int, ...]
  spec: PartitionSpec


def make_mesh(sizes: Sequence[int]) -> Mesh:
  """The mesh of the first devices that JAX sees.

  Args:
    sizes: of `data` and of `model`; their product is at most the number of
      devices.
  """
  return jax.make_mesh(
    tuple(sizes),
    AXES,
    axis_types=(AxisType.Auto, AxisType.Auto),
    devices=jax.devices()[: math.prod(sizes)],
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
  """Where the arrays of a run lie.

  Attributes:
    mesh: of the axes `data` and `model`.
    annotations: by the path of a variable, e.g. `layers/0/kernel`; `{}` where
      leaves are split by their size.
  """

  mesh: Mesh
  annotations: Mapping[str, Annotation]

  @property
  def batch_axes(self) -> tuple[str, ...]:
    """The axes of the mesh that the examples of a batch are split over."""
    return (DATA,) if self.annotations else AXES

  @property
  def batch_parts(self) -> int:
    """The number of parts that a batch is split into."""
    return math.prod(self.mesh.shape[axis] for axis in self.batch_axes)

  @property
  def whole(self) -> NamedSharding:
    """The sharding of what every device has all of."""
    return NamedSharding(self.mesh, _WHOLE)

  def of_state(self, state: PyTree) -> PyTree:
    """The shardings of a state, or of its shapes.

    Args:
      state: a `MetaTrainState`; of members any tree of arrays [M, ...].
    """
    return jax.tree_util.tree_map_with_path(
      lambda path, leaf: self._of_leaf(_name(path), leaf.shape), state
    )

  def of_params(self, params: PyTree) -> PyTree:
    """The shardings of params, of their gradients or of updates."""
    return jax.tree_util.tree_map_with_path(
      lambda path, leaf: self._of_leaf(f'params/{_name(path)}', leaf.shape),
      params,
    )

  def of_batches(self, batches: PyTree, axis: int = 0) -> PyTree:
    """The shardings of batches: scalars are whole.

    Args:
      batches: arrays or shapes.
      axis: that of the examples; 1 where batches lie above one another,
        `[N, B, ...]`.
    """
    spec = PartitionSpec(*[None] * axis, self.batch_axes)
    split = NamedSharding(self.mesh, spec)
    return jax.tree.map(
      lambda leaf: split if len(leaf.shape) > axis else self.whole, batches
    )

  def of_any_batch(self, batch: PyTree) -> PyTree:
    """The same for a batch that the mesh may not divide, which is whole then.

    Args:
      batch: arrays or shapes, their first axis that of the examples.
    """
    fits = all(
      leaf.shape[0] % self.batch_parts == 0
      for leaf in jax.tree.leaves(batch)
      if leaf.shape
    )
    if fits:
      return self.of_batches(batch)
    return jax.tree.map(lambda _: self.whole, batch)

  def split_batches(self, batches: PyTree, axis: int = 0) -> PyTree:
    """Splits batches inside a compiled program; see `of_batches`."""
    shardings = self.of_batches(batches, axis)
    return jax.lax.with_sharding_constraint(batches, shardings)

  def place(self, state: PyTree) -> PyTree:
    """Moves a state to where it belongs."""
    return put(state, self.of_state(state))

  def keep(self, state: MetaTrainState) -> MetaTrainState:
    """Keeps a state where it belongs inside a compiled program."""
    return jax.lax.with_sharding_constraint(state, self.of_state(state))

  def spread(self, problem: Problem) -> Problem:
    """The same problem, computed on all devices of the mesh.

    Args:
      problem: the bilevel problem, of batches that the mesh divides.
    """
    return dataclasses.replace(
      problem,
      loss_fn=self.gathering(problem.loss_fn),
      meta_loss_fn=self.gathering(problem.meta_loss_fn),
      next_batch=self._splitting(problem.next_batch),
      next_meta_batch=self._splitting(problem.next_meta_batch),
      tx=self._reducing(problem.tx),
    )

  def gathering(self, loss_fn: LossFn) -> LossFn:
    """A loss that gathers the params split by size before it uses them.

    Without it the partitioner might split the products of the layers instead,
    and exchange activations.
    """
    if self.annotations:
      return loss_fn

    @functools.wraps(loss_fn)
    def on_whole(params: PyTree, *args: Any, **given: Any) -> Any:
      whole = jax.lax.with_sharding_constraint(params, self.whole)
      return loss_fn(whole, *args, **given)

    return on_whole

  def _splitting(self, next_batch: Callable) -> Callable:
    def next_split(data_state: PyTree) -> tuple[PyTree, PyTree]:
      data_state, batch = next_batch(data_state)
      return data_state, self.split_batches(batch)

    return next_split

  def _reducing(
    self, tx: optax.GradientTransformation
  ) -> optax.GradientTransformation:
    """An optimizer whose gradients are reduced to its shards first, once.

    In forward mode that holds for the gradient's tangents as well.
    """

    def update(grads: PyTree, *args: Any, **given: Any) -> Any:
      shardings = self.of_params(grads)
      grads = jax.lax.with_sharding_constraint(grads, shardings)
      return tx.update(grads, *args, **given)

    return tx._replace(update=update)

  def _of_leaf(self, name: str, shape: tuple[int, ...]) -> NamedSharding:
    field, _, below = name.partition('/')
    if field not in _SPLIT:
      return self.whole
    if field == 'tangents':  # [k, ...], by the path that it is a tangent of
      spec = PartitionSpec(None, *self._spec(below, shape[1:]))
    else:
      spec = self._spec(below, shape)
    return NamedSharding(self.mesh, spec)

  def _spec(self, path: str, shape: tuple[int, ...]) -> PartitionSpec:
    if not self.annotations:
      return by_size(shape, self.mesh.shape[MODEL])
    parts = path.split('/')
    for start in range(len(parts)):  # a momentum ends in its param's path
      found = self.annotations.get('/'.join(parts[start:]))
      if found and found.shape == shape:
        return found.spec
    return _WHOLE


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemberLayout(Layout):
  """Where the arrays of a population lie: its members are split over `data`.

  Each device trains members of its own on whole batches. Nothing is exchanged
  but which members go on.
  """

  @property
  def batch_parts(self) -> int:
    """One: a member's batch is on one device."""
    return 1

  def of_batches(self, batches: PyTree, axis: int = 0) -> PyTree:
    """The shardings of what all members share: whole."""
    del axis
    return jax.tree.map(lambda _: self.whole, batches)

  def gathering(self, loss_fn: LossFn) -> LossFn:
    """The loss as it is: a member's params are on its device."""
    return loss_fn

  def _of_leaf(self, name: str, shape: tuple[int, ...]) -> NamedSharding:
    del shape
    # What the host looks at is everywhere.
    if name.partition('/')[0] in ('step', 'eta'):
      return self.whole
    return NamedSharding(self.mesh, PartitionSpec(DATA))


def options(
  layout: Layout | None, state: PyTree, *more: PyTree
) -> dict[str, Any]:
  """Arguments of `jax.jit`: what comes out lies where it goes in again.

  Args:
    layout: the run's; None for one device.
    state: the state, or its shapes, of a program `(state, count, ...) ->
      (state, record)`.
    more: the shardings of what the program takes besides.
  """
  if not layout:
    return {}
  of_state = layout.of_state(state)
  return {
    'in_shardings': (of_state, layout.whole, *more),
    'out_shardings': (of_state, layout.whole),
  }


def put(tree: PyTree, shardings: PyTree) -> PyTree:
  """Moves arrays to where they belong, on devices of any process.

  Args:
    tree: arrays; the same in all processes, where there are several.
    shardings: of their structure.
  """
  if jax.process_count() == 1:
    return jax.device_put(tree, shardings)
  return jax.tree.map(_put_share, tree, shardings)


def _put_share(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
  """An array of all processes, each of which puts its own devices' share."""
  if jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
    data = _put_share(jax.random.key_data(leaf), sharding)
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
  whole = np.asarray(leaf)
  return jax.make_array_from_callback(
    whole.shape, sharding, lambda index: whole[index]
  )


def by_size(shape: Sequence[int], count: int) -> PartitionSpec:
  """Which axis of a leaf is split over `model`: the largest that it divides.

  Args:
    shape: the leaf's.
    count: devices along `model`.

  Returns:
    A spec that names `model` once, at the first of the largest such axes; the
    empty one where there is none, or for fewer than `MIN_SIZE` elements.
  """
  fitting = [i for i, size in enumerate(shape) if size % count == 0]
  if count == 1 or not fitting or math.prod(shape) < MIN_SIZE:
    return _WHOLE
  axis = max(fitting, key=lambda i: (shape[i], -i))
  return PartitionSpec(*[None] * axis, MODEL)


def _name(path: tuple) -> str:
  return jax.tree_util.keystr(path, simple=True, separator='/')
