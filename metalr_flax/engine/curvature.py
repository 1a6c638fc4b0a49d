r"""How much of the Hessian a meta-gradient sees.

An update uses g = dL/dtheta; its derivative in eta passes through g by the
Hessian-vector product H (dtheta/deta), two thirds of the cost of an exact
meta-gradient. A curvature decides what stands in for it. Values never change:
loss and gradient are those of the whole batch in each case. The derivative of g
in a hyperparameter of the loss is no Hessian: 'none' has it, too, and
'subsample' has it on its part of the batch.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from metalr_flax.engine import losses
from metalr_flax.engine.records import GradFn, LossFn, PyTree

CURVATURES = ('exact', 'none', 'subsample')


def make(name: str, share: float) -> Callable[[LossFn], GradFn]:
  """The curvature of a name; `share` is what 'subsample' takes."""
  return {'exact': exact, 'none': none, 'subsample': subsample(share)}[name]


def exact(loss_fn: LossFn) -> GradFn:
  """The Hessian-vector product on the whole batch."""
  return jax.value_and_grad(losses.checked('loss_fn', loss_fn), has_aux=True)


def none(loss_fn: LossFn) -> GradFn:
  """No Hessian: g counts as a constant (RTHO's and IDBD's approximation).

  Franceschi et al. 2017, https://arxiv.org/abs/1703.01785.
  """

  def gradient(
    params: PyTree, model_state: PyTree, batch: PyTree, /, **given: Any
  ) -> Any:
    (loss, aux), grads = exact(loss_fn)(
      *jax.lax.stop_gradient((params, model_state)), batch, **given
    )
    return (_with_slope(loss, grads, params), aux), grads

  return gradient


def subsample(share: float) -> Callable[[LossFn], GradFn]:
  """The Hessian-vector product on the first `share` of the batch.

  Args:
    share: in (0, 1]; at least one example is taken. Batches are random, so
      their first rows are a random sample.
  """

  def make(loss_fn: LossFn) -> GradFn:
    without = none(loss_fn)

    def gradient(
      params: PyTree, model_state: PyTree, batch: PyTree, /, **given: Any
    ) -> Any:
      (loss, aux), grads = without(params, model_state, batch, **given)
      part = jax.tree.map(lambda a: _head(a, share), batch)
      sampled, _ = jax.grad(loss_fn, has_aux=True)(
        params, model_state, part, **given
      )
      return (loss, aux), _with_derivative_of(grads, sampled)

    return gradient

  return make


def _head(array: jax.Array, share: float) -> jax.Array:
  """The first rows of an array; a scalar, such as a weight, as it is."""
  if not jnp.ndim(array):
    return array
  return array[: max(1, round(share * jnp.shape(array)[0]))]


@jax.custom_jvp
def _with_slope(loss: jax.Array, grads: PyTree, params: PyTree) -> jax.Array:
  """`loss`, with g . dtheta for its derivative."""
  return loss


def _slope_rule(primals: tuple, tangents: tuple) -> tuple:
  loss, grads, _ = primals
  terms = [
    jnp.sum(g * t, dtype=jnp.promote_types(t.dtype, jnp.float32))
    for g, t in zip(
      jax.tree.leaves(grads), jax.tree.leaves(tangents[2]), strict=True
    )
    if not isinstance(t, jax.custom_derivatives.SymbolicZero)
  ]
  if not terms:
    return loss, jnp.zeros_like(loss)
  return loss, sum(terms[1:], terms[0]).astype(loss.dtype)


_with_slope.defjvp(_slope_rule, symbolic_zeros=True)


@jax.custom_jvp
def _with_derivative_of(values: PyTree, other: PyTree) -> PyTree:
  """`values`, with `other`'s derivative for theirs."""
  return values


def _derivative_rule(primals: tuple, tangents: tuple) -> tuple:
  return primals[0], tangents[1]


_with_derivative_of.defjvp(_derivative_rule)
