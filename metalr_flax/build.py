"""From a checked config to the objects of a run.

Here is decided what takes JAX or the user's own code to decide; a mistake is
still answered before anything is written.
"""

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import functools
import importlib
import inspect
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import optax

from metalr_flax import config as config_lib
from metalr_flax import errors
from metalr_flax import evaluate
from metalr_flax import inner
from metalr_flax import meta_gradient
from metalr_flax import models
from metalr_flax import optimizers
from metalr_flax import outer
from metalr_flax import problem as problem_lib
from metalr_flax import state as state_lib
from metalr_flax import tasks
from metalr_flax.models import functional

Config = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
  """The objects that a config stands for.

  Attributes:
    problem: the bilevel problem.
    step_fn: one outer step, `state -> (state, metrics)`; pure.
    init_state: makes the state before the first outer step.
    evaluate: `(params, model_state) -> metrics` on the task's held-out data.
    make_model: `(params, model_state) -> nnx.Module` in evaluation mode.
    initial: initial value of every learned hyperparameter.
  """

  problem: problem_lib.Problem
  step_fn: outer.StepFn
  init_state: Callable[[], state_lib.MetaTrainState]
  evaluate: evaluate.EvaluateFn
  make_model: Callable[[Any, Any], nnx.Module]
  initial: dict[str, float]


def build(config: Config) -> Experiment:
  """Builds everything that `config` names.

  Args:
    config: resolved, as `config.resolve` returns it.

  Returns:
    The run's objects. They draw random numbers when made and used, so hold
    `randomness(config)` around both.

  Raises:
    ConfigError: for a class that cannot be imported, or arguments that it or
      optax refuses.
  """
  task = build_task(config)
  split = functional.split(build_model(config))
  initial = initial_hyperparams(config)
  problem = problem_lib.Problem(
    loss_fn=functional.make_loss_fn(split.train, task.loss),
    meta_loss_fn=functional.make_loss_fn(split.meta, task.loss),
    next_batch=task.next,
    next_meta_batch=getattr(task, 'next_meta', task.next),
    tx=_build_tx(config),
    bijections=config['meta']['learned'],
    unroll_length=config['meta']['unroll_length'],
  )
  meta_tx = _build_meta_tx(config)
  return Experiment(
    problem=problem,
    step_fn=_make_step_fn(config, problem, meta_tx, _summarizer(task, split)),
    init_state=lambda: outer.init_state(
      problem,
      # Copies: a state is donated, and these serve every state made.
      params=jax.tree.map(jnp.copy, split.params),
      model_state=jax.tree.map(jnp.copy, split.model_state),
      data_state=task.init(jax.random.key(config['seed'])),
      hyperparams=initial,
      meta_tx=meta_tx,
    ),
    evaluate=evaluate.make_evaluate(
      functional.make_loss_fn(split.eval, task.loss), _eval_batches(task)
    ),
    make_model=split.eval.merge,
    initial=initial,
  )


def randomness(config: Config) -> contextlib.AbstractContextManager:
  """Context in which the run draws its random numbers."""
  return jax.threefry_partitionable(config['threefry_partitionable'])


def build_task(config: Config) -> tasks.Task:
  """The task that a config names."""
  section = config['task']
  cls = _find('task.name', section['name'], tasks.TASKS)
  accepted = inspect.signature(cls).parameters
  open_ended = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
  arguments = _tuples(section['kwargs'])
  if 'batch_size' in accepted or open_ended:
    arguments['batch_size'] = section['batch_size']
  if section['path']:
    arguments['path'] = section['path']
  task = _construct('task.kwargs', cls, arguments)
  missing = [m for m in ('init', 'next', 'loss') if not hasattr(task, m)]
  if missing:
    raise errors.ConfigError(
      f'task.name={section["name"]}: has no method {missing[0]}; derive it '
      f'from metalr_flax.tasks.Task'
    )
  return task


def build_model(config: Config) -> nnx.Module:
  """The model that a config names, with its initial weights."""
  section = config['model']
  cls = _find('model.name', section['name'], models.MODELS)
  arguments = {**_tuples(section['kwargs']), 'rngs': nnx.Rngs(config['seed'])}
  model = _construct('model.kwargs', cls, arguments)
  if not isinstance(model, nnx.Module):
    raise errors.ConfigError(
      f'model.name={section["name"]}: is not a flax.nnx.Module; derive it from '
      f'nnx.Module'
    )
  return model


