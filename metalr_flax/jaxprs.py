"""Runs a function operation by operation, some of them exchanged for others."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core

# (equation, arguments) -> its outputs, or None to leave it as it is.
Rule = Callable[[Any, list[Any]], Sequence[Any] | None]

_CALLS = ('jit', 'pjit', 'closed_call', 'core_call')


def with_rule(
  function: Callable[..., Any], make_rule: Callable[[], Rule]
) -> Callable[..., Any]:
  """`function`, its elementary operations passed through a rule.

  Args:
    function: of pytrees of arrays.
    make_rule: gives the rule, a new one for each call of the function.

  Returns:
    A function of the same arguments and result, which any transformation of
    JAX may go through.
  """

  def replayed(*args: Any) -> Any:
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
    leaves = _evaluate(
      closed.jaxpr, closed.consts, jax.tree.leaves(args), make_rule()
    )
    return jax.tree.unflatten(jax.tree.structure(shape), leaves)

  return replayed


def _evaluate(
  jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], rule: Rule
) -> list[Any]:
  values = dict(zip(jaxpr.constvars, consts, strict=True))
  values |= dict(zip(jaxpr.invars, args, strict=True))

  def read(atom: Any) -> Any:
    return atom.val if isinstance(atom, core.Literal) else values[atom]

  for eqn in jaxpr.eqns:
    # What surrounded the operation: the random generator's kind, a mesh, ...
    with eqn.ctx.manager:
      outs = _apply(eqn, [read(v) for v in eqn.invars], rule)
    values |= dict(zip(eqn.outvars, outs, strict=True))
  return [read(v) for v in jaxpr.outvars]


def _apply(eqn: Any, args: list[Any], rule: Rule) -> Sequence[Any]:
  outs = rule(eqn, args)
  if outs is not None:
    return outs
  name, params = eqn.primitive.name, eqn.params
  if name in _CALLS:
    inner = params.get('jaxpr', params.get('call_jaxpr'))
    return _evaluate(inner.jaxpr, inner.consts, args, rule)
  if name == 'cond':
    index, *operands = args
    branches = [
      lambda *xs, b=b: _evaluate(b.jaxpr, b.consts, xs, rule)
      for b in params['branches']
    ]
    return jax.lax.switch(index, branches, *operands)
  outs = eqn.primitive.bind(*args, **eqn.primitive.get_bind_params(params))
  return outs if eqn.primitive.multiple_results else [outs]
