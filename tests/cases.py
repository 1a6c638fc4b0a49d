"""One table of cases: optimizers, and what can be learned of each.

The problem is a small net with parameters whose gradient is exactly zero: the
weights of a blank pixel, those of a dead ReLU, and an unused embedding row.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from metalr_flax.engine import optimizers
from metalr_flax.engine import outer
from metalr_flax.engine import records


class Case(NamedTuple):
  name: str
  factory: object
  learned: dict  # name: (bijection, initial value)
  fixed: dict = {}  # noqa: RUF012
  clip_norm: float = 0.0
  multiplier: object = None  # an optax schedule


def clipped(learning_rate, max_norm):
  return optax.chain(
    optax.clip_by_global_norm(max_norm), optax.sgd(learning_rate, 0.9)
  )


def masked(learning_rate, weight_decay):
  decay = optax.masked(
    optax.add_decayed_weights(weight_decay),
    lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
  )
  return optax.chain(optax.scale_by_adam(), decay, optax.scale(-learning_rate))


# 0 at the first update, 1 at the third, and less again from the fourth on.
WARM_UP = optax.warmup_cosine_decay_schedule(0.0, 1.0, 2, 8, end_value=0.1)
RATE = {'learning_rate': ('log', 0.02)}
B1 = {'b1': ('one_minus_log', 0.9)}
B2 = {'b2': ('one_minus_log', 0.99)}
EPS = {'eps': ('log', 1e-2)}
DECAY = {'weight_decay': ('sigmoid', 0.1)}
CASES = [
  Case('sgd', 'sgd', {'learning_rate': ('sigmoid', 0.05)}),
  Case('momentum', 'sgd', {**RATE, 'momentum': ('sigmoid(0.5, 0.999)', 0.9)}),
  Case('nesterov', 'sgd', {**RATE, 'momentum': ('one_minus_log', 0.9)}, {'nesterov': True}),
  Case('rmsprop', 'rmsprop', {**RATE, 'decay': ('one_minus_log', 0.9), **EPS}),
  Case('rmsprop_momentum', 'rmsprop', {**RATE, 'momentum': ('sigmoid', 0.5)}),
  Case('rmsprop_centered', 'rmsprop', RATE, {'centered': True, 'eps': 1e-3}),
  Case('rmsprop_eps_outside', 'rmsprop', RATE, {'eps_in_sqrt': False}),
  Case('adam', 'adam', {**RATE, **B1, **B2, **EPS}),
  Case('adam_defaults', 'adam', RATE),
  Case('adamw', 'adamw', {**RATE, **B1, **B2, **DECAY}),
  Case('nadam', 'nadam', {**RATE, **B1}),
  Case('radam', 'radam', {**RATE, **B1}),
  Case('lamb', 'lamb', {**RATE, **DECAY}),
  Case('amsgrad', 'amsgrad', {**RATE, **B1}),
  Case('novograd', 'novograd', {**RATE, **DECAY}),
  Case('adabelief', 'adabelief', {**RATE, **B1}),
  Case('adagrad', 'adagrad', RATE),
  Case('adamax', 'adamax', {**RATE, **B1}),
  Case('yogi', 'yogi', {**RATE, **B1}),
  Case('lion', 'lion', {**RATE, **DECAY}),
  Case('adadelta', 'adadelta', {'learning_rate': ('log', 1.0), 'rho': ('one_minus_log', 0.9)}),
  Case('clip_by_global_norm', clipped, {**RATE, 'max_norm': ('log', 0.5)}),
  Case('masked', masked, {**RATE, **DECAY}),
  Case('surrounded_momentum', 'sgd', {**RATE, 'momentum': ('one_minus_log', 0.9)}, clip_norm=0.5, multiplier=WARM_UP),
  Case('surrounded_adamw', 'adamw', {**RATE, **B1, **DECAY}, clip_norm=0.3, multiplier=WARM_UP),
]  # fmt: skip
BY_NAME = {case.name: case for case in CASES}


def next_batch(key):
  key, x_key = jax.random.split(key)
  dtype = jnp.zeros(()).dtype
  x = jax.random.normal(x_key, (16, 4), dtype).at[:, 0].set(0.0)
  return key, {'x': x, 'y': jnp.sin(x @ jnp.arange(4.0).astype(dtype))}


def loss_fn(params, model_state, batch):
  h = batch['x'] @ params['w1'] + params['b1'][None]
  h = jnp.concatenate([jnp.tanh(h[:, :6]), jax.nn.relu(h[:, 6:])], axis=1)
  y = h @ params['w2'] + params['embedding'][1]
  return jnp.mean((y - batch['y']) ** 2), (model_state, {})


def params():
  keys = jax.random.split(jax.random.key(7), 2)
  dtype = jnp.zeros(()).dtype
  return {
    'w1': 0.5 * jax.random.normal(keys[0], (4, 8), dtype),
    'b1': jnp.zeros(8, dtype).at[6:].set(-100.0),  # two dead units
    'w2': 0.5 * jax.random.normal(keys[1], (8,), dtype),
    'embedding': jnp.ones(3, dtype),  # two unused rows
  }


def problem(case, unroll_length=5, labels=None):
  """The case's problem, and where its hyperparameters start."""
  bijections = {name: spec for name, (spec, _) in case.learned.items()}
  initial = {name: value for name, (_, value) in case.learned.items()}
  arguments = {**case.fixed, **initial}
  if labels is None:
    tx = optimizers.make_injected(case.factory, arguments, bijections)
  else:
    tx = optimizers.make_grouped(case.factory, arguments, bijections, labels)
    groups = sorted(set(jax.tree.leaves(labels)))
    initial = {n: dict.fromkeys(groups, v) for n, v in initial.items()}
  tx = optimizers.surrounded(
    tx, clip_norm=case.clip_norm, multiplier=case.multiplier
  )
  parts = records.Problem(
    loss_fn=loss_fn,
    meta_loss_fn=loss_fn,
    next_batch=next_batch,
    next_meta_batch=next_batch,
    tx=tx,
    bijections=bijections,
    unroll_length=unroll_length,
    labels=labels,
  )
  return parts, initial


def start(case, estimator, *, unroll_length=5, labels=None, meta_tx=None):
  """The case's problem and its state at step 0."""
  parts, initial = problem(case, unroll_length, labels)
  state = outer.init_state(
    parts,
    params=params(),
    model_state={},
    data_state=jax.random.key(3),
    hyperparams=initial,
    meta_tx=meta_tx or optax.adam(0.01),
    estimator=estimator,
  )
  return parts, state