def initial_hyperparams(config: Config) -> dict[str, float]:
  """Where each learned hyperparameter starts: the config or optax's default.

  Raises:
    ConfigError: for one that the optimizer does not have or that is no float.
  """
  section = config['inner']
  parameters = optimizers.signature_of(section['optimizer']).parameters
  given = {**section['kwargs'], 'learning_rate': section['learning_rate']}
  initial = {}
  for name, kind in config['meta']['learned'].items():
    if name not in parameters:
      raise errors.ConfigError(
        f'meta.learned.{name}={kind}: {section["optimizer"]} has no such '
        f'argument; {config_lib.suggest(name, tuple(parameters))}'
      )
    value = given.get(name, parameters[name].default)
    field = 'inner.' + ('' if name == 'learning_rate' else 'kwargs.') + name
    config_lib.check_initial(field, value, kind)
    initial[name] = float(value)
  return initial


def _build_tx(config: Config) -> optax.GradientTransformation:
  section, learned = config['inner'], config['meta']['learned']
  name = section['optimizer']
  if 'learning_rate' in section['kwargs']:
    raise errors.ConfigError(
      'inner.kwargs.learning_rate: has a field of its own; set '
      '--config.inner.learning_rate=...'
    )
  arguments = {
    **_tuples(section['kwargs']),
    'learning_rate': section['learning_rate'],
  }
  _check_arguments('inner.kwargs', getattr(optax, name), arguments)
  return optimizers.make_injected(name, arguments, learned)


def _build_meta_tx(config: Config) -> optax.GradientTransformation:
  section = config['meta']
  factory = getattr(optax, section['optimizer'])
  return factory(learning_rate=section['learning_rate'])


def _make_step_fn(
  config: Config,
  problem: problem_lib.Problem,
  meta_tx: optax.GradientTransformation,
  summarize: Callable[[state_lib.MetaTrainState], dict[str, jax.Array]],
) -> outer.StepFn:
  step = functools.partial(
    outer.outer_step,
    problem=problem,
    meta_tx=meta_tx,
    estimator=meta_gradient.ESTIMATORS[config['meta']['estimator']],
  )

  def step_fn(
    state: state_lib.MetaTrainState,
  ) -> tuple[state_lib.MetaTrainState, inner.Metrics]:
    state, metrics = step(state)
    return state, {**metrics, **summarize(state)}

  return step_fn


def _summarizer(task: tasks.Task, split: functional.Split) -> Callable:
  def summarize(state: state_lib.MetaTrainState) -> dict[str, jax.Array]:
    if not hasattr(task, 'summarize'):
      return {}
    model = split.eval.merge(state.params, state.model_state)
    values = task.summarize(model)
    return {f'params/{name}': value for name, value in values.items()}

  return summarize


def _eval_batches(task: tasks.Task) -> Any:
  return task.eval_batches() if hasattr(task, 'eval_batches') else ()


def _find(field: str, name: str, known: Mapping[str, type]) -> type:
  """The class a config names: of this package, or the user's own."""
  if name in known:
    return known[name]
  module_name, _, class_name = name.partition(':')
  try:
    return getattr(importlib.import_module(module_name), class_name)
  except (ImportError, AttributeError) as error:
    raise errors.ConfigError(
      f'{field}={name}: cannot be imported ({error}); check the name, and that '
      f'its folder is the current one or on PYTHONPATH'
    ) from error


def _construct(field: str, cls: type, arguments: dict[str, Any]) -> Any:
  _check_arguments(field, cls, arguments)
  try:
    return cls(**arguments)
  except ValueError as error:
    raise errors.ConfigError(
      f'{field}: {cls.__name__} refuses its arguments ({error}); change them'
    ) from error


def _check_arguments(
  field: str, function: Callable, arguments: Mapping[str, Any]
) -> None:
  try:
    inspect.signature(function).bind(**arguments)
  except TypeError as error:
    raise errors.ConfigError(
      f'{field}: {function.__name__}: {error}; its arguments are '
      f'{inspect.signature(function)}'
    ) from error


def _tuples(value: Any) -> Any:
  """JSON's lists as tuples: NNX takes a list attribute for modules."""
  if isinstance(value, Mapping):
    return {key: _tuples(item) for key, item in value.items()}
  if isinstance(value, list):
    return tuple(_tuples(item) for item in value)
  return value
