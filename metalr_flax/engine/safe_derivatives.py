r"""Makes an optimizer's derivatives finite where its formula has none.

Adam's update divides by sqrt(v). Where a parameter's gradient has always been
exactly zero (a dead ReLU, a blank pixel, an unused embedding row), v = 0: the
update is 0 and so is its derivative, but the chain rule meets the infinite
slope of the square root and makes 0 * inf = NaN of it. The same happens in the
branch that a `where` does not take.

`safely` runs a function's own operations, unchanged, so its values are the same
bit for bit; only the derivative of an elementary operation at a point where it
is singular is taken as 0. This is right wherever what flows into that point
does not move, to first order, as is the case in all of these optimizers: v and
its derivative are zero together. No other NaN is touched: one that comes out
of a loss stays a NaN.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.custom_derivatives import SymbolicZero
import jax.numpy as jnp

from metalr_flax.engine import jaxprs

# The partial derivatives of each elementary operation that has a singularity:
# (output, inputs..., **params) -> one for each input, None where it is not
# differentiable in that input's dtype.
_Table = dict[str, Callable[..., tuple]]
_PARTIALS: _Table = {
  'sqrt': lambda y, x, **_: (0.5 / y,),
  # Not y / x: so written, x is not kept, and with it a copy of all params.
  'rsqrt': lambda y, x, **_: (-0.5 * y * y * y,),
  'cbrt': lambda y, x, **_: (y / x / 3,),
  'log': lambda y, x, **_: (1 / x,),
  'log1p': lambda y, x, **_: (1 / (1 + x),),
  'div': lambda y, a, b, **_: (1 / b, -y / b),
  'integer_pow': lambda z, x, *, y: (y * jax.lax.integer_pow(x, y - 1),),
  'pow': lambda z, x, y, **_: (_power_slope(x, y), z * jnp.log(x)),
}
# In reverse mode alone: what a `where` does not take gets a cotangent of 0, and
# 0 * inf is NaN. (RAdam multiplies by the root of a negative number where it
# then takes the other branch; forward mode never looks at that one.)
_REVERSE_PARTIALS: _Table = {**_PARTIALS, 'mul': lambda y, a, b, **_: (b, a)}


def safely(
  function: Callable[..., Any], *, for_reverse: bool = False
) -> Callable[..., Any]:
  """`function` with the same values, and derivatives that are finite.

  Args:
    function: of pytrees of arrays, e.g. an optimizer's `update`.
    for_reverse: whether reverse mode is to go through it.

  Returns:
    A function of the same arguments and result.
  """
  table = _REVERSE_PARTIALS if for_reverse else _PARTIALS

  def rule(eqn: Any, args: list[Any]) -> Sequence[Any] | None:
    slopes = table.get(eqn.primitive.name)
    if slopes is None:
      return None
    return [_safe_operation(eqn.primitive, eqn.params, args, slopes)]

  return jaxprs.with_rule(function, lambda: rule)


def _safe_operation(
  primitive: Any, params: dict[str, Any], args: list[Any], slopes: Callable
) -> Any:
  @jax.custom_jvp
  def operation(*args: Any) -> Any:
    return primitive.bind(*args, **params)

  def rule(primals: tuple, tangents: tuple) -> tuple[Any, Any]:
    out = primitive.bind(*primals, **params)
    partials = slopes(out, *primals, **params)
    terms = [
      jnp.where(jnp.isfinite(slope), slope, 0) * tangent
      for slope, tangent in zip(partials, tangents, strict=True)
      if not isinstance(tangent, SymbolicZero)
    ]
    return out, sum(terms[1:], terms[0])

  operation.defjvp(rule, symbolic_zeros=True)
  return operation(*args)


def _power_slope(x: jax.Array, y: jax.Array) -> jax.Array:
  exponent = jnp.asarray(y, x.dtype)
  return exponent * jax.lax.pow(x, exponent - 1)
