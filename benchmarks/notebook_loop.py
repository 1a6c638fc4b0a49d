"""The reference run as the notebook does it: a bare Python loop, nothing kept.

  python benchmarks/notebook_loop.py

Each sample is drawn in Python, each outer step is one jitted call. There are no
metrics, no checkpoints, no plots: it is what the trainer is measured against.
The algorithm is that of optax's meta-learning example
(https://optax.readthedocs.io/en/latest/_collections/examples/meta_learning.html).
"""

from collections.abc import Callable, Iterator
import time

import jax
import jax.numpy as jnp
import optax

NUM_OUTER_STEPS = 2000
UNROLL_LENGTH = 6


def samples(key: jax.Array) -> Iterator[tuple[jax.Array, jax.Array]]:
  """Endless (y, x) with y = 10 x + noise."""
  while True:
    key, x_key, noise_key = jax.random.split(key, 3)
    x = jax.random.uniform(x_key, minval=0.0, maxval=10.0)
    yield 10.0 * x + jax.random.normal(noise_key), x


def make_outer_step(
  tx: optax.GradientTransformation, meta_tx: optax.GradientTransformation
) -> Callable:
  """The jitted outer step over a list of K + 1 samples."""

  def loss(theta, sample):
    y, x = sample
    return optax.l2_loss(theta * x, y)

  def inner_step(theta, opt_state, eta, sample):
    grads = jax.grad(loss)(theta, sample)
    opt_state.hyperparams['learning_rate'] = jax.nn.sigmoid(eta)
    updates, opt_state = tx.update(grads, opt_state)
    return optax.apply_updates(theta, updates), opt_state

  def meta_loss(eta, theta, opt_state, window):
    *train, held_out = window
    for sample in train:
      theta, opt_state = inner_step(theta, opt_state, eta, sample)
    return loss(theta, held_out), (theta, opt_state)

  @jax.jit
  def outer_step(theta, opt_state, eta, meta_opt_state, window):
    gradient, (theta, opt_state) = jax.grad(meta_loss, has_aux=True)(
      eta, theta, opt_state, window
    )
    updates, meta_opt_state = meta_tx.update(gradient, meta_opt_state)
    eta = optax.apply_updates(eta, updates)
    return theta, opt_state, eta, meta_opt_state

  return outer_step


def start() -> tuple[Callable, tuple, Iterator]:
  """The outer step, its first carry and the samples after the printed five."""
  tx = optax.inject_hyperparams(optax.rmsprop)(learning_rate=0.1)
  meta_tx = optax.adam(learning_rate=0.03)
  theta = jax.random.normal(jax.random.PRNGKey(42))
  eta = -jnp.log(1.0 / jnp.float32(0.1) - 1.0)
  stream = samples(jax.random.PRNGKey(0))
  for _ in range(5):
    next(stream)
  carry = theta, tx.init(theta), eta, meta_tx.init(eta)
  return make_outer_step(tx, meta_tx), carry, stream


def loop(
  outer_step: Callable, carry: tuple, stream: Iterator, count: int
) -> tuple[tuple, list[jax.Array]]:
  """`count` outer steps; returns the carry and the learned rates."""
  rates = []
  for _ in range(count):
    window = [next(stream) for _ in range(UNROLL_LENGTH + 1)]
    carry = outer_step(*carry, window)
    rates.append(jax.nn.sigmoid(carry[2]))
  return carry, rates


def main() -> None:
  """Runs the loop and prints where it ended."""
  jax.config.update('jax_threefry_partitionable', False)
  begun = time.perf_counter()
  (theta, *_), rates = loop(*start(), NUM_OUTER_STEPS)
  jax.block_until_ready(theta)
  elapsed = time.perf_counter() - begun
  print(f'theta {theta:.4f}, learning rate {rates[-1]:.5f}, {elapsed:.2f} s')


if __name__ == '__main__':
  main()
