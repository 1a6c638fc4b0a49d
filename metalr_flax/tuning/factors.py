"""Learned hyperparameters: the user's values times a factor exp(eta)."""

from collections.abc import Callable, Iterable, Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metalr_flax.engine import optimizers

PyTree = Any
RATE = 'learning_rate'
DECAY = 'weight_decay'
KINDS = ('log', 'one_minus_log')
# What optax calls its decay rates.
DECAY_RATES = frozenset(
  {'b1', 'b2', 'b3', 'beta', 'decay', 'decay_rate', 'momentum', 'rho'}
)
LEAST = 1e-6  # of a decay rate, and of 1 minus it
# Of any other hyperparameter times, or over, what the user set.
SMALLEST, LARGEST = 1e-30, 1e30
# Where a learning rate starts at most. It grows e-fold in ten updates, so what
# the user set does not matter; from above nothing recovers as well.
START = 1e-5
# A weight decay that follows held-out data starts here, whatever the user set:
# from 1e-4 it comes when the network has memorised its data; from 1e-2 SGD's
# weights may go to 0 before it has found anything. Below LEAST it does nothing.
DECAY_START, LEAST_DECAY = 1e-3, 1e-4
# What rate times decay may take of a weight in one update. Above 2 the weights
# would grow; above 1 they change their sign.
MOST_DECAYED = 1.0
# Of the updates so far: what a decay rate may remember. Longer, and the slope
# speaks of a momentum that was never seen at work.
MEMORY_SHARE = 0.05
# By name; by group label below it where there are groups.
Values = dict[str, Any]


def with_kinds(
  learned: Mapping[str, str] | Iterable[str] | None,
) -> dict[str, str]:
  """Hyperparameters to learn, each with its kind.

  Args:
    learned: kinds by name; or names alone, of which those that optax gives to
      decay rates get 'one_minus_log' and all others 'log'; or None for the
      learning rate.

  Raises:
    ValueError: where it is neither, or there is no such kind.
  """
  if learned is None:
    learned = [RATE]
  listed = isinstance(learned, Iterable) and not isinstance(learned, str)
  names = list(learned) if listed else []
  if not listed or not all(isinstance(name, str) for name in names):
    raise ValueError(
      f"self_tuning: learned={learned!r}: must be names, e.g. ['learning_rate']"
      f", or kinds by name, e.g. {{'learning_rate': 'log'}}"
    )
  if not isinstance(learned, Mapping):
    return {name: KINDS[name in DECAY_RATES] for name in names}
  for name, kind in learned.items():
    if kind not in KINDS:
      raise ValueError(
        f'self_tuning: learned[{name!r}]={kind!r}: must be one of {KINDS}'
      )
  return dict(learned)


def find_base(
  opt_state: optax.OptState, learned: Mapping[str, str], labels: PyTree | None
) -> Values:
  """Each learned hyperparameter as the user set it, read from the state.

  Raises:
    ValueError: for one that is not injected, is a schedule, or is held in less
      than float32.
  """
  if labels is None:
    known = optimizers.find_hyperparams(opt_state)
    return {name: _base(name, kind, known) for name, kind in learned.items()}
  groups = {
    group: optimizers.find_hyperparams(opt_state, group)
    for group in sorted(set(jax.tree.leaves(labels)))
  }
  # A group without any is frozen.
  groups = {group: known for group, known in groups.items() if known}
  return {
    name: {group: _base(name, kind, known) for group, known in groups.items()}
    for name, kind in learned.items()
  }


def expand_labels(labels: Any, params: PyTree) -> PyTree | None:
  """The group of each parameter.

  Args:
    labels: names in a tree of params' structure or a prefix of it, a function
      from params to one, or None.
    params: of any structure; with `optax.lookahead` labels are those of the
      fast ones, and the slow ones have the same.
  """
  if labels is None or not jax.tree.leaves(params):
    return None
  if isinstance(params, optax.LookaheadParams):
    fast = expand_labels(labels, params.fast)
    return optax.LookaheadParams(fast=fast, slow=fast)
  names = labels(params) if callable(labels) else labels
  try:  # a label above several parameters is that of all of them
    return jax.tree.map(
      lambda name, below: jax.tree.map(lambda _: name, below), names, params
    )
  except ValueError as error:
    raise ValueError(
      f"self_tuning: labels: must be a tree of params' structure, or a "
      f'function that makes one of them ({str(error).splitlines()[0]})'
    ) from error


def named(opt_state: optax.OptState, base: Values) -> Values:
  """A state's hyperparameters, `<name>/<label>` where `base` has groups."""
  groups = next((list(v) for v in base.values() if isinstance(v, dict)), [])
  if not groups:
    return optimizers.find_hyperparams(opt_state)
  return {
    f'{name}/{group}': value
    for group in groups
    for name, value in optimizers.find_hyperparams(opt_state, group).items()
  }


def constrain(base: Values, eta: Values, learned: Mapping[str, str]) -> Values:
  """The user's values, each with its factor exp(eta)."""
  return {
    name: jax.tree.map(
      lambda b, e, kind=kind: _CONSTRAIN[kind](b, e).astype(b.dtype),
      base[name],
      eta[name],
    )
    for name, kind in learned.items()
  }


def begin_low(eta: Values, base: Values) -> Values:
  """Eta with the learning rate at `START`, or at the user's where lower."""
  if RATE not in eta:
    return eta
  return _with_one(
    RATE, lambda _, b: jnp.minimum(0.0, _eta_of(START, b)), eta, base
  )


