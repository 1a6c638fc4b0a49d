"""The methods that are compared, each as two pure functions.

Nothing here is tuned to a problem: a contestant knows its learning rate, if it
has one, and the length of the run, if it follows a cosine.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metalr_flax.comparison import arena as arena_lib
from metalr_flax.comparison import cells
from metalr_flax.engine import optimizers
from metalr_flax.engine import outer
from metalr_flax.trainer import build
from metalr_flax.tuning import self_tuning

PyTree = Any
MakeTx = Callable[[Any], optax.GradientTransformation]
_Carry = tuple[arena_lib.Start, optax.OptState]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contestant:
  """A training method on one problem.

  Attributes:
    init: `(learning_rate, start) -> state`, both of one run.
    step: `state -> (state, loss)`, the mean loss of the step's batches.
    view: `state -> (place, learning_rate)`: where its objective is measured,
      and the rate that it has learned, NaN where it learns none.
    updates: inner updates in a step.
  """

  init: Callable[[jax.Array, arena_lib.Start], PyTree]
  step: Callable[[PyTree], tuple[PyTree, jax.Array]]
  view: Callable[[PyTree], tuple[arena_lib.Start, jax.Array]]
  updates: int


def build_contestant(
  config: Mapping[str, Any], cell: cells.Cell, arena: arena_lib.Arena
) -> Contestant:
  """The contestant of a cell.

  Args:
    config: the comparison's, resolved.
    cell: one of its cells.
    arena: the cell's problem.
  """
  if cell.method == 'trainer':
    return _make_trainer(config, cell)
  kwargs = config['optimizers'].get(cell.optimizer, {})
  return _make_optax(_make_tx(cell, kwargs), arena, cell.method)


def _make_tx(cell: cells.Cell, kwargs: Mapping[str, Any]) -> MakeTx:
  """A cell's optax transformation, by the learning rate of a run."""

  def inner(rate: Any) -> optax.GradientTransformation:
    return getattr(optax, cell.optimizer)(learning_rate=rate, **kwargs)

  def injected(rate: Any) -> optax.GradientTransformation:
    inject = optax.inject_hyperparams(getattr(optax, cell.optimizer))
    return inject(learning_rate=rate, **kwargs)

  def cosine(peak: Any) -> optax.Schedule:
    return optax.cosine_decay_schedule(peak, cell.num_steps)

  def whole(rate: Any) -> optax.GradientTransformation:
    del rate
    name = cell.method.removesuffix('_cosine')
    given = {} if name == cell.method else {'learning_rate': cosine(1.0)}
    return getattr(optax.contrib, name)(**given)

  made: dict[str, MakeTx] = {
    'constant': inner,
    'cosine': lambda rate: inner(cosine(rate)),
    'self_tuning': lambda rate: self_tuning.self_tuning(injected(rate)),
    'mechanize': lambda _: optax.contrib.mechanize(inner(1.0)),
    'mechanize_cosine': lambda _: optax.contrib.mechanize(inner(cosine(1.0))),
  }
  return made.get(cell.method, whole)


def _make_optax(
  make_tx: MakeTx, arena: arena_lib.Arena, method: str
) -> Contestant:
  """Plain training with an optax transformation.

  The rate is a part of the state, so that runs of other rates are the same
  program.
  """

  def init(rate: jax.Array, start: arena_lib.Start) -> Any:
    return rate, start, make_tx(rate).init(start.params)

  def step(state: Any) -> tuple[Any, jax.Array]:
    rate, place, opt_state = state
    tx = optax.with_extra_args_support(make_tx(rate))
    data_state, batch = arena.next_batch(place.data_state)
    (loss, (model_state, _)), grads = jax.value_and_grad(
      arena.loss_fn, has_aux=True
    )(place.params, place.model_state, batch)
    if method == 'schedule_free_adamw':  # its gradients are taken elsewhere
      params = optax.contrib.schedule_free_eval_params(opt_state, place.params)
      seen, _ = arena.loss_fn(params, place.model_state, batch)
    else:
      seen = loss
    # Of gradients alone, as most loops call it.
    extra = {} if method == 'self_tuning' else {'value': loss}
    updates, opt_state = tx.update(grads, opt_state, place.params, **extra)
    place = place.replace(
      params=optax.apply_updates(place.params, updates),
      model_state=model_state,
      data_state=data_state,
    )
    return (rate, place, opt_state), seen

  def view(state: Any) -> tuple[arena_lib.Start, jax.Array]:
    _, place, opt_state = state
    learned = jnp.full((), jnp.nan)
    if method == 'schedule_free_adamw':
      params = optax.contrib.schedule_free_eval_params(opt_state, place.params)
      place = place.replace(params=params)
    elif method == 'self_tuning':
      found = optimizers.find_hyperparams(opt_state)
      learned = jnp.asarray(found['learning_rate'])
    return place, learned

  return Contestant(init=init, step=step, view=view, updates=1)


def _make_trainer(config: Mapping[str, Any], cell: cells.Cell) -> Contestant:
  """The trainer's outer step, as `build` makes it."""
  experiment = build.build(
    cells.trainer_config(config, cell.problem, cell.optimizer, config['seed'])
  )

  def init(rate: jax.Array, start: arena_lib.Start) -> Any:
    state = outer.init_state(
      experiment.problem,
      params=start.params,
      model_state=start.model_state,
      data_state=start.data_state,
      hyperparams=experiment.initial,
      meta_tx=experiment.meta_tx,
      estimator=experiment.estimator,
    )
    return state.replace(eta={'learning_rate': jnp.log(rate)})

  def step(state: Any) -> tuple[Any, jax.Array]:
    state, metrics = experiment.step_fn(state)
    return state, metrics['train/loss']

  def view(state: Any) -> tuple[arena_lib.Start, jax.Array]:
    place = arena_lib.Start(
      params=state.params,
      model_state=state.model_state,
      data_state=state.data_state,
    )
    # What the last window used; eta is already that of the next one.
    used = optimizers.find_hyperparams(state.opt_state)['learning_rate']
    return place, jnp.asarray(used)

  return Contestant(
    init=init, step=step, view=view, updates=cells.UNROLL_LENGTH
  )
