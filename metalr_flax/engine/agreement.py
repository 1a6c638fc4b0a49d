"""Checks that a problem, a state and an estimator belong together.

Where they do not, a hyperparameter does not reach the outer loss, or a slope is
taken for that of another one: the meta-gradient would be zero or wrong without
a message. The checks run while a step is traced and compute nothing.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metalr_flax.engine import inner as inner_lib
from metalr_flax.engine import losses
from metalr_flax.engine import optimizers
from metalr_flax.engine import paths
from metalr_flax.engine import stages as stages_lib
from metalr_flax.engine.records import Carry, Eta, InnerState, Problem, PyTree


class InertError(ValueError):
  """A hyperparameter has a meta-gradient that is identically zero.

  Attributes:
    name: the hyperparameter.
  """

  def __init__(self, name: str) -> None:
    super().__init__(
      f'{name}: its meta-gradient is identically zero, as tx moves no '
      f'parameter by it within the window; leave it out, or use a tx that does'
    )
    self.name = name


def check_names(
  values: Mapping[str, Any],
  inner: InnerState,
  problem: Problem,
) -> None:
  """Refuses values whose names or groups are not those of the problem.

  Args:
    values: eta, or hyperparameters, by name and by group label.
    inner: the inner state.
    problem: the bilevel problem.

  Raises:
    ValueError: naming the first that does not agree.
  """
  if not isinstance(values, Mapping):
    raise ValueError(
      f'hyperparams: must be values by name, not {type(values).__name__}; '
      f"e.g. {{'learning_rate': 0.1}}"
    )
  for name in sorted({*values} ^ {*problem.bijections}):
    has, lacks = 'hyperparams', 'bijections'
    if name in problem.bijections:
      has, lacks = lacks, has
    raise ValueError(
      f'{name}: is in {has} and not in {lacks}; name the same in both'
    )
  labels = _check_labels(problem.labels, inner.params)
  of_tx, of_loss = inner_lib.divide(values, problem.loss_hyperparams)
  for name, value in of_tx.items():
    _check_group_names(name, value, labels)
  optimizers.check_injected(of_tx, inner.opt_state)
  _check_not_injected(of_loss, inner.opt_state)


def _check_not_injected(
  of_loss: Mapping[str, Any], opt_state: optax.OptState
) -> None:
  """Refuses the loss's hyperparameters of a name that tx has, too."""
  known = {
    name
    for _, node in optimizers.find_injected(opt_state)
    for name in node.hyperparams
  }
  for name in sorted(known & {*of_loss}):
    raise ValueError(
      f'loss_hyperparams: {name!r} is injected by tx as well; rename the '
      f"loss's argument"
    )


def _check_labels(labels: PyTree | None, params: PyTree) -> set[str]:
  """Returns the groups; refuses labels of another structure than params."""
  if labels is None:
    return set()
  names = optimizers.label_set(labels)
  labelled = paths.leaves_of('params', labels)
  ours = paths.leaves_of('params', params)
  for path in sorted(labelled.keys() ^ ours.keys()):
    raise ValueError(
      f'labels: {path} is '
      f'{"no parameter" if path in labelled else "a parameter without one"}; '
      f"give a tree of params' structure"
    )
  return names


def _check_group_names(name: str, value: Any, labels: set[str]) -> None:
  """Refuses values by group that are not those of the labels."""
  given = {*value} if isinstance(value, Mapping) else set()
  if given == labels:
    return
  if not labels:
    raise ValueError(
      f'{name}: has values by group ({", ".join(sorted(given))}) and the '
      f'problem no labels; give it one number, or the problem labels'
    )
  raise ValueError(
    f'{name}: must have a value for each group of labels '
    f'({", ".join(sorted(labels))}) and no other; it has '
    f'{", ".join(sorted(given)) or "one for all"}'
  )


