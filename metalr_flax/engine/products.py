"""Matrix products of a gradient, arranged for the derivative that follows.

JAX's rule for a weight's gradient makes the product (delta^T x) and transposes
it. XLA folds the two, but not once a derivative is taken: that of the product
is a sum, (delta'^T x + delta^T x')^T, and the transpose of a sum is left to be
read column by column by whatever uses it. On a CPU this took a third of an
exact forward meta-gradient's time. So the product is made the right way round,
x^T delta, and its derivative in forward mode is one product where the operands
are small against it: x'^T delta + x^T delta' = [x'; x]^T [delta; delta'].
"""

from collections.abc import Callable, Sequence
import functools
import math
from typing import Any

import jax
from jax.custom_derivatives import SymbolicZero
import jax.numpy as jnp

from metalr_flax.engine import jaxprs


def arranged(function: Callable[..., Any]) -> Callable[..., Any]:
  """`function` with each (a b)^T computed as b^T a^T, which is the same.

  Args:
    function: of pytrees of arrays, e.g. a loss's gradient.

  Returns:
    A function of the same arguments and result, for forward mode alone: a
    joined product has no reverse rule.
  """
  return jaxprs.with_rule(function, _make_rule)


def _make_rule() -> jaxprs.Rule:
  # By the identity of the result, which is kept lest its identity be reused.
  products: dict[int, tuple[Any, Any, list[Any]]] = {}

  def rule(eqn: Any, args: list[Any]) -> Sequence[Any] | None:
    if eqn.primitive.name == 'dot_general':
      out = eqn.primitive.bind(*args, **eqn.params)
      products[id(out)] = out, eqn, args
      return [out]
    if eqn.primitive.name == 'transpose' and id(args[0]) in products:
      _, product, operands = products[id(args[0])]
      swap = eqn.params['permutation'] == _swap(product, operands)
      if swap and _is_symmetric(product.params):
        return [_swapped(product, operands)]
    return None

  return rule


def _swap(product: Any, operands: list[Any]) -> tuple[int, ...]:
  """The permutation that moves the right operand's axes before the left's."""
  (contracted, _), (batch, _) = product.params['dimension_numbers']
  first = len(batch)
  left = operands[0].ndim - first - len(contracted)
  axes = range(product.outvars[0].aval.ndim)
  return (*axes[:first], *axes[first + left :], *axes[first : first + left])


def _is_symmetric(params: dict[str, Any]) -> bool:
  """Whether a product has one precision for both operands and no sharding."""
  precision = params['precision']
  if isinstance(precision, tuple):
    precision = None if precision[0] == precision[1] else precision
  return precision is None and params['out_sharding'] is None


def _swapped(product: Any, operands: list[Any]) -> jax.Array:
  contracted, batch = product.params['dimension_numbers']
  dimensions = contracted[::-1], batch[::-1]
  multiply = functools.partial(
    product.primitive.bind,
    **{**product.params, 'dimension_numbers': dimensions},
  )
  return _joining(multiply, *dimensions[0])(*operands[::-1])


def _joining(
  multiply: Callable[..., jax.Array], left: Sequence[int], right: Sequence[int]
) -> Callable[..., jax.Array]:
  """A product whose two-term derivative is one product, where it is smaller.

  Args:
    multiply: the product, summing over the axes below.
    left: of the left operand.
    right: of the right operand.
  """
  operation = jax.custom_jvp(multiply)

  def rule(primals: tuple, tangents: tuple) -> tuple[Any, Any]:
    (a, b), (a_dot, b_dot) = primals, tangents
    out = multiply(a, b)
    if isinstance(a_dot, SymbolicZero):
      return out, multiply(a, b_dot)
    if isinstance(b_dot, SymbolicZero):
      return out, multiply(a_dot, b)
    if not left or 2 * (a.size + b.size) > math.prod(out.shape):
      return out, multiply(a_dot, b) + multiply(a, b_dot)
    lefts = jnp.concatenate([a_dot, a], axis=left[0])
    rights = jnp.concatenate([b, b_dot], axis=right[0])
    return out, multiply(lefts, rights)

  operation.defjvp(rule, symbolic_zeros=True)
  return operation
