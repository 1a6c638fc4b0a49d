"""The ways to train: our candidates, schedules to tune, and other people's.

A method is a function `(inner, num_steps) -> (tx, params_to_evaluate)`, with
the rate as a third argument if it is given rates. `num_steps`, the length of
the run, is traced: schedules are functions of it. `params_to_evaluate` is
`(opt_state, params) -> params`. The loss is given to `tx.update` as `value=`.

A candidate is three lines: a function of two, and a row of `METHODS`.

    def bolder(inner, num_steps):
      return metalr_flax.self_tuning(inner.injected(1e-3), ...), trained

    METHODS['bolder'] = Method(bolder)
"""

from collections.abc import Callable
import functools
import hashlib
import inspect
import pathlib
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import metalr_flax

RATES = tuple(10.0 ** (half / 2) for half in range(-10, 3))  # 1e-5 to 10
STARTS = tuple(10.0**power for power in range(-8, 2))
WARM_UP = 0.02  # of the run
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
  'sgd': optax.sgd,
  'momentum': functools.partial(optax.sgd, momentum=0.9),
  'rmsprop': optax.rmsprop,
  'adamw': optax.adamw,
}
SGD = 'sgd', 'momentum'  # whose rates have the scale of the problem

Schedule = Callable[[jax.typing.ArrayLike], jax.Array]
ToEvaluate = Callable[[Any, Any], Any]
Made = tuple[optax.GradientTransformation, ToEvaluate]


class Inner(NamedTuple):
  """The inner optimizer of a run."""

  make: Callable[..., optax.GradientTransformation]

  def plain(self, rate: Any) -> optax.GradientTransformation:
    """It with a rate or a schedule."""
    return self.make(rate)

  def injected(self, rate: Any) -> optax.GradientTransformation:
    """It with a rate that its state holds."""
    # A partial has no signature that inject_hyperparams could read.
    return optax.inject_hyperparams(
      lambda learning_rate: self.make(learning_rate)
    )(learning_rate=rate)


class Method(NamedTuple):
  """A row of the table.

  Attributes:
    make: the function; methods with the same one share what is compiled.
    rates: what it is given one of; () for a method without a rate.
    picks: whether the best of its rates counts, as for a schedule that is
      tuned, or every one, as for rates that it starts from.
    schedule: handed to `make` besides, a number of `SCHEDULES`.
    optimizers: those that it is run with: one that brings its own has the name
      of the one it is most like.
  """

  make: Callable[..., Made]
  rates: tuple[float, ...] = ()
  picks: bool = True
  schedule: int | None = None
  optimizers: tuple[str, ...] = tuple(OPTIMIZERS)


def trained(opt_state: Any, params: Any) -> Any:
  """The params as they are trained."""
  del opt_state
  return params


# Schedules, all with 1 as their height.


def _warm_up(num_steps: Any) -> Schedule:
  """Rises linearly over the first 2 % of the run, at least one update."""
  steps = jnp.maximum(WARM_UP * num_steps, 1)
  return lambda count: jnp.minimum((count + 1) / steps, 1)


def _linear(num_steps: Any) -> Schedule:
  """Falls linearly to 0 over the whole run."""
  return lambda count: 1 - count / num_steps


def _of_shape(shape: Any, num_steps: Any) -> Schedule:
  """Constant, or a warm-up and then a cosine or a line down to 0."""
  warm_up = _warm_up(num_steps)

  def schedule(count: jax.typing.ArrayLike) -> jax.Array:
    begin = jnp.maximum(WARM_UP * num_steps, 1)
    gone = jnp.clip((count - begin) / (num_steps - begin), 0, 1)
    warm = warm_up(count)
    cosine, line = 0.5 * (1 + jnp.cos(jnp.pi * gone)), 1 - gone
    shapes = [jnp.ones_like(gone), warm * cosine, warm * line]
    return jnp.select([shape == number for number in range(3)], shapes)

  return schedule


SCHEDULES = ('constant', 'cosine', 'linear')


def _scheduled(inner: Inner, num_steps: Any, rate: Any, shape: Any) -> Made:
  """The inner optimizer with a constant rate or a schedule."""
  schedule = _of_shape(shape, num_steps)
  return inner.plain(lambda count: rate * schedule(count)), trained


# Ours.


def without_loss(tx: optax.GradientTransformation) -> Any:
  """Keeps the loss from it: most loops call `update` without `value=`."""
  return optax.GradientTransformation(
    tx.init, lambda grads, state, params=None: tx.update(grads, state, params)
  )


def _today(inner: Inner, num_steps: Any) -> Made:
  """The drop-in as it is, from 1e-3."""
  return without_loss(metalr_flax.self_tuning(inner.injected(1e-3))), trained


def _today_from(inner: Inner, num_steps: Any, rate: Any) -> Made:
  """The drop-in as it is, from any rate."""
  return without_loss(metalr_flax.self_tuning(inner.injected(rate))), trained


# Other people's, with what their papers advise.


def _schedule_free(inner: Inner, num_steps: Any, rate: Any) -> Made:
  """Schedule-free AdamW with a warm-up (https://arxiv.org/abs/2405.15682)."""
  warm_up = _warm_up(num_steps)
  rates = lambda count: rate * warm_up(count)
  # As optax's schedule_free_adamw, whose warm-up cannot be traced.
  adamw = optax.chain(
    optax.scale_by_rms(0.999, 1e-8, eps_in_sqrt=False, bias_correction=True),
    optax.scale_by_learning_rate(rates),
  )
  # It counts from 1, the optimizer inside from 0.
  tx = optax.contrib.schedule_free(adamw, lambda count: rates(count - 1))
  return tx, optax.contrib.schedule_free_eval_params


