"""Builds optax optimizers that hold learned hyperparameters in their state.

`optax.inject_hyperparams` moves the chosen arguments of an optimizer from its
closure into its state, where the outer loop can write them at each window.
Arguments that are not learned stay static: with all of them injected, Adam
drifts from plain Adam by rounding (optax computes `1 - b2` in float32 then).
"""

from collections.abc import Callable, Collection, Iterable, Mapping
import inspect
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metalr_flax.engine.records import PyTree

Factory = Callable[..., optax.GradientTransformation]
LabelFn = Callable[[PyTree], PyTree]


def make_injected(
  factory: str | Factory, arguments: Mapping[str, Any], learned: Iterable[str]
) -> optax.GradientTransformationExtraArgs:
  """An optimizer whose learned arguments live in its state.

  Args:
    factory: the name of an optimizer of optax, e.g. 'rmsprop', or a function
      that makes an optax transformation, e.g. a chain with clipping.
    arguments: its keyword arguments, `learning_rate` among them.
    learned: which arguments to inject. They are held in float32 (float64 under
      x64) whatever the parameters' dtype: in bfloat16 a `b2` of 0.999 is 1.

  Returns:
    An optax transformation whose state has the learned arguments in
    `.hyperparams`.

  Raises:
    ValueError: for a name that optax has not, or an argument that the factory
      has not.
  """
  if isinstance(factory, str):
    factory = _find_factory(factory)
  parameters = inspect.signature(factory).parameters
  learned = _name_set(learned)
  _check_arguments({*learned, *arguments}, parameters)
  learned |= {'learning_rate'}
  inject = optax.inject_hyperparams(
    factory,
    static_args=[name for name in parameters if name not in learned],
    hyperparam_dtype=jnp.zeros(()).dtype,
  )
  return inject(**arguments)


def make_grouped(
  factory: str | Factory,
  arguments: Mapping[str, Any],
  learned: Iterable[str],
  labels: PyTree,
) -> optax.GradientTransformationExtraArgs:
  """An optimizer with learned arguments for each group of parameters.

  Args:
    factory: the name of an optimizer of optax, or a function that makes one,
      as for `make_injected`.
    arguments: its keyword arguments, which every group starts from.
    learned: which of them to inject.
    labels: the group's name of each parameter, a tree of params' structure.

  Returns:
    An optax transformation; each group is updated by an optimizer of its own.

  Raises:
    ValueError: for labels that are no tree of strings, and see `make_injected`.
  """
  names, learned = sorted(label_set(labels)), _name_set(learned)
  parts = {name: make_injected(factory, arguments, learned) for name in names}
  return optax.partition(parts, labels)


def surrounded(
  tx: optax.GradientTransformation,
  *,
  clip_norm: float = 0.0,
  multiplier: optax.Schedule | None = None,
) -> optax.GradientTransformation:
  """An optimizer whose gradients are clipped and whose updates are scaled.

  It may be one with groups: the norm is that of all of them, and one count
  serves all.

  Args:
    tx: an optimizer of `make_injected` or `make_grouped`.
    clip_norm: gradients of a larger norm are scaled down to it; 0 for none.
    multiplier: `count -> number` that the updates are multiplied by, and with
      them the learning rate and a weight decay; its count is that of updates.

  Returns:
    `tx` itself where there is neither.
  """
  parts = [tx]
  if clip_norm:
    parts.insert(0, optax.clip_by_global_norm(clip_norm))
  if multiplier is not None:
    parts.append(optax.scale_by_schedule(multiplier))
  return optax.chain(*parts) if len(parts) > 1 else tx


def label_set(labels: PyTree) -> set[str]:
  """The groups that a tree of labels names.

  Raises:
    ValueError: where it is no tree of strings.
  """
  found = jax.tree.leaves(labels)
  if not found or not all(isinstance(label, str) for label in found):
    raise ValueError(
      "labels: must be a tree of strings of params' structure; call a label "
      'function on params, e.g. label_leaves(params)'
    )
  return {*found}