def check_groups(
  eta: Eta,
  inner: InnerState,
  problem: Problem,
  *,
  mixed: bool,
) -> None:
  """Refuses labels that are not the ones that tx updates the groups by.

  Args:
    eta: the meta-parameters.
    inner: the inner state, for its shapes.
    problem: the bilevel problem.
    mixed: whether an update may use several groups' hyperparameters.

  Raises:
    ValueError: naming the first parameter that another group's optimizer
      updates.
  """
  if problem.labels is None:
    return
  stages = stages_lib.find_stages(
    problem.tx, inner.params, inner.opt_state, eta, problem.labels
  )
  names = [*paths.leaves_of('params', inner.params)]
  label_of = paths.leaves_of('params', problem.labels)
  misplaced = stages_lib.find_misplaced([label_of[n] for n in names], stages)
  if misplaced:
    path, group = names[misplaced[0]], misplaced[1]
    raise ValueError(
      f'labels: {path} is in group {label_of[path]!r}, and tx updates it as '
      f'{group!r}; make tx and the problem from the same labels'
    )
  for place, path in enumerate(names):
    found = stages_lib.groups_that_move(place, stages)
    if len(found) > 1 and not mixed:
      raise ValueError(
        f'labels: the update of {path} depends on the groups '
        f"{', '.join(sorted(found))}, which curvature='none' takes for "
        f"independent; use 'exact' or 'subsample'"
      )


def check_learnable(eta: Eta, *, alone: bool) -> None:
  """Refuses a window in which nothing can be learned.

  Args:
    eta: the meta-parameters.
    alone: whether the outer loss comes before any update that eta has a part
      in.

  Raises:
    ValueError: where there is no eta, or no such update.
  """
  if not eta:
    raise ValueError(
      'bijections={}: nothing is learned; name a hyperparameter, or use '
      "kind='none'"
    )
  if alone:
    raise ValueError(
      "objective='online': is identically zero with unroll_length=1 and "
      'discount=0, as the only loss comes before the only update; give forward '
      'mode a discount, e.g. 0.99, or take a longer window'
    )


def check_effect(inert: list[str]) -> None:
  """Refuses hyperparameters that move no parameter.

  Raises:
    InertError: naming the first.
  """
  if inert:
    raise InertError(inert[0])


def check_objective(problem: Problem, *, online: bool) -> None:
  """Refuses hyperparameters of the loss where it is its own outer loss.

  Raises:
    ValueError: naming the first.
  """
  if online and problem.loss_hyperparams:
    raise ValueError(
      f"objective='online': the outer loss is the inner one, which "
      f'{min(problem.loss_hyperparams)} could lower by itself; use '
      f"objective='held_out'"
    )


def check_losses(
  eta: Eta, carry: Carry, problem: Problem, *, held_out: bool
) -> None:
  """Refuses losses that do not depend on the parameters.

  Args:
    eta: for the shapes of the loss's hyperparameters.
    carry: for its shapes.
    problem: the bilevel problem.
    held_out: whether the outer loss is one of its own.

  Raises:
    LossError: naming the first, and as `losses.checked`.
  """
  _, of_loss = inner_lib.divide(eta, problem.loss_hyperparams)
  asked: dict[str, tuple[Any, Any, Eta]] = {
    'loss_fn': (problem.loss_fn, problem.next_batch, of_loss)
  }
  if held_out:
    asked['meta_loss_fn'] = problem.meta_loss_fn, problem.next_meta_batch, {}
  for name, (loss_fn, next_batch, given) in asked.items():
    _, batch = jax.eval_shape(next_batch, carry.data_state)
    losses.check_uses_params(
      name,
      loss_fn,
      carry.inner.params,
      carry.inner.model_state,
      batch,
      **given,
    )


def check_tangents(
  tangents: dict[str, jax.Array], needed: dict[str, jax.ShapeDtypeStruct]
) -> None:
  """Refuses tangents that are not those of the estimator.

  Args:
    tangents: Z before a window.
    needed: its leaves as the estimator has them, `{}` where it keeps none.

  Raises:
    ValueError: where they differ.
  """
  given = {n: (jnp.shape(z), z.dtype) for n, z in tangents.items()}
  wanted = {n: (s.shape, s.dtype) for n, s in needed.items()}
  if given == wanted:
    return
  different = sorted(
    n for n in {*given, *wanted} if given.get(n) != wanted.get(n)
  )
  raise ValueError(
    f'tangents: {different[0]} is {_described(given, different[0])}, and '
    f'{_described(wanted, different[0])} for this estimator; give init_state '
    f'and every outer_step the same, or start anew with '
    f'state.replace(tangents=estimator.init_tangents(state.eta, state.inner, '
    f'state.data_state, problem))'
  )


def _described(leaves: dict[str, tuple], name: str) -> str:
  if name not in leaves:
    return 'absent'
  shape, dtype = leaves[name]
  return f'{dtype}{list(shape)}'
