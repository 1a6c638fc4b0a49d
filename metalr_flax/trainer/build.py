"""Builds the objects of a run from its checked config.

What only JAX or the user's own code can decide is checked here; a mistake is
still answered before anything is written.
"""

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import optax

from metalr_flax import errors
from metalr_flax import tasks
from metalr_flax.config import population as members_lib
from metalr_flax.config import rules
from metalr_flax.engine import meta_gradient
from metalr_flax.engine import microbatches
from metalr_flax.engine import outer
from metalr_flax.engine import population
from metalr_flax.engine import records
from metalr_flax.engine import sharding
from metalr_flax.models import functional
from metalr_flax.trainer import build_loss
from metalr_flax.trainer import build_named
from metalr_flax.trainer import build_optimizers
from metalr_flax.trainer import build_step
from metalr_flax.trainer import devices
from metalr_flax.trainer import evaluate
from metalr_flax.trainer import feed as feed_lib
from metalr_flax.trainer import lookup
from metalr_flax.trainer import purity
from metalr_flax.trainer import refusals
from metalr_flax.trainer import stacking
from metalr_flax.trainer import streams as streams_lib
from metalr_flax.tuning import steered
from metalr_flax.workdir import fingerprint

Config = Mapping[str, Any]
_NONE: Mapping[str, Any] = {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
  """The objects that a config stands for.

  Attributes:
    problem: the bilevel problem.
    step_fn: one outer step, `state -> (state, metrics)`; pure. With streams,
      `(state, feed) -> (state, metrics)`; without a feed it can be traced, on
      batches of zeros.
    init_state: makes the state before the first outer step.
    evaluate: `(params, model_state) -> metrics` on the task's held-out data.
    make_model: `(params, model_state) -> nnx.Module` in evaluation mode.
    meta_tx: the outer optimizer.
    estimator: how a window is differentiated.
    initial: initial value of every learned hyperparameter, by group label
      where there are groups.
    loss_label: what the task's loss measures, for pictures.
    known_answers: the values that a perfect model would end at, by name.
    shares_stream: whether batches of the outer loss are meant to be held out,
      and are the next ones of the training stream for want of a `next_meta`.
    streams: what batches are read from; None for a task in memory.
    members: of a population, whose `step_fn`, `init_state`, `evaluate` and
      `initial` have the members as one axis more in front; 0 for a run.
    layout: where its arrays lie on several devices; None for one device.
  """

  problem: records.Problem
  step_fn: Callable[..., tuple[records.MetaTrainState, records.Metrics]]
  init_state: Callable[[], records.MetaTrainState]
  evaluate: evaluate.EvaluateFn
  make_model: Callable[[Any, Any], nnx.Module]
  meta_tx: optax.GradientTransformation
  estimator: meta_gradient.Estimator
  initial: dict[str, Any]
  loss_label: str
  known_answers: dict[str, float]
  shares_stream: bool
  streams: streams_lib.Streams | None
  members: int
  layout: sharding.Layout | None

  def evaluate_state(self, state: records.MetaTrainState) -> records.Metrics:
    """Evaluates a state's model, and its average where one is kept."""
    return evaluate.evaluate_state(self.evaluate, state)


def build(config: Config, *, spread: bool = False) -> Experiment:
  """Builds everything that `config` names.

  Args:
    config: resolved, as `config.resolve` returns it.
    spread: whether to use the devices of the config's `mesh`; otherwise all is
      on one, whatever the config says.

  Returns:
    The run's objects. They draw random numbers when made and used, so hold
    `randomness(config)` around both.

  Raises:
    ConfigError: for a class that cannot be imported, arguments that it or
      optax refuses, or a mesh that does not fit.
  """
  first = members_lib.members_of(config)[0]
  task = build_named.build_task(config['task'])
  model = build_named.build_model(config['model'], first['seed'])
  split = functional.split(model)
  problem, initial = _build_problem(first, task, split)
  streams = None
  if isinstance(task, tasks.Stream):
    _check_alone(config)
    streams = streams_lib.Streams(task, config)
    problem = feed_lib.blank(problem, streams.spec)
  layout = _lay_out(config, task, problem, model) if spread else None
  within = None if config['population'] else layout  # of a member's own step
  problem = _in_parts(problem, config['inner']['microbatches'], within)
  meta_tx = _build_meta_tx(first, initial)
  estimator = _build_estimator(config['meta'])

  def init_state(values: Mapping[str, Any]) -> records.MetaTrainState:
    state = outer.init_state(
      problem,
      **values,
      hyperparams=initial,
      meta_tx=meta_tx,
      estimator=estimator,
    )
    return build_step.with_average(state, config['average'])

  one = Experiment(
    problem=problem,
    step_fn=build_step.make_step_fn(
      problem,
      meta_tx,
      estimator,
      build_optimizers.build_limit(first['meta']),
      build_optimizers.build_judge(first['meta']),
      _summarizer(task, split),
      config['average'],
      within,
    ),
    init_state=lambda: build_step.placed(
      init_state(_first_values(first, task, split)), layout
    ),
    evaluate=_make_evaluate(config, task, split, layout),
    make_model=split.eval.merge,
    meta_tx=meta_tx,
    estimator=estimator,
    initial=initial,
    loss_label=getattr(task, 'loss_label', tasks.Task.loss_label),
    known_answers=_known_answers(task),
    shares_stream=config['meta']['objective'] == 'held_out'
    and not build_named.has_next_meta(task),
    streams=streams,
    members=0,
    layout=layout,
  )
  if not config['population']:
    return one
  return _populate(one, config, task, split, init_state)


def _populate(
  one: Experiment,
  config: Config,
  task: tasks.Task,
  split: functional.Split,
  init_state: Callable[[Mapping[str, Any]], records.MetaTrainState],
) -> Experiment:
  """The objects of a population, of those of its first member.

  Args:
    one: the first member's.
    config: the population's.
    task: what all members train on.
    split: the first member's model.
    init_state: from first values to the first member's state.
  """
  first, *others = members = members_lib.members_of(config)
  initials = [_initial(each, task, one.problem.labels) for each in members]
  make_meta_tx = functools.partial(_build_meta_tx, first, one.initial)

  def begin() -> records.MetaTrainState:
    first_values = [_first_values(first, task, split)]
    for each in others:
      own = functional.split(
        build_named.build_model(each['model'], each['seed'])
      )
      first_values.append(_draw(each, task, own))
    state = stacking.begin(
      config,
      one.problem,
      first_values=first_values,
      initials=initials,
      init_state=init_state,
      make_meta_tx=make_meta_tx,
    )
    return build_step.placed(state, one.layout)

  return dataclasses.replace(
    one,
    step_fn=population.vmapped(
      lambda state, own: one.step_fn(state, meta_tx=make_meta_tx(own)),
      stacking.meta_settings(config),
    ),
    init_state=begin,
    initial=stacking.stack_initial(initials),
    members=len(members),
  )


def _make_evaluate(
  config: Config,
  task: tasks.Task,
  split: functional.Split,
  layout: sharding.Layout | None,
) -> evaluate.EvaluateFn:
  """Evaluates a model; of a population each member's, on the same batches."""
  loss_fn = functional.make_loss_fn(split.eval, task.loss)
  if config['population']:
    loss_fn = jax.vmap(loss_fn, in_axes=(0, 0, None))
  return evaluate.make_evaluate(
    loss_fn, _eval_batches(task, config['task']['name']), layout
  )


def _check_alone(config: Config) -> None:
  """Refuses a population on a stream, which feeds one run."""
  if config['population']:
    raise errors.ConfigError.of(
      'population',
      config['population'],
      f'must be {{}} with task.name={config["task"]["name"]}, a stream',
      'train its members one by one, or on a task in memory',
    )


def _build_meta_tx(
  config: Config, initial: Mapping[str, Any], own: Mapping[str, Any] = _NONE
) -> optax.GradientTransformation:
  """The outer optimizer, checked; `own` has a member's values of its fields."""
  meta_tx = build_optimizers.build_meta_tx(
    {**config['meta'], **own}, config['task']['loss_kwargs']
  )
  build_optimizers.check_update(
    'meta.optimizer',
    config['meta']['optimizer'],
    meta_tx,
    jax.tree.map(jnp.zeros_like, initial),
  )
  return meta_tx


def _first_values(
  config: Config, task: tasks.Task, split: functional.Split
) -> dict[str, Any]:
  """The first state's values that come from the model and the task, checked."""
  values = _draw(config, task, split)
  _check_pure(task, values['data_state'], config)
  fingerprint.check_savable(values, config)
  return values


def _draw(
  config: Config, task: tasks.Task, split: functional.Split
) -> dict[str, Any]:
  return {
    'params': split.params,
    'model_state': split.model_state,
    'data_state': task.init(jax.random.key(config['seed'])),
  }


def _check_pure(task: tasks.Task, data_state: Any, config: Config) -> None:
  if not isinstance(task, tasks.Stream):
    purity.check(task, data_state, config['task']['name'])


def _build_problem(
  config: Config, task: tasks.Task, split: functional.Split
) -> tuple[records.Problem, dict[str, Any]]:
  """The bilevel problem, and the initial value of what it learns."""
  inner_section, meta = config['inner'], config['meta']
  factory = lookup.find_factory('inner.optimizer', inner_section['optimizer'])
  labels = build_optimizers.build_labels(meta['groups'], split.params)
  fixed, of_loss = build_loss.divide(config['task'], meta['learned'], task)
  build_loss.check_names(of_loss, factory)
  initial = _initial(config, task, labels)
  problem = records.Problem(
    loss_fn=functional.make_loss_fn(
      split.train, functools.partial(task.loss, **fixed)
    ),
    meta_loss_fn=functional.make_loss_fn(split.meta, task.loss),
    next_batch=task.next,
    next_meta_batch=task.next_meta
    if build_named.has_next_meta(task)
    else task.next,
    tx=build_optimizers.build_tx(
      inner_section,
      _of_tx(meta, of_loss),
      factory,
      labels,
      num_updates(config),
    ),
    bijections=meta['learned'],
    unroll_length=meta['unroll_length'],
    labels=labels,
    loss_hyperparams=tuple(of_loss),
    first_loss=build_optimizers.rejects(meta),
  )
  build_optimizers.check_update(
    'inner.kwargs', inner_section['optimizer'], problem.tx, split.params
  )
  return problem, initial


def _of_tx(meta: Config, of_loss: Mapping[str, Any]) -> dict[str, str]:
  """The bijections of what is learned of the inner optimizer."""
  return {n: kind for n, kind in meta['learned'].items() if n not in of_loss}


def _initial(config: Config, task: tasks.Task, labels: Any) -> dict[str, Any]:
  """The initial value of each learned hyperparameter."""
  inner_section, meta = config['inner'], config['meta']
  factory = lookup.find_factory('inner.optimizer', inner_section['optimizer'])
  _, of_loss = build_loss.divide(config['task'], meta['learned'], task)
  of_tx = _of_tx(meta, of_loss)
  initial = build_optimizers.initial_hyperparams(
    inner_section, of_tx, factory, labels
  )
  if meta['optimizer'] == rules.STEERING and meta['estimator'] != 'none':
    initial = steered.begin(
      initial, of_tx, held_out=meta['objective'] == 'held_out'
    )
  return {**initial, **of_loss}


def _lay_out(
  config: Config, task: tasks.Task, problem: records.Problem, model: nnx.Module
) -> sharding.Layout | None:
  """Where the run's arrays lie; asks for batches only where it matters."""
  if not devices.are_several(config):
    return None
  if config['population']:
    return devices.lay_out_members(config['mesh'], members_lib.count(config))
  data_state = task.init(jax.random.key(config['seed']))
  _check_pure(task, data_state, config)
  with refusals.tracing(config):
    layout = devices.lay_out(config, problem, data_state, model)
  if isinstance(task, tasks.Stream):
    devices.check_shares(config, layout)
  return layout


def _in_parts(
  problem: records.Problem, count: int, layout: sharding.Layout | None
) -> records.Problem:
  """The problem with its losses computed in microbatches."""
  place = functools.partial(layout.split_batches, axis=1) if layout else None
  return dataclasses.replace(
    problem,
    loss_fn=microbatches.split(problem.loss_fn, count, place),
    meta_loss_fn=microbatches.split(problem.meta_loss_fn, count, place),
  )


def num_updates(config: Config) -> int:
  """Inner updates of the whole run."""
  return config['num_outer_steps'] * config['meta']['unroll_length']


def randomness(config: Config) -> contextlib.AbstractContextManager:
  """Context in which the run draws its random numbers."""
  return jax.threefry_partitionable(config['threefry_partitionable'])


def _build_estimator(section: Config) -> meta_gradient.Estimator:
  return meta_gradient.Estimator(
    kind=section['estimator'],
    remat=section['remat'],
    curvature=section['curvature'],
    subsample=section['subsample'],
    discount=section['discount'],
    objective=section['objective'],
  )


def _summarizer(task: tasks.Task, split: functional.Split) -> Callable:
  def summarize(state: records.MetaTrainState) -> dict[str, jax.Array]:
    if not hasattr(task, 'summarize'):
      return {}
    model = split.eval.merge(state.params, state.model_state)
    values = task.summarize(model)
    return {f'params/{name}': value for name, value in values.items()}

  return summarize


def _eval_batches(task: tasks.Task, name: str) -> Any:
  if isinstance(task, tasks.Stream):
    return streams_lib.eval_batches(task, name)
  return task.eval_batches() if hasattr(task, 'eval_batches') else ()


def _known_answers(task: tasks.Task) -> dict[str, float]:
  known = task.known_answers() if hasattr(task, 'known_answers') else {}
  return {name: float(value) for name, value in known.items()}
