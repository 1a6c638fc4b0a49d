"""Whether an inner optimizer can be tuned: whether it has what is learned.

Which hyperparameters it has and what each one moves, `engine.stages` finds.
"""

from collections.abc import Collection

import jax
import optax

from metalr_flax.engine import optimizers
from metalr_flax.engine import stages as stages_lib
from metalr_flax.engine.records import PyTree
from metalr_flax.engine.stages import Stage


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
  stages = stages_lib.find_stages(tx, params, opt_state, learned, labels)
  for name in learned:
    ours = [s for s in stages if s.name == name and s.moved]
    if not ours:
      _check_inert(name, stages, params)
    if labels is None:
      _check_single(name, ours)
    else:
      _check_groups(name, ours, params, jax.tree.leaves(labels))


def check_updates_at_every_step(opt_state: optax.OptState) -> None:
  """Refuses an inner optimizer that rests at some steps.

  Raises:
    ValueError: for `optax.MultiSteps`: the rule counts updates, and would look
      at pieces of a batch, along updates of 0.
  """
  is_one = lambda node: isinstance(node, optax.MultiStepsState)
  if any(map(is_one, jax.tree.leaves(opt_state, is_leaf=is_one))):
    raise ValueError(
      'self_tuning: inner_tx has optax.MultiSteps in it: hyperparameters would '
      'move at every step and not at every update; put it around, '
      'optax.MultiSteps(self_tuning(...), k)'
    )


def _check_schedules(opt_state: optax.OptState) -> None:
  """Refuses callables, such as masks, that optax would take for schedules."""
  for _, node in optimizers.find_injected(opt_state):
    for name in optimizers.scheduled(node):
      value = node.hyperparams[name]
      if not hasattr(value, 'dtype') or value.dtype == bool:
        raise ValueError(
          f'self_tuning: {name!r} is a function that optax.inject_hyperparams '
          f'takes for a schedule, and it gives no number; wrap the optimizer '
          f'as optax.inject_hyperparams(..., static_args={name!r})'
        )


def _check_inert(name: str, stages: list[Stage], params: PyTree) -> None:
  if jax.tree.leaves(params) and any(s.name == name for s in stages):
    raise ValueError(
      f'self_tuning: {name!r} moves no parameter: inner_tx does not use it, or '
      f'sees it through a sign alone; leave it out of learned'
    )


def _check_single(name: str, stages: list[Stage]) -> None:
  if len(stages) > 1:
    places = ' and '.join(s.path for s in stages)
    raise ValueError(
      f'self_tuning: {name!r} is injected {len(stages)} times in inner_tx, at '
      f'{places}; give labels= where they are groups of optax.partition, and '
      f'inject it once otherwise'
    )


def _check_groups(
  name: str, stages: list[Stage], params: PyTree, groups: list[str]
) -> None:
  for stage in stages:
    twins = [s.path for s in stages if s.group == stage.group]
    if stage.group is None:
      raise ValueError(
        f'self_tuning: labels: {name!r} of inner_tx at {stage.path} is in '
        f'none of the groups {sorted(set(groups))}; make inner_tx by '
        f'make_grouped or optax.partition with the same labels'
      )
    if len(twins) > 1:
      raise ValueError(
        f'self_tuning: {name!r} is injected {len(twins)} times in group '
        f'{stage.group!r}, at {" and ".join(twins)}; inject it once a group'
      )
  misplaced = stages_lib.find_misplaced(groups, stages)
  if misplaced:
    place, group = misplaced
    path, _ = jax.tree_util.tree_leaves_with_path(params)[place]
    raise ValueError(
      f'self_tuning: labels: params{jax.tree_util.keystr(path)} is in group '
      f'{groups[place]!r}, but inner_tx has it in {group!r}; give the labels '
      f'that inner_tx was made with'
    )
