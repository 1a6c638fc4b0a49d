"""What results are compared with: written once, from definitions alone."""

import jax
import numpy as np
import optax


def central_difference(function, h=1e-3):
  """d function / dt at t = 0, of fourth order.

  Args:
    function: from a number to a tree of float64 arrays.
    h: the step.
  """
  over = lambda by: jax.tree.map(
    lambda up, down: up - down, function(by), function(-by)
  )
  return jax.tree.map(
    lambda near, far: (8 * near - far) / (12 * h), over(h), over(2 * h)
  )


def differences(function, point, h=1e-3):
  """The same along each scalar of a tree: results in a list of its leaves."""
  leaves, treedef = jax.tree.flatten(point)

  def along(place):
    def at(by):
      moved = [v + by * (i == place) for i, v in enumerate(leaves)]
      return function(jax.tree.unflatten(treedef, moved))

    return central_difference(at, h)

  return [along(place) for place in range(len(leaves))]


def plain_loop(tx, loss_fn, next_batch, *, steps):
  """A plain optax loop, as one scan.

  Args:
    tx: the optimizer.
    loss_fn: `(params, batch) -> loss`.
    next_batch: `data_state -> (data_state, batch)`.
    steps: how many updates.

  Returns:
    A function `(params, opt_state, data_state) -> (the three after it, losses
    before each update)`.
  """

  def body(carry, _):
    params, opt_state, data_state = carry
    data_state, batch = next_batch(data_state)
    loss, grads = jax.value_and_grad(loss_fn)(params, batch)
    updates, opt_state = tx.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
    return (params, opt_state, data_state), loss

  return jax.jit(lambda *carry: jax.lax.scan(body, carry, length=steps))


def after_updates(tx, params, opt_state, grads):
  """Updates by gradients that do not depend on the parameters.

  Args:
    tx: the optimizer.
    params: before the first update.
    opt_state: before the first update.
    grads: the gradient of each update.

  Returns:
    Parameters and the optimizer's state after the last one.
  """
  for g in grads:
    updates, opt_state = tx.update(g, opt_state, params)
    params = optax.apply_updates(params, updates)
  return params, opt_state


def running_average(first, values, share):
  """The average of a run's params, in float64.

  Args:
    first: before the first outer step.
    values: after each of them.
    share: config `average`.
  """
  x = np.asarray(first, np.float64)
  for t, z in enumerate(values, 1):
    half_life = max(share * t, min(10.0, t / 2))
    x = x + (1 - 2 ** (-1 / half_life)) * (np.asarray(z, np.float64) - x)
  return x