def label_leaves(params: PyTree) -> PyTree:
  """Makes each array of params a group of its own, named by its path.

  Args:
    params: a tree of arrays.

  Returns:
    A tree of params' structure with strings, e.g. 'layers/0/kernel', which is
    what `make_grouped`, `Problem` and `self_tuning` take as `labels`.
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, _: jax.tree_util.keystr(path, simple=True, separator='/'),
    params,
  )


def with_hyperparams(
  opt_state: optax.OptState, hyperparams: Mapping[str, Any]
) -> optax.OptState:
  """`opt_state` with its injected hyperparameters replaced.

  They are found wherever the injected optimizer is: alone, in a chain, below
  `masked`, or once for each group of a partition. The state given is left as it
  was. (Assigning into `opt_state.hyperparams` would put a tracer into the
  caller's own dictionary.)

  Args:
    opt_state: a state that holds one injected optimizer, or one a group.
    hyperparams: new values by name, and by group label where there are groups.
  """

  def replace(path: tuple, node: Any) -> Any:
    if not _is_injected(node):
      return node
    new = {
      name: _of_group(value, path, node.hyperparams[name])
      for name, value in hyperparams.items()
      if name in node.hyperparams
    }
    return node._replace(hyperparams={**node.hyperparams, **new})

  return jax.tree_util.tree_map_with_path(
    replace, opt_state, is_leaf=_is_injected
  )


def find_hyperparams(
  opt_state: optax.OptState, label: str | None = None
) -> dict[str, Any]:
  """The injected hyperparameters of a state that are numbers, by name.

  One given as a schedule is left out: optax computes it anew at each update,
  whatever is written.

  Args:
    opt_state: a state that holds one injected optimizer, or one a group.
    label: only those of this group.
  """
  found: dict[str, Any] = {}
  for path, node in find_injected(opt_state):
    if label is None or group_of(path, {label}) == label:
      found |= numbers(node)
  return found


def find_injected(opt_state: optax.OptState) -> list[tuple[tuple, Any]]:
  """The states of `optax.inject_hyperparams` in a state, each with its path."""
  leaves = jax.tree_util.tree_leaves_with_path(opt_state, is_leaf=_is_injected)
  return [(path, node) for path, node in leaves if _is_injected(node)]


def numbers(node: Any) -> dict[str, Any]:
  """An injected state's hyperparameters that are no schedules, by name."""
  return {
    name: value
    for name, value in node.hyperparams.items()
    if name not in scheduled(node)
  }


def scheduled(node: Any) -> Collection[str]:
  """The names of an injected state's hyperparameters that are schedules."""
  return getattr(node, 'hyperparams_states', {})


def group_of(path: tuple, labels: Collection[str]) -> str | None:
  """The first of the labels that a path in a state leads through."""
  keys = (getattr(key, 'key', None) for key in path)
  return next((key for key in keys if key in labels), None)


def as_arrays(tree: PyTree) -> PyTree:
  """Converts Python numbers and NumPy arrays to strongly typed JAX arrays."""
  return jax.tree.map(
    lambda leaf: (
      leaf
      if isinstance(leaf, jax.Array)
      else jnp.asarray(leaf, jnp.result_type(leaf))
    ),
    tree,
  )


def gradients_like(params: PyTree) -> PyTree:
  """A tree with the structure, shapes and dtypes that gradients have.

  That of params, except with `optax.lookahead`: its gradients are taken at the
  fast parameters alone.
  """
  return params.fast if isinstance(params, optax.LookaheadParams) else params


def check_injected(
  hyperparams: Mapping[str, Any], opt_state: optax.OptState
) -> None:
  """Refuses hyperparameters that would not reach the optimizer.

  Args:
    hyperparams: values by name, and by group label where there are groups.
    opt_state: the state that they would be written into.

  Raises:
    ValueError: for one that is not injected, is in two stages of a chain, or is
      given as a schedule; and for labels that are not the state's groups.
  """
  stages = _injected(opt_state)
  known = {name for _, node in stages for name in node.hyperparams}
  for name, value in hyperparams.items():
    holders = [stage for stage in stages if name in stage[1].hyperparams]
    if not holders:
      raise ValueError(
        f'{name}: tx has not injected it (it has {_listed(known)}); make tx '
        f'with make_injected, {name} among the learned and a number'
      )
    if any(name in scheduled(node) for _, node in holders):
      raise ValueError(
        f'{name}: is a schedule in tx, which computes it anew at each update; '
        f'give tx a number'
      )
    _check_holders(name, value, [groups for groups, _ in holders])


def _check_holders(
  name: str, value: Any, holders: list[tuple[str, ...]]
) -> None:
  """Refuses groups that tx does not have, and names injected twice."""
  if len({*holders}) < len(holders):
    raise ValueError(
      f'{name}: is injected in {len(holders)} stages of tx, which would share '
      f'it; inject it in one of them'
    )
  if not isinstance(value, Mapping):
    return
  known = {label for groups in holders for label in groups}
  missing = [label for label in value if label not in known]
  if missing:
    raise ValueError(
      f'{name}[{missing[0]!r}]: tx has no such group (it has '
      f'{_listed(known)}); make tx with make_grouped from the same labels'
    )


def _injected(opt_state: optax.OptState) -> list[tuple[tuple[str, ...], Any]]:
  """The injected stages of a state, each with its group's label."""
  return [(_groups_of(path), node) for path, node in find_injected(opt_state)]


def _groups_of(path: tuple) -> tuple[str, ...]:
  """The labels on a path in a state, the keys of `optax.partition`."""
  return tuple(
    key.key
    for field, key in itertools.pairwise(path)
    if getattr(field, 'name', None) == 'inner_states'
  )


def _listed(names: Iterable[str]) -> str:
  return ', '.join(sorted(map(str, names))) or 'none'


def _name_set(learned: Iterable[str]) -> set[str]:
  """The learned arguments as a set, as an iterator can be read only once."""
  if isinstance(learned, str):
    raise ValueError(
      f'learned={learned!r}: must be several names; write them as a list'
    )
  return {*learned}


def _find_factory(name: str) -> Factory:
  factory = getattr(optax, name, None)
  if not callable(factory):
    raise ValueError(f'{name}: optax has no such optimizer; see its names')
  return factory


def _check_arguments(given: set[str], parameters: Mapping[str, Any]) -> None:
  """Refuses arguments that a factory does not have."""
  if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
    return
  unknown = sorted(given - {*parameters})
  if unknown:
    raise ValueError(
      f'{unknown[0]}: the optimizer has no such argument; its arguments are '
      f'{", ".join(parameters)}'
    )


def init_state(
  tx: optax.GradientTransformation, params: PyTree
) -> optax.OptState:
  """`tx.init`, in the dtypes that the state has after an update.

  With bfloat16 parameters optax starts Adam's moments in bfloat16, and the
  first product with a float32 hyperparameter makes them float32 for good.
  """

  def update(opt_state: optax.OptState) -> optax.OptState:
    return tx.update(gradients_like(params), opt_state, params)[1]

  opt_state = as_arrays(tx.init(params))
  settled = jax.eval_shape(update, jax.eval_shape(update, opt_state))
  return jax.tree.map(
    # A key of noisy_sgd's has no other type.
    lambda v, s: v if v.dtype == s.dtype else v.astype(s.dtype),
    opt_state,
    settled,
  )


def _is_injected(node: Any) -> bool:
  return hasattr(node, 'hyperparams') and hasattr(node, 'inner_state')


def _of_group(value: Any, path: tuple, own: Any) -> Any:
  """A hyperparameter's value for the optimizer at `path` of the state."""
  if not isinstance(value, Mapping):
    return value
  label = group_of(path, value)
  return own if label is None else value[label]  # a group that nobody is in
