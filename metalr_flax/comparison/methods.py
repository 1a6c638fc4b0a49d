"""The table of the methods that are compared: one entry holds all of a method.

To add one, add an entry to `METHODS`, and a function if none here makes its
optimizer. The functions import optax when they are called: the names must be
known before JAX is imported, so that a mistake in a config is answered at once.

Nothing here is tuned to a problem: a method knows its learning rate, if it has
one, and the length of the run, if it follows a schedule.
"""

from collections.abc import Callable
import dataclasses
import enum
import inspect
import math
from typing import Any, NamedTuple, TYPE_CHECKING

if TYPE_CHECKING:
  import jax
  import optax

WARM_UP = 0.02  # of a run: how long `linear` rises
UNROLL_LENGTH = 8  # inner updates in a window of the trainer
BASELINE = 'constant'  # its best learning rate is what the others are held to
SUBJECT = 'self_tuning'  # what the comparison is about
HELD_OUT_EVERY = 4  # updates to each held-out gradient, where it is given any
RATE, DECAY = 'learning_rate', 'weight_decay'


class Kind(enum.Enum):
  """What a method starts from, and whether it needs an inner optimizer."""

  GRID = enum.auto()  # inner optimizers, each rate of a grid: its best counts
  STARTS = enum.auto()  # inner optimizers, each initial rate: all of them count
  WRAPPER = enum.auto()  # inner optimizers, without any rate
  WHOLE = enum.auto()  # an optimizer of its own, without any rate


class Recipe(NamedTuple):
  """What a method makes its optimizer from.

  Attributes:
    learning_rate: that of the run, traced; NaN where the kind has none.
    inner: makes the inner optimizer from a learning rate or a schedule.
    injected: makes it from a learning rate, which its state holds.
    cosine: makes the schedule that falls from a peak to 0 over the run.
    linear: the same, in a line after a warm-up.
    num_steps: inner updates of the run.
    learned: what of it a method learns that learns hyperparameters by name.
  """

  learning_rate: 'jax.Array'
  inner: Callable[[Any], 'optax.GradientTransformation']
  injected: Callable[[Any], 'optax.GradientTransformation']
  cosine: Callable[[Any], 'optax.Schedule']
  linear: Callable[[Any], 'optax.Schedule']
  num_steps: int
  learned: tuple[str, ...] = (RATE,)


MakeTx = Callable[[Recipe], 'optax.GradientTransformation']


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
  """A way to train.

  Attributes:
    kind: what it starts from; it decides how the method is ranked and called.
    make_tx: makes the optimizer of one run; None for the trainer, whose windows
      `contestants` builds.
    eval_params: `(opt_state, params) -> params` to evaluate, where those that
      are trained are others.
    learned_rate: `opt_state -> learning rate` that it has learned.
    cost: reverse-mode gradients of a batch for each inner update.
    held_out: whether its optimizer takes `meta_grads=`, the gradient of a
      held-out batch; where the loss on unseen data is compared it is given one
      at every `HELD_OUT_EVERY`-th update.
    color: matplotlib's, of its lines.
    line: matplotlib's style of them.
    schedule: `share of the run -> share of the rate` that a grid's rate
      follows; None where that is not known beforehand.
  """

  kind: Kind
  make_tx: MakeTx | None
  eval_params: Callable[[Any, Any], Any] | None = None
  learned_rate: Callable[[Any], 'jax.Array'] | None = None
  cost: float = 1.0
  held_out: bool = False
  color: str = 'black'
  line: str = '-'
  schedule: Callable[[float], float] | None = None


def takes_decay(optimizer: str) -> bool:
  """Whether an optax optimizer has a weight decay; '' is none."""
  import optax

  factory = getattr(optax, optimizer, None)
  return factory is not None and DECAY in inspect.signature(factory).parameters


def of_kind(*kinds: Kind) -> tuple[str, ...]:
  """The names of all methods of these kinds, kind by kind."""
  return tuple(
    name
    for kind in kinds
    for name, method in METHODS.items()
    if method.kind is kind
  )


def _constant(recipe: Recipe) -> 'optax.GradientTransformation':
  return recipe.inner(recipe.learning_rate)


def _cosine(recipe: Recipe) -> 'optax.GradientTransformation':
  return recipe.inner(recipe.cosine(recipe.learning_rate))


def _linear(recipe: Recipe) -> 'optax.GradientTransformation':
  return recipe.inner(recipe.linear(recipe.learning_rate))


def _linear_share(share: float) -> float:
  """Of the peak, after a share of the run."""
  return min(share / WARM_UP, (1 - share) / (1 - WARM_UP))


