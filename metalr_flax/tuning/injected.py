"""Which injected hyperparameters an optimizer has, and what each one moves.

An inner optimizer is the user's own composition: a partition, a chain, a mask.
Labels must name its groups as they are, and its state does not always say who
owns what (plain SGD keeps nothing of a parameter). So its update is traced,
once, and the parameters that each hyperparameter reaches are read off the
trace. Nothing is computed.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metalr_flax.engine import jaxprs
from metalr_flax.engine import optimizers

PyTree = Any


class Stage(NamedTuple):
  """One learned hyperparameter of one injected optimizer.

  Attributes:
    name: the hyperparameter's.
    place: path of the injected optimizer in the state, for messages.
    group: the label that the path leads through; None where there is none.
    moved: numbers of the parameters whose update it reaches.
  """

  name: str
  place: str
  group: str | None
  moved: frozenset[int]


def check(
  tx: optax.GradientTransformation,
  params: PyTree,
  learned: Collection[str],
  labels: PyTree | None,
) -> None:
  """Checks that each learned hyperparameter stands at one place a group.

  Args:
    tx: the inner optimizer.
    params: for their shapes.
    learned: names of hyperparameters.
    labels: the group of each parameter, None where there are no groups.

  Raises:
    ValueError: where a callable argument was taken for a schedule; where a
      learned value moves no parameter, or two injected optimizers would share
      it; where labels and `tx` do not agree which group a parameter is in.
  """
  opt_state = jax.eval_shape(tx.init, params)
  _check_schedules(opt_state)
  if not learned:
    return
  groups = [] if labels is None else jax.tree.leaves(labels)
  stages = _find_stages(tx, params, opt_state, learned, groups)
  for name in learned:
    ours = [s for s in stages if s.name == name and s.moved]
    if not ours:
      _check_inert(name, stages, params)
    if labels is None:
      _check_single(name, ours)
    else:
      _check_groups(name, ours, params, groups)


def _check_schedules(opt_state: optax.OptState) -> None:
  """Optax takes every callable argument for a schedule, a mask as well."""
  for _, node in optimizers.find_injected(opt_state):
    for name in optimizers.scheduled(node):
      value = node.hyperparams[name]
      if not hasattr(value, 'dtype') or value.dtype == bool:
        raise ValueError(
          f'self_tuning: {name!r} is a function that optax.inject_hyperparams '
          f'takes for a schedule, and it gives no number; wrap the optimizer '
          f'as optax.inject_hyperparams(..., static_args={name!r})'
        )


def _find_stages(
  tx: optax.GradientTransformation,
  params: PyTree,
  opt_state: optax.OptState,
  learned: Collection[str],
  groups: Collection[str],
) -> list[Stage]:
  reached = _find_reached(tx, params, opt_state, learned)
  return [
    Stage(
      name=name,
      place=jax.tree_util.keystr(path) or 'the top',
      group=optimizers.group_of(path, groups),
      moved=frozenset(
        i for i, found in enumerate(reached) if (path, name) in found
      ),
    )
    for path, node in optimizers.find_injected(opt_state)
    for name in _names(node, learned)
  ]


def _find_reached(
  tx: optax.GradientTransformation,
  params: PyTree,
  opt_state: optax.OptState,
  learned: Collection[str],
) -> list[frozenset]:
  """What reaches the update of each parameter, in however many updates."""

  def update(opt_state: PyTree, params: PyTree) -> PyTree:
    return tx.update(optimizers.gradients_like(params), opt_state, params)[::-1]

  closed = jax.make_jaxpr(update)(opt_state, params)
  marks = jax.tree.leaves(_marked(opt_state, learned))
  nothing = [frozenset[Any]() for _ in jax.tree.leaves(params)]
  while True:
    reached = jaxprs.find_reached(closed, [*marks, *nothing])
    after = [a | b for a, b in zip(marks, reached, strict=False)]
    if after == marks:
      return reached[len(marks) :]
    marks = after


def _names(node: Any, learned: Collection[str]) -> list[str]:
  """The learned floats of an injected state."""
  return [
    name
    for name, value in optimizers.numbers(node).items()
    if name in learned and jnp.issubdtype(value.dtype, jnp.inexact)
  ]


def _marked(opt_state: optax.OptState, learned: Collection[str]) -> PyTree:
  """The state with, for each leaf, what it is of: {(path, name)} or nothing."""
  injected = optimizers.find_injected(opt_state)
  marks = {
    (*path, jax.tree_util.GetAttrKey('hyperparams'),
     jax.tree_util.DictKey(name)): frozenset({(path, name)})
    for path, node in injected
    for name in _names(node, learned)
  }  # fmt: skip
  return jax.tree_util.tree_map_with_path(
    lambda path, _: marks.get(path, frozenset()), opt_state
  )


def _check_inert(name: str, stages: list[Stage], params: PyTree) -> None:
  if jax.tree.leaves(params) and any(s.name == name for s in stages):
    raise ValueError(
      f'self_tuning: {name!r} moves no parameter: inner_tx does not use it, or '
      f'sees it through a sign alone; leave it out of learned'
    )


def _check_single(name: str, stages: list[Stage]) -> None:
  if len(stages) > 1:
    places = ' and '.join(s.place for s in stages)
    raise ValueError(
      f'self_tuning: {name!r} is injected {len(stages)} times in inner_tx, at '
      f'{places}; give labels= where they are groups of optax.partition, and '
      f'inject it once otherwise'
    )


def _check_groups(
  name: str, stages: list[Stage], params: PyTree, groups: list[str]
) -> None:
  for stage in stages:
    twins = [s.place for s in stages if s.group == stage.group]
    if stage.group is None:
      raise ValueError(
        f'self_tuning: labels: {name!r} of inner_tx at {stage.place} is in '
        f'none of the groups {sorted(set(groups))}; make inner_tx by '
        f'make_grouped or optax.partition with the same labels'
      )
    if len(twins) > 1:
      raise ValueError(
        f'self_tuning: {name!r} is injected {len(twins)} times in group '
        f'{stage.group!r}, at {" and ".join(twins)}; inject it once a group'
      )
  paths = jax.tree_util.tree_leaves_with_path(params)
  for i, ((path, _), group) in enumerate(zip(paths, groups, strict=True)):
    movers = [s.group for s in stages if i in s.moved]
    if movers and group not in movers:
      raise ValueError(
        f'self_tuning: labels: params{jax.tree_util.keystr(path)} is in group '
        f'{group!r}, but inner_tx has it in {movers[0]!r}; give the labels '
        f'that inner_tx was made with'
      )