def learns_decay(learned: Mapping[str, str]) -> bool:
  """Whether a weight decay is learned by its logarithm."""
  return learned.get(DECAY) == 'log'


def begin_decay(
  eta: Values, base: Values, learned: Mapping[str, str]
) -> Values:
  """Eta with the weight decay at `DECAY_START`, where it `learns_decay`."""
  if not learns_decay(learned):
    return eta
  return _with_one(DECAY, lambda _, b: _eta_of(DECAY_START, b), eta, base)


def keep_decay(eta: Values, base: Values, learned: Mapping[str, str]) -> Values:
  """Eta with the weight decay from `LEAST_DECAY` to `MOST_DECAYED` / rate."""
  if not learns_decay(learned):
    return eta
  eta = _with_one(
    DECAY, lambda e, b: jnp.maximum(e, _eta_of(LEAST_DECAY, b)), eta, base
  )
  if learned.get(RATE) != 'log':
    return eta

  def lower(e: jax.Array, b: jax.Array, rate: jax.Array) -> jax.Array:
    most = jnp.log(MOST_DECAYED) - jnp.log(rate) - jnp.log(b)
    return jnp.minimum(e, most).astype(e.dtype)

  rates = constrain(base, eta, learned)[RATE]
  return {**eta, DECAY: jax.tree.map(lower, eta[DECAY], base[DECAY], rates)}


def clip(
  eta: Values,
  base: Values,
  learned: Mapping[str, str],
  age: jax.typing.ArrayLike,
) -> Values:
  """Keeps eta where its hyperparameter can still move.

  Args:
    eta: logarithms of the factors.
    base: what the user set.
    learned: the kind of each.
    age: updates done, a scalar. A decay rate d remembers 1 / (1 - d) updates:
      at most a share of them, or as many as the user set if that is more.
  """

  def within(kind: str, e: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.clip(e, *_range(kind, b, age)).astype(e.dtype)

  return {
    name: jax.tree.map(functools.partial(within, kind), eta[name], base[name])
    for name, kind in learned.items()
  }


def of_name(name: str, eta: Values) -> Values:
  """Whether each eta is of that hyperparameter."""
  return {
    other: jax.tree.map(lambda _, same=other == name: same, values)
    for other, values in eta.items()
  }


def stack(values: Values) -> jax.Array:
  """The values as a row [n], which `steering` sees."""
  return jnp.stack([jnp.asarray(leaf) for leaf in jax.tree.leaves(values)])


def _with_one(
  name: str, function: Callable, eta: Values, base: Values
) -> Values:
  """Eta with a function of it and the user's value for one hyperparameter."""

  def of_both(e: jax.Array, b: jax.Array) -> jax.Array:
    return function(e, b.astype(jnp.float32)).astype(e.dtype)

  return {**eta, name: jax.tree.map(of_both, eta[name], base[name])}


def _eta_of(value: float, base: jax.Array) -> jax.Array:
  return jnp.log(value / base)


def _range(
  kind: str, base: jax.Array, age: jax.typing.ArrayLike
) -> tuple[jax.Array, jax.Array]:
  """The least and the largest eta."""
  base = base.astype(jnp.promote_types(base.dtype, jnp.float32))
  if kind == 'log':
    low, high = jnp.log(SMALLEST), jnp.log(LARGEST)
    size = jnp.log(base)
    return low - jnp.minimum(size, 0), high - jnp.maximum(size, 0)
  forgets = jnp.maximum(1 / (MEMORY_SHARE * age + 1), LEAST)
  return (
    jnp.log(jnp.minimum(1, forgets / (1 - base))),
    jnp.log1p(-LEAST) - jnp.log(1 - base),
  )


def _times(base: jax.Array, eta: jax.Array) -> jax.Array:
  return base * jnp.exp(eta)


def _decay(base: jax.Array, eta: jax.Array) -> jax.Array:
  return 1 - (1 - base) * jnp.exp(eta)


_CONSTRAIN = dict(zip(KINDS, (_times, _decay), strict=True))


def _base(name: str, kind: str, known: Mapping[str, Any]) -> jax.Array:
  """Reads and checks one of the user's values; a traced one is not compared."""
  if name not in known:
    raise ValueError(
      f'self_tuning: {name!r} is not among the injected hyperparameters '
      f'({", ".join(sorted(known)) or "none"}) or is a schedule; wrap the '
      f'optimizer in optax.inject_hyperparams with numbers, and give a '
      f'schedule as self_tuning(schedule=)'
    )
  value = jnp.array(known[name])
  if value.ndim or not jnp.issubdtype(value.dtype, jnp.floating):
    raise ValueError(
      f'self_tuning: {name!r} is {value.dtype}{list(value.shape)}: must be one '
      f'floating-point number; where the parameters are complex give '
      f'optax.inject_hyperparams(..., hyperparam_dtype=jnp.float32)'
    )
  if jnp.finfo(value.dtype).bits < 32:
    raise ValueError(
      f'self_tuning: {name!r} is held in {value.dtype} as the parameters are, '
      f'where a decay rate of 0.999 is 1; give '
      f'optax.inject_hyperparams(..., hyperparam_dtype=jnp.float32)'
    )
  known_now = not isinstance(value, jax.core.Tracer)
  low, high = (0, jnp.inf) if kind == 'log' else (-jnp.inf, 1)
  if known_now and not low < value < high:
    rule = 'above 0' if kind == 'log' else 'below 1'
    raise ValueError(
      f'self_tuning: {name}={value}: must be {rule} to be learned'
    )
  return value