def _self_tuning(recipe: Recipe) -> 'optax.GradientTransformation':
  import optax

  from metalr_flax.tuning import self_tuning

  tx = self_tuning.self_tuning(
    recipe.injected(recipe.learning_rate), learned=recipe.learned
  )

  def update(
    grads: Any, state: Any, params: Any, *, meta_grads: Any = None, **_: Any
  ) -> Any:
    # Given gradients alone and not the loss, as most loops call it.
    return tx.update(grads, state, params, meta_grads=meta_grads)

  return optax.GradientTransformationExtraArgs(tx.init, update)


def _injected_rate(opt_state: Any) -> 'jax.Array':
  import jax.numpy as jnp

  from metalr_flax.engine import optimizers

  return jnp.asarray(optimizers.find_hyperparams(opt_state)['learning_rate'])


def _mechanize(recipe: Recipe) -> 'optax.GradientTransformation':
  import optax

  return optax.contrib.mechanize(recipe.inner(1.0))


def _mechanize_cosine(recipe: Recipe) -> 'optax.GradientTransformation':
  import optax

  return optax.contrib.mechanize(recipe.inner(recipe.cosine(1.0)))


def _contrib(name: str, *, cosine: bool = False) -> MakeTx:
  """Makes an optimizer of `optax.contrib`, as it is or scaled by a cosine."""

  def make_tx(recipe: Recipe) -> 'optax.GradientTransformation':
    import optax

    arguments = {'learning_rate': recipe.cosine(1.0)} if cosine else {}
    return getattr(optax.contrib, name)(**arguments)

  return make_tx


def _schedule_free_params(opt_state: Any, params: Any) -> Any:
  import optax

  return optax.contrib.schedule_free_eval_params(opt_state, params)


METHODS = {
  'constant': Method(
    kind=Kind.GRID,
    make_tx=_constant,
    color='tab:gray',
    line='--',
    schedule=lambda share: 1.0,
  ),
  'cosine': Method(
    kind=Kind.GRID,
    make_tx=_cosine,
    color='tab:blue',
    line='--',
    schedule=lambda share: 0.5 * (1 + math.cos(math.pi * share)),
  ),
  'linear': Method(
    kind=Kind.GRID,
    make_tx=_linear,
    color='tab:blue',
    line=':',
    schedule=_linear_share,
  ),
  # It differentiates the optimizer's update alone: no gradient of its own, but
  # for those of held-out batches where the loss on unseen data is compared.
  'self_tuning': Method(
    kind=Kind.STARTS,
    make_tx=_self_tuning,
    learned_rate=_injected_rate,
    held_out=True,
    color='tab:orange',
  ),
  # To each gradient it adds its exact forward tangent, counted as 1.5 more (a
  # step of it was measured at 1.7 to 2.7 times plain training's, see
  # benchmarks/results/meta_gradient.md), and to each window the gradient of a
  # held-out batch.
  'trainer': Method(
    kind=Kind.STARTS,
    make_tx=None,
    cost=1 + 1.5 + 1 / UNROLL_LENGTH,
    color='tab:green',
  ),
  # A cosine has the colour of the method that it is added to.
  'mechanize': Method(kind=Kind.WRAPPER, make_tx=_mechanize, color='tab:red'),
  'mechanize_cosine': Method(
    kind=Kind.WRAPPER, make_tx=_mechanize_cosine, color='tab:red', line=':'
  ),
  'prodigy': Method(
    kind=Kind.WHOLE, make_tx=_contrib('prodigy'), color='tab:purple'
  ),
  'prodigy_cosine': Method(
    kind=Kind.WHOLE,
    make_tx=_contrib('prodigy', cosine=True),
    color='tab:purple',
    line=':',
  ),
  'dadapt_adamw': Method(
    kind=Kind.WHOLE, make_tx=_contrib('dadapt_adamw'), color='tab:brown'
  ),
  'dadapt_adamw_cosine': Method(
    kind=Kind.WHOLE,
    make_tx=_contrib('dadapt_adamw', cosine=True),
    color='tab:brown',
    line=':',
  ),
  'dog': Method(kind=Kind.WHOLE, make_tx=_contrib('dog'), color='tab:pink'),
  'dowg': Method(kind=Kind.WHOLE, make_tx=_contrib('dowg'), color='tab:olive'),
  'cocob': Method(kind=Kind.WHOLE, make_tx=_contrib('cocob'), color='tab:cyan'),
  'momo_adam': Method(
    kind=Kind.WHOLE, make_tx=_contrib('momo_adam'), color='gold'
  ),
  # Its gradients are taken elsewhere than where it is evaluated.
  'schedule_free_adamw': Method(
    kind=Kind.WHOLE,
    make_tx=_contrib('schedule_free_adamw'),
    eval_params=_schedule_free_params,
    color='darkblue',
  ),
}
