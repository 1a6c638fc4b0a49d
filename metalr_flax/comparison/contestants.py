"""Builds contestants: a method on a problem as three pure functions."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metalr_flax.comparison import arena as arena_lib
from metalr_flax.comparison import cells
from metalr_flax.comparison import methods
from metalr_flax.config import schema
from metalr_flax.engine import optimizers
from metalr_flax.engine import outer
from metalr_flax.trainer import build

PyTree = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contestant:
  """A training method on one problem.

  Attributes:
    init: `(learning_rate, snapshot) -> state`, both of one run.
    step: `state -> (state, loss)`, the mean loss of the step's batches.
    view: `state -> (snapshot, learning_rate)`: where its objective is measured,
      and the rate that it has learned, NaN where it learns none.
    updates: inner updates in a step.
  """

  init: Callable[[jax.Array, arena_lib.Snapshot], PyTree]
  step: Callable[[PyTree], tuple[PyTree, jax.Array]]
  view: Callable[[PyTree], tuple[arena_lib.Snapshot, jax.Array]]
  updates: int


def build_contestant(
  config: Mapping[str, Any], cell: cells.Cell, arena: arena_lib.Arena
) -> Contestant:
  """Builds the contestant of a cell.

  Args:
    config: the comparison's, resolved.
    cell: one of its cells.
    arena: the cell's problem.
  """
  method = methods.METHODS[cell.method]
  if method.make_tx is None:
    return _make_trainer(config, cell)
  kwargs = config['optimizers'].get(cell.optimizer, {})
  return _make_plain(method, method.make_tx, _make_recipe(cell, kwargs), arena)


def _make_recipe(
  cell: cells.Cell, kwargs: Mapping[str, Any]
) -> Callable[[jax.Array], methods.Recipe]:
  """`learning_rate -> Recipe` of a cell's runs."""

  def inner(rate: Any) -> optax.GradientTransformation:
    return getattr(optax, cell.optimizer)(learning_rate=rate, **kwargs)

  def injected(rate: Any) -> optax.GradientTransformation:
    inject = optax.inject_hyperparams(getattr(optax, cell.optimizer))
    return inject(learning_rate=rate, **kwargs)

  def cosine(peak: Any) -> optax.Schedule:
    return optax.cosine_decay_schedule(peak, cell.num_steps)

  return lambda rate: methods.Recipe(
    rate, inner, injected, cosine, cell.num_steps
  )


def _make_plain(
  method: methods.Method,
  make_tx: methods.MakeTx,
  recipe: Callable[[jax.Array], methods.Recipe],
  arena: arena_lib.Arena,
) -> Contestant:
  """Plain training with an optax transformation.

  The rate is a part of the state, so that runs of other rates are the same
  program.
  """

  def init(rate: jax.Array, snapshot: arena_lib.Snapshot) -> Any:
    return rate, snapshot, make_tx(recipe(rate)).init(snapshot.params)

  def step(state: Any) -> tuple[Any, jax.Array]:
    rate, run, opt_state = state
    tx = optax.with_extra_args_support(make_tx(recipe(rate)))
    data_state, batch = arena.next_batch(run.data_state)
    (loss, (model_state, _)), grads = jax.value_and_grad(
      arena.loss_fn, has_aux=True
    )(run.params, run.model_state, batch)
    shown = loss
    if method.eval_params:
      params = method.eval_params(opt_state, run.params)
      shown, _ = arena.loss_fn(params, run.model_state, batch)
    updates, opt_state = tx.update(grads, opt_state, run.params, value=loss)
    run = run.replace(
      params=optax.apply_updates(run.params, updates),
      model_state=model_state,
      data_state=data_state,
    )
    return (rate, run, opt_state), shown

  def view(state: Any) -> tuple[arena_lib.Snapshot, jax.Array]:
    _, run, opt_state = state
    learned = jnp.full((), jnp.nan)
    if method.eval_params:
      run = run.replace(params=method.eval_params(opt_state, run.params))
    if method.learned_rate:
      learned = method.learned_rate(opt_state)
    return run, learned

  return Contestant(init=init, step=step, view=view, updates=1)


def _make_trainer(config: Mapping[str, Any], cell: cells.Cell) -> Contestant:
  """The trainer's outer step, as `build` makes it."""
  experiment = build.build(
    trainer_config(config, cell.problem, cell.optimizer, config['seed'])
  )

  def init(rate: jax.Array, snapshot: arena_lib.Snapshot) -> Any:
    state = outer.init_state(
      experiment.problem,
      params=snapshot.params,
      model_state=snapshot.model_state,
      data_state=snapshot.data_state,
      hyperparams=experiment.initial,
      meta_tx=experiment.meta_tx,
      estimator=experiment.estimator,
    )
    return state.replace(eta={'learning_rate': jnp.log(rate)})

  def step(state: Any) -> tuple[Any, jax.Array]:
    state, metrics = experiment.step_fn(state)
    return state, metrics['train/loss']

  def view(state: Any) -> tuple[arena_lib.Snapshot, jax.Array]:
    snapshot = arena_lib.Snapshot(
      params=state.params,
      model_state=state.model_state,
      data_state=state.data_state,
    )
    # What the last window used; eta is already that of the next one.
    used = optimizers.find_hyperparams(state.opt_state)['learning_rate']
    return snapshot, jnp.asarray(used)

  return Contestant(
    init=init, step=step, view=view, updates=methods.UNROLL_LENGTH
  )


def trainer_config(
  config: Mapping[str, Any], problem: str, optimizer: str, seed: int
) -> dict[str, Any]:
  """The config of the trainer on a problem, its exact window mode.

  Args:
    config: a comparison's, resolved.
    problem: the problem's name.
    optimizer: the inner optimizer's name.
    seed: the run's.

  Returns:
    What `build.build` takes.
  """
  section = config['problems'][problem]
  whole = {
    'seed': seed,
    'num_outer_steps': section['num_steps'] // methods.UNROLL_LENGTH,
    **dict.fromkeys(schema.CADENCES, 1),
    'task': {**section['task']},
    'model': section['model'],
    'inner': {
      'optimizer': optimizer,
      'learning_rate': 1e-3,  # each run is given its own
      'kwargs': config['optimizers'][optimizer],
    },
    'meta': {
      'learned': {'learning_rate': 'log'},
      'unroll_length': methods.UNROLL_LENGTH,
      'estimator': 'forward',
      'remat': 'none',
      'curvature': 'exact',
      'subsample': 0.25,
      'discount': 0.0,
      'objective': 'held_out',
      'groups': '',
      'optimizer': 'adam',
      'learning_rate': 0.05,
    },
    'threefry_partitionable': True,
  }
  schema.complete(whole)
  return whole
