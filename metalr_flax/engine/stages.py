"""Which injected hyperparameters an optimizer has, and what each one moves.

An optimizer is the user's own composition: a partition, a chain, a mask. Labels
must name its groups as they are, and its state does not always say who owns
what (plain SGD keeps nothing of a parameter). So its update is traced, once,
and the parameters that each hyperparameter moves are read off the trace.
Nothing is computed.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import optax

from metalr_flax.engine import jaxprs
from metalr_flax.engine import optimizers
from metalr_flax.engine import tangents
from metalr_flax.engine.records import PyTree


class Stage(NamedTuple):
  """One learned hyperparameter of one injected optimizer.

  Attributes:
    name: the hyperparameter's.
    path: of the injected optimizer in the state, for messages.
    group: the label that the path leads through; None where there is none.
    moved: places of the parameters whose update moves with it, in however many
      updates.
  """

  name: str
  path: str
  group: str | None
  moved: frozenset[int]


def find_stages(
  tx: optax.GradientTransformation,
  params: PyTree,
  opt_state: optax.OptState,
  learned: Collection[str],
  labels: PyTree | None,
) -> list[Stage]:
  """The learned hyperparameters of an optimizer, wherever they are injected.

  Args:
    tx: the optimizer.
    params: for their shapes.
    opt_state: for its shapes.
    learned: names of hyperparameters.
    labels: the group of each parameter, None where there are no groups.
  """
  groups = [] if labels is None else jax.tree.leaves(labels)
  moving = _find_moving(tx, params, opt_state, learned)
  return [
    Stage(
      name=name,
      path=jax.tree_util.keystr(path) or 'the top',
      group=optimizers.group_of(path, groups),
      moved=frozenset(i for i, by in enumerate(moving) if (path, name) in by),
    )
    for path, node in optimizers.find_injected(opt_state)
    for name in _names(node, learned)
  ]


def groups_that_move(place: int, stages: Iterable[Stage]) -> set[str]:
  """The groups whose hyperparameters move a parameter.

  Args:
    place: the parameter's, among the leaves of params.
    stages: see `find_stages`.
  """
  return {s.group for s in stages if s.group is not None and place in s.moved}


def find_misplaced(
  labels: Sequence[str], stages: Iterable[Stage]
) -> tuple[int, str] | None:
  """The first parameter that only another group's hyperparameters move.

  Args:
    labels: the group of each parameter.
    stages: see `find_stages`.

  Returns:
    Its place among the leaves of params and the other group; None where there
    is no such parameter.
  """
  for place, label in enumerate(labels):
    movers = groups_that_move(place, stages)
    if movers and label not in movers:
      return place, min(movers)
  return None


def _find_moving(
  tx: optax.GradientTransformation,
  params: PyTree,
  opt_state: optax.OptState,
  learned: Collection[str],
) -> list[tangents.Marks]:
  """What the update of each parameter moves with: {(path, name), ...}."""

  def update(state: tuple[PyTree, PyTree], params: PyTree) -> PyTree:
    grads = optimizers.gradients_like(params)  # of any value
    return tx.update(grads, state[0], params)[::-1]

  hyperparams = jax.tree.leaves(_marked(opt_state, learned))
  marks = [*hyperparams, *(tangents.Marks() for _ in jax.tree.leaves(params))]
  for later in tangents.follow_marks(
    update, (opt_state, params), marks, params
  ):
    marks = later
  return marks[len(hyperparams) :]


def _names(node: Any, learned: Collection[str]) -> list[str]:
  """The learned floats of an injected state."""
  return [
    name
    for name, value in optimizers.numbers(node).items()
    if name in learned and jaxprs.is_float(value)
  ]


def _marked(opt_state: optax.OptState, learned: Collection[str]) -> PyTree:
  """Marks each leaf of a state: {(path, name)} of a hyperparameter, or {}."""
  injected = optimizers.find_injected(opt_state)
  marks = {
    (*path, jax.tree_util.GetAttrKey('hyperparams'),
     jax.tree_util.DictKey(name)): tangents.Marks({(path, name)})
    for path, node in injected
    for name in _names(node, learned)
  }  # fmt: skip
  return jax.tree_util.tree_map_with_path(
    lambda path, _: marks.get(path, tangents.Marks()), opt_state
  )
