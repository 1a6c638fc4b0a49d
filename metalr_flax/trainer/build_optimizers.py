"""Makes the inner and outer optimizers of a config; checks their arguments."""

from collections.abc import Callable, Collection, Mapping
import functools
import inspect
from typing import Any

import jax
import optax

from metalr_flax import errors
from metalr_flax.config import check
from metalr_flax.config import rules
from metalr_flax.engine import optimizers
from metalr_flax.engine import records
from metalr_flax.trainer import build_schedule
from metalr_flax.trainer import lookup
from metalr_flax.tuning import rejection
from metalr_flax.tuning import steered

Section = Mapping[str, Any]


def initial_hyperparams(
  section: Section, learned: Mapping[str, str], factory: Callable, labels: Any
) -> dict[str, Any]:
  """The initial value of each learned hyperparameter: given, or the default.

  Args:
    section: the config's section `inner`.
    learned: the bijection of each learned hyperparameter.
    factory: what makes the optimizer.
    labels: each parameter's group, None where all are in one.

  Raises:
    ConfigError: for one that the optimizer does not have or that is no float.
  """
  parameters = inspect.signature(factory).parameters
  given = {**section['kwargs'], 'learning_rate': section['learning_rate']}
  initial: dict[str, Any] = {}
  for name, kind in learned.items():
    if name not in parameters:
      raise errors.ConfigError(
        f'meta.learned.{name}={kind}: {section["optimizer"]} has no such '
        f'argument; {check.suggest(name, tuple(parameters))}; if it is the '
        f"loss's, give its first value in task.loss_kwargs"
      )
    value = given.get(name, parameters[name].default)
    field = 'inner.' + ('' if name == 'learning_rate' else 'kwargs.') + name
    check.check_initial(field, value, kind)
    initial[name] = float(value)
  if labels is None:
    return initial
  groups = sorted(set(jax.tree.leaves(labels)))
  return {name: dict.fromkeys(groups, v) for name, v in initial.items()}


def build_labels(groups: str, params: Any) -> Any:
  """The group of each parameter, None where all are in one.

  Args:
    groups: the config's `meta.groups`.
    params: what the optimizer updates.

  Raises:
    ConfigError: for a function of the user's that does not label each of them.
  """
  if not groups:
    return None
  if groups == 'per_leaf':
    return optimizers.label_leaves(params)
  labels = lookup.find('meta.groups', groups)(params)
  names = jax.tree.leaves(labels)
  same = str(jax.tree.structure(labels)) == str(jax.tree.structure(params))
  if not same or not all(isinstance(name, str) for name in names):
    raise errors.ConfigError(
      f'meta.groups={groups}: must return a string for every parameter; make '
      f'it with jax.tree_util.tree_map_with_path over params'
    )
  return labels


def build_tx(
  section: Section,
  learned: Mapping[str, str],
  factory: Callable,
  labels: Any,
  num_updates: int,
) -> optax.GradientTransformation:
  """The inner optimizer, with what is learned of it in its state.

  Args:
    section: the config's section `inner`.
    learned: the bijection of each learned hyperparameter.
    factory: what makes the optimizer.
    labels: each parameter's group, None where all are in one.
    num_updates: of the whole run.

  Raises:
    ConfigError: for arguments that the optimizer or the schedule refuses.
  """
  if 'learning_rate' in section['kwargs']:
    raise errors.ConfigError(
      'inner.kwargs.learning_rate: has a field of its own; set '
      '--config.inner.learning_rate=...'
    )
  arguments = {
    **lookup.as_tuples(section['kwargs']),
    'learning_rate': section['learning_rate'],
  }
  lookup.check_arguments('inner.kwargs', factory, arguments)
  if labels is None:
    tx = optimizers.make_injected(factory, arguments, learned)
  else:
    tx = optimizers.make_grouped(factory, arguments, learned, labels)
  return optimizers.surrounded(
    tx,
    clip_norm=section['clip_norm'],
    multiplier=build_schedule.build_multiplier(section, num_updates),
  )


def check_update(
  field: str, name: str, tx: optax.GradientTransformation, params: Any
) -> None:
  """Traces one update, where optax checks its arguments' values.

  Args:
    field: the config field to blame.
    name: the optimizer's name.
    tx: the optimizer.
    params: what it updates.
  """

  def update(params: Any) -> Any:
    return tx.update(params, tx.init(params), params)

  try:
    jax.eval_shape(update, params)
  except (
    TypeError, ValueError, OverflowError, AttributeError, IndexError
  ) as error:  # fmt: skip
    first = errors.text_of(error).partition('\n')[0]
    raise errors.ConfigError(
      f'{field}: {name} refuses its arguments or the parameters '
      f'({first}); change them or the optimizer'
    ) from error


def build_meta_tx(
  section: Section, of_loss: Collection[str] = ()
) -> optax.GradientTransformation:
  """The outer optimizer, over eta, of a config's section `meta`.

  'steering' is the drop-in's rule, which has a pace of its own and no use for
  `meta.learning_rate`.

  Args:
    section: the config's section `meta`.
    of_loss: names of the loss's arguments in the config.

  Raises:
    ConfigError: for arguments that it refuses.
  """
  if section['optimizer'] == rules.STEERING:
    held_out = section['objective'] == 'held_out'
    kinds = {n: k for n, k in section['learned'].items() if n not in of_loss}
    return steered.make(
      kinds, held_out=held_out, unroll_length=section['unroll_length']
    )
  factory = lookup.find_factory('meta.optimizer', section['optimizer'])
  arguments = {'learning_rate': section['learning_rate']}
  lookup.check_arguments('meta.optimizer', factory, arguments)
  return factory(**arguments)


def build_limit(
  section: Section,
) -> Callable[[records.MetaTrainState], records.MetaTrainState]:
  """What the outer optimizer changes of the state before each window.

  Where eta follows the training batches 'steering' lets kept tangents fade at
  the drop-in's pace, `meta.discount` being the most that is kept of them.

  Args:
    section: the config's section `meta`.

  Returns:
    `state -> state`, which changes nothing with any other outer optimizer.
  """
  steers = section['optimizer'] == rules.STEERING
  if not steers or section['objective'] == 'held_out':
    return lambda state: state

  def limit(state: records.MetaTrainState) -> records.MetaTrainState:
    tangents = steered.limit_memory(
      state.tangents,
      state.meta_opt_state,
      discount=section['discount'],
      unroll_length=section['unroll_length'],
    )
    return state.replace(tangents=tangents)

  return limit


def rejects(section: Section) -> bool:
  """Whether windows in which training explodes are rejected.

  Args:
    section: the config's section `meta`.
  """
  steers = section['optimizer'] == rules.STEERING
  return (
    steers
    and section['estimator'] != 'none'
    and section['objective'] != 'held_out'
  )


def build_judge(
  section: Section,
) -> Callable[..., tuple[records.MetaTrainState, records.Metrics]]:
  """What becomes of a window after it.

  Args:
    section: the config's section `meta`.

  Returns:
    `(state before, state after, metrics) -> (state, metrics)`.
  """
  if not rejects(section):
    return lambda before, after, metrics: (after, metrics)
  return functools.partial(rejection.judge, bijections=section['learned'])
