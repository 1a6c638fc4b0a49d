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
from metalr_flax.comparison import unseen as unseen_lib
from metalr_flax.config import schema
from metalr_flax.engine import optimizers
from metalr_flax.engine import outer
from metalr_flax.trainer import build

PyTree = Any
# Where a learned decay starts; 0, the default of some, has no logarithm.
_DECAY = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contestant:
  """A training method on one problem.

  Attributes:
    init: `(learning_rate, snapshot, weight_decay=None) -> state`, all of one
      run; a decay where the cell has some.
    step: `state -> (state, loss)`, the mean loss of the step's batches.
    view: `state -> (snapshot, learning_rate)`: where its objective is measured,
      and the rate that it has learned, NaN where it learns none.
    updates: inner updates in a step.
  """

  init: Callable[..., PyTree]
  step: Callable[..., tuple[PyTree, jax.Array]]
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
  recipe = _make_recipe(cell, kwargs)
  plain = _make_plain(method, method.make_tx, recipe, arena)
  if arena.unseen is None or not method.held_out:
    return plain
  return _make_helped(plain, arena.unseen)


def _make_recipe(
  cell: cells.Cell, kwargs: Mapping[str, Any]
) -> Callable[..., methods.Recipe]:
  """`(learning_rate, weight_decay) -> Recipe` of a cell's runs.

  The decay is None where the cell has none: the optimizer's own then.
  """
  learned = _learned(cell)

  def make(rate: jax.Array, decay: jax.Array | None) -> methods.Recipe:
    given = kwargs if decay is None else {**kwargs, methods.DECAY: decay}

    def inner(rate: Any) -> optax.GradientTransformation:
      return getattr(optax, cell.optimizer)(learning_rate=rate, **given)

    def injected(rate: Any) -> optax.GradientTransformation:
      inject = optax.inject_hyperparams(getattr(optax, cell.optimizer))
      first = {methods.DECAY: _DECAY} if methods.DECAY in learned else {}
      return inject(learning_rate=rate, **{**given, **first})

    def cosine(peak: Any) -> optax.Schedule:
      return optax.cosine_decay_schedule(peak, cell.num_steps)

    def linear(peak: Any) -> optax.Schedule:
      return make_linear(peak, cell.num_steps)

    return methods.Recipe(
      rate, inner, injected, cosine, linear, cell.num_steps, learned
    )

  return make


def make_linear(peak: Any, num_steps: int) -> optax.Schedule:
  """The schedule that rises for `methods.WARM_UP` of a run, then falls to 0.

  Args:
    peak: the highest rate, of the update that ends the warm-up.
    num_steps: updates of the run.

  Returns:
    From the number of updates done to the rate of the next, a float scalar.
  """
  rise = max(1, round(methods.WARM_UP * num_steps))
  fall = num_steps - rise + 1

  def schedule(count: Any) -> jax.Array:
    # The first update is not lost to a rate of 0.
    left = jnp.maximum(num_steps - count, 0)
    return peak * jnp.minimum((count + 1) / rise, left / fall)

  return schedule


def _learned(cell: cells.Cell) -> tuple[str, ...]:
  """What a method that learns by name learns: on unseen data a decay, too."""
  decays = cell.unseen and methods.takes_decay(cell.optimizer)
  return (methods.RATE, methods.DECAY) if decays else (methods.RATE,)


def _make_plain(
  method: methods.Method,
  make_tx: methods.MakeTx,
  recipe: Callable[..., methods.Recipe],
  arena: arena_lib.Arena,
) -> Contestant:
  """Plain training with an optax transformation.

  The rate is a part of the state, and so is a decay, so that runs of others are
  the same program.
  """

  def init(
    rate: jax.Array,
    snapshot: arena_lib.Snapshot,
    decay: jax.Array | None = None,
  ) -> Any:
    setting = rate, decay
    return setting, snapshot, make_tx(recipe(*setting)).init(snapshot.params)

  def step(state: Any, **given: Any) -> tuple[Any, jax.Array]:
    setting, run, opt_state = state
    tx = optax.with_extra_args_support(make_tx(recipe(*setting)))
    data_state, batch = arena.next_batch(run.data_state)
    (loss, (model_state, _)), grads = jax.value_and_grad(
      arena.loss_fn, has_aux=True
    )(run.params, run.model_state, batch)
    shown = loss
    if method.eval_params:
      params = method.eval_params(opt_state, run.params)
      shown, _ = arena.loss_fn(params, run.model_state, batch)
    updates, opt_state = tx.update(
      grads, opt_state, run.params, value=loss, **given
    )
    run = run.replace(
      params=optax.apply_updates(run.params, updates),
      model_state=model_state,
      data_state=data_state,
    )
    return (setting, run, opt_state), shown

  def view(state: Any) -> tuple[arena_lib.Snapshot, jax.Array]:
    _, run, opt_state = state
    learned = jnp.full((), jnp.nan)
    if method.eval_params:
      run = run.replace(params=method.eval_params(opt_state, run.params))
    if method.learned_rate:
      learned = method.learned_rate(opt_state)
    return run, learned

  return Contestant(init=init, step=step, view=view, updates=1)


def _make_helped(plain: Contestant, unseen: unseen_lib.Unseen) -> Contestant:
  """Plain training that is given held-out gradients.

  A step is a window of updates, the first with the gradient of a held-out
  batch. Its place in the window is the same for all runs that are trained side
  by side, so that the others do without.
  """

  def give(run: arena_lib.Snapshot) -> tuple[arena_lib.Snapshot, PyTree]:
    data_state, batch = unseen.next_batch(run.data_state)
    grads, _ = jax.grad(unseen.loss_fn, has_aux=True)(
      run.params, run.model_state, batch
    )
    return run.replace(data_state=data_state), grads

  def rest(run: arena_lib.Snapshot) -> tuple[arena_lib.Snapshot, PyTree]:
    # A held-out gradient that is not finite counts as none.
    return run, jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), run.params)

  def update(state: Any, place: jax.Array) -> tuple[Any, jax.Array]:
    setting, run, opt_state = state
    run, meta_grads = jax.lax.cond(place == 0, give, rest, run)
    return plain.step((setting, run, opt_state), meta_grads=meta_grads)

  def step(state: Any) -> tuple[Any, jax.Array]:
    places = jnp.arange(methods.HELD_OUT_EVERY)
    state, losses = jax.lax.scan(update, state, places)
    return state, jnp.mean(losses)

  return dataclasses.replace(plain, step=step, updates=methods.HELD_OUT_EVERY)


def _make_trainer(config: Mapping[str, Any], cell: cells.Cell) -> Contestant:
  """The trainer's outer step, as `build` makes it."""
  experiment = build.build(
    trainer_config(config, cell.problem, cell.optimizer, config['seed'])
  )

  def init(
    rate: jax.Array, snapshot: arena_lib.Snapshot, decay: None = None
  ) -> Any:
    del decay  # the optimizer's own
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
