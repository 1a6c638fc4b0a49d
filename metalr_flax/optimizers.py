"""Any optax optimizer, its learned hyperparameters in its state.

`optax.inject_hyperparams` moves the chosen arguments of an optimizer from its
closure into its state, where the outer loop can write them at each window.
Arguments that are not learned stay static: with all of them injected, Adam
drifts from plain Adam by rounding (optax computes `1 - b2` in float32 then).
"""

from collections.abc import Callable, Collection, Iterable, Mapping
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import optax

PyTree = Any
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
  """
  factory = getattr(optax, factory) if isinstance(factory, str) else factory
  learned = {'learning_rate', *learned}
  parameters = inspect.signature(factory).parameters
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
  """The same, with hyperparameters of its own for each group of parameters.

  Args:
    factory: see `make_injected`.
    arguments: see `make_injected`; every group starts from them.
    learned: see `make_injected`.
    labels: the group's name of each parameter, a tree of params' structure.

  Returns:
    An optax transformation; each group is updated by an optimizer of its own.
  """
  names = sorted(set(jax.tree.leaves(labels)))
  parts = {name: make_injected(factory, arguments, learned) for name in names}
  return optax.partition(parts, labels)


def label_leaves(params: PyTree) -> PyTree:
  """A label function that makes each leaf its own group, named by its path."""
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


def gradients_like(params: PyTree) -> PyTree:
  """A tree with the structure, shapes and dtypes that gradients have.

  That of params, except with `optax.lookahead`: its gradients are taken at the
  fast parameters alone.
  """
  return params.fast if isinstance(params, optax.LookaheadParams) else params


def init_state(
  tx: optax.GradientTransformation, params: PyTree
) -> optax.OptState:
  """`tx.init`, in the dtypes that the state has after an update.

  With bfloat16 parameters optax starts Adam's moments in bfloat16, and the
  first product with a float32 hyperparameter makes them float32 for good.
  """

  def update(opt_state: optax.OptState) -> optax.OptState:
    return tx.update(gradients_like(params), opt_state, params)[1]

  opt_state = jax.tree.map(jnp.asarray, tx.init(params))
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
