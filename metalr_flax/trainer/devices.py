"""Chooses the mesh of a run, and refuses one that does not fit.

With one device there is no mesh, and the program is that of one device.
"""

from collections.abc import Mapping, Sequence
import math
from typing import Any

from flax import nnx
import jax

from metalr_flax import errors
from metalr_flax.engine import records
from metalr_flax.engine import sharding

PyTree = Any
Config = Mapping[str, Any]


def are_several(config: Config) -> bool:
  """Whether JAX sees several devices, or the config asks for some."""
  return jax.device_count() > 1 or math.prod(config['mesh']) > 1


def lay_out(
  config: Config,
  problem: records.Problem,
  data_state: PyTree,
  model: nnx.Module,
) -> sharding.Layout | None:
  """Decides where a run's arrays lie.

  Args:
    config: the run's, resolved.
    problem: the bilevel problem.
    data_state: the sampler's first position, for the shapes of batches.
    model: for its own annotations.

  Returns:
    The layout that the config's `mesh` asks for; None for one device.

  Raises:
    ConfigError: for a mesh that does not divide the devices or a batch, and
      for annotations that do not fit it.
  """
  mesh = config['mesh']
  sizes = _batch_sizes(config, problem, data_state)
  if not mesh:
    mesh = (_largest_fitting(sizes), 1)
  _check_devices(mesh)
  _check_processes(mesh)
  if math.prod(mesh) == 1:
    return None
  layout = sharding.Layout(
    mesh=sharding.make_mesh(mesh), annotations=_annotations(config, model, mesh)
  )
  _check_batches(mesh, sizes, layout.batch_parts)
  return layout


def lay_out_members(mesh: Sequence[int], count: int) -> sharding.Layout | None:
  """Decides on which devices the members of a population are trained.

  Args:
    mesh: devices along `data` and `model`; empty for the most that divide the
      members.
    count: the members.

  Returns:
    The layout that `mesh` asks for; None for one device.

  Raises:
    ConfigError: for a mesh that does not divide the devices or the members.
  """
  mesh = mesh or (_largest_fitting([count]), 1)
  _check_devices(mesh)
  data, model = mesh
  if model > 1 or count % data:
    raise errors.ConfigError.of(
      'mesh',
      tuple(mesh),
      f'must be (data, 1) with a population, with data a divisor of its '
      f'{count} members',
      'change it or the number of members',
    )
  if data == 1:
    return None
  return sharding.MemberLayout(mesh=sharding.make_mesh(mesh), annotations={})


def describe(layout: sharding.Layout | None) -> str:
  """What a run uses of the devices that there are, a line; '' for all of one.

  Args:
    layout: the run's.
  """
  count = jax.device_count()
  if count == 1:
    return ''
  shape = dict(layout.mesh.shape) if layout else dict.fromkeys(sharding.AXES, 1)
  used = math.prod(shape.values())
  text = ', '.join(f'{axis} {size}' for axis, size in shape.items())
  if used == count:
    return f'mesh: {text}'
  return (
    f'mesh: {text}; {count - used} of {count} devices are not used: the sizes '
    f'are those of config.mesh, or the largest that divide every batch, of a '
    f'population its members'
  )