def _prodigy(inner: Inner, num_steps: Any) -> Made:
  """Prodigy with linear decay (https://arxiv.org/abs/2306.06101)."""
  return optax.contrib.prodigy(_linear(num_steps)), trained


def _dadapt(inner: Inner, num_steps: Any) -> Made:
  """D-Adaptation with linear decay (https://arxiv.org/abs/2301.07733)."""
  return optax.contrib.dadapt_adamw(_linear(num_steps)), trained


def _mechanic(inner: Inner, num_steps: Any) -> Made:
  """Mechanic around a linear decay (https://arxiv.org/abs/2306.00144)."""
  return optax.contrib.mechanize(inner.plain(_linear(num_steps))), trained


def _momo(inner: Inner, num_steps: Any) -> Made:
  """MoMo with its bound 0, below all losses (https://arxiv.org/abs/2305.07583)."""
  return optax.contrib.momo(), trained


def _momo_adam(inner: Inner, num_steps: Any) -> Made:
  """MoMo-Adam with its bound 0 (https://arxiv.org/abs/2305.07583)."""
  return optax.contrib.momo_adam(), trained


def _dog(inner: Inner, num_steps: Any) -> Made:
  """DoG with its average (https://arxiv.org/abs/2302.12022).

  optax has no average for it: that of its paper, by polynomial decay
  (Shamir and Zhang 2013) with gamma = 8.
  """
  return averaged(optax.contrib.dog(), lambda count: 9 / (count + 9))


def averaged(tx: optax.GradientTransformation, share: Schedule) -> Made:
  """Adds a running average of the params, which is what is evaluated.

  Args:
    tx: what trains the params.
    share: of the new params in the average, by the count of updates before.
  """

  def init(params: Any) -> Any:
    return tx.init(params), params, jnp.zeros((), jnp.int32)

  def update(grads: Any, state: Any, params: Any) -> Any:
    own, mean, count = state
    updates, own = tx.update(grads, own, params)
    new = optax.apply_updates(params, updates)
    mean = optax.tree.add_scale(mean, share(count), optax.tree.sub(new, mean))
    return updates, (own, mean, count + 1)

  return optax.GradientTransformation(init, update), lambda state, _: state[1]


def _opt_list(inner: Inner, num_steps: Any) -> Made:
  """OptList's first entry: the best single setting of Adam over 1000 tasks.

  Metz et al. 2020 (https://arxiv.org/abs/2002.11887); the values are those of
  opt_list.json in google/learned_optimization.
  """
  peak, eps, decay = 1.1948336e-3, 5.8758144e-6, 1.0141964e-2
  b1, b2, constant = 0.93600435, 0.99894974, 0.74730405

  def rates(count: jax.typing.ArrayLike) -> jax.Array:
    gone = (count / num_steps - constant) / (1 - constant)
    return peak * 0.5 * (1 + jnp.cos(jnp.pi * jnp.maximum(gone, 0)))

  def init(params: Any) -> Any:
    zeros = optax.tree.zeros_like(params)
    return zeros, zeros, jnp.zeros((), jnp.int32)

  def update(grads: Any, state: Any, params: Any) -> Any:
    mean, square, count = state
    mean = optax.tree.update_moment(grads, mean, b1, 1)
    square = optax.tree.update_moment(grads, square, b2, 2)
    time = count + 1
    rate = rates(count) * jnp.sqrt(1 - b2**time) / (1 - b1**time)
    updates = jax.tree.map(
      lambda m, v, p: -rate * (m / (jnp.sqrt(v) + eps) + decay * p),
      mean,
      square,
      params,
    )
    return updates, (mean, square, time)

  return optax.GradientTransformation(init, update), trained


METHODS = {
  'constant': Method(_scheduled, RATES, schedule=0),
  'cosine': Method(_scheduled, RATES, schedule=1),
  'linear': Method(_scheduled, RATES, schedule=2),
  'today': Method(_today),
  'today_from_anywhere': Method(_today_from, STARTS, picks=False),
  'schedule_free': Method(_schedule_free, (0.0025,), optimizers=('adamw',)),
  'schedule_free_tuned': Method(_schedule_free, RATES, optimizers=('adamw',)),
  'prodigy': Method(_prodigy, optimizers=('adamw',)),
  'dadapt': Method(_dadapt, optimizers=('adamw',)),
  'mechanic': Method(_mechanic),
  'momo': Method(_momo, optimizers=('momentum',)),
  'momo_adam': Method(_momo_adam, optimizers=('adamw',)),
  'dog': Method(_dog, optimizers=('sgd',)),
  'opt_list': Method(_opt_list, optimizers=('adamw',)),
}
BASELINES = tuple(SCHEDULES)


def digest(method: Method) -> str:
  """Eight letters that change with a method's row of the table and its code.

  That is its function with those of this file that it names, and where it names
  metalr_flax the parts of the package that the drop-in is made of.
  """
  found, todo = {}, [method.make.__name__]
  for name in todo:
    function = globals().get(name)
    if inspect.isfunction(function) and function.__module__ == __name__:
      found[name] = inspect.getsource(function)
      todo += {*re.findall(r'\w+', found[name])} - {*todo}
  text = ''.join(found[name] for name in sorted(found)) + str(method[1:])
  if 'metalr_flax' in text:
    package = pathlib.Path(metalr_flax.__file__).parent
    files = [*package.glob('tuning/*.py'), *package.glob('engine/*.py')]
    text += ''.join(path.read_text() for path in sorted(files))
  return hashlib.sha256(text.encode()).hexdigest()[:8]