def _batch_sizes(
  config: Config, problem: records.Problem, data_state: PyTree
) -> list[int]:
  """Examples of what losses are taken on: batches, or their equal parts."""
  data_state, batch = jax.eval_shape(problem.next_batch, data_state)
  leaves, meta = jax.tree.leaves(batch), config['meta']
  if meta['estimator'] != 'none' and meta['objective'] == 'held_out':
    _, batch = jax.eval_shape(problem.next_meta_batch, data_state)
    leaves += jax.tree.leaves(batch)
  sizes = {leaf.shape[0] for leaf in leaves if leaf.shape}
  count = config['inner']['microbatches']
  # Other sizes are refused where the loss is traced.
  return sorted(size // count for size in sizes if size % count == 0)


def _largest_fitting(sizes: Sequence[int]) -> int:
  """The largest part of the devices that divides every batch.

  One where there is nothing to split.
  """
  if not sizes:
    return 1
  size = math.gcd(*sizes)
  return max(n for n in _divisors(jax.device_count()) if size % n == 0)


def _divisors(number: int) -> list[int]:
  return [n for n in range(1, number + 1) if number % n == 0]


def _check_devices(mesh: Sequence[int]) -> None:
  count, product = jax.device_count(), math.prod(mesh)
  if count % product == 0:
    return
  rule = (
    f'needs {product} devices, and JAX sees {count}'
    if product > count
    else f'its {product} devices must divide the {count} that JAX sees'
  )
  known = ', '.join(map(str, _divisors(count)))
  raise errors.ConfigError.of(
    'mesh', tuple(mesh), rule, f'choose sizes with a product of {known}'
  )


def _check_processes(mesh: Sequence[int]) -> None:
  """Refuses a mesh that leaves a process without work."""
  count, used = jax.device_count(), math.prod(mesh)
  if jax.process_count() > 1 and used < count:
    raise errors.ConfigError.of(
      'mesh',
      tuple(mesh),
      f'uses {used} of {count} devices, and several processes use all of '
      f'theirs',
      f'choose sizes with a product of {count}, and a task.batch_size that '
      f'they divide',
    )


def check_shares(config: Config, layout: sharding.Layout | None) -> None:
  """Refuses a mesh whose processes do not each hold examples of their own.

  Args:
    config: the run's, of a stream that each process reads its share of.
    layout: the run's.

  Raises:
    ConfigError: naming the mesh.
  """
  count = jax.process_count()
  if layout and layout.batch_parts % count:
    raise errors.ConfigError.of(
      'mesh',
      tuple(config['mesh']),
      f'splits a batch into {layout.batch_parts} parts, and {count} processes '
      f'read a share each of a stream',
      'choose sizes whose first one the number of processes divides',
    )


def _check_batches(
  mesh: Sequence[int], sizes: Sequence[int], parts: int
) -> None:
  for size in sizes:
    if size % parts:
      raise errors.ConfigError.of(
        'mesh',
        tuple(mesh),
        f'splits a batch into {parts} parts, which must divide its {size} '
        f'examples',
        'change it, task.batch_size or inner.microbatches',
      )


def _annotations(
  config: Config, model: nnx.Module, mesh: Sequence[int]
) -> dict[str, sharding.Annotation]:
  """How the model says that its variables are to be split, by path."""
  sizes = dict(zip(sharding.AXES, mesh, strict=True))
  state = nnx.state(model)
  specs = nnx.to_flat_state(nnx.get_partition_spec(state))
  found = {}
  for (path, variable), spec in zip(
    nnx.to_flat_state(state), specs.leaves, strict=True
  ):
    if spec.get_value():
      name = '/'.join(map(str, path))
      found[name] = sharding.Annotation(variable.shape, spec.get_value())
      _check_annotation(config['model']['name'], name, found[name], sizes)
  return found


def _check_annotation(
  model: str,
  name: str,
  annotation: sharding.Annotation,
  sizes: Mapping[str, int],
) -> None:
  """Refuses axes that the mesh does not have, or that do not divide."""
  for length, axes in zip(annotation.shape, annotation.spec, strict=False):
    named = (axes,) if isinstance(axes, str) else axes or ()
    unknown = [axis for axis in named if axis not in sizes]
    if unknown:
      raise errors.ConfigError.of(
        'model.name',
        model,
        f'annotates {name} with the axis {unknown[0]!r}',
        "the mesh has 'data' and 'model': rename it",
      )
    if length % math.prod(sizes[axis] for axis in named):
      raise errors.ConfigError.of(
        'mesh',
        tuple(sizes.values()),
        f'does not divide {name} {[*annotation.shape]}, which the model '
        f'annotates with {annotation.spec}',
        'choose sizes that do',
      )
