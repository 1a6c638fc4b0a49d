"""Functions as the operations that they trace to.

One runs them with some operations exchanged for others, one finds which inputs
each output depends on.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core
import jax.numpy as jnp

# (equation, arguments) -> its outputs, or None to leave it as it is.
Rule = Callable[[Any, list[Any]], Sequence[Any] | None]

_FLAT = ('sign', 'floor', 'ceil', 'round')  # their derivative is 0
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


def find_reached(
  closed: core.ClosedJaxpr, marks: Sequence[frozenset]
) -> list[frozenset]:
  """The marks of the inputs that each output's value can move smoothly with.

  A path through a sign, a boolean or an integer counts for none (whether an
  update is finite decides on all groups alike). Of a loop every output counts
  as reached by every input.

  Args:
    closed: a traced function, as `jax.make_jaxpr` gives it.
    marks: a set for each input.

  Returns:
    A set for each output: the union of those that reach it.
  """
  return _spread(closed.jaxpr, marks)


def _spread(jaxpr: Any, marks: Sequence[frozenset]) -> list[frozenset]:
  reached = dict(zip(jaxpr.invars, marks, strict=True))

  def read(atom: Any) -> frozenset:
    known = not isinstance(atom, core.Literal)
    return reached.get(atom, frozenset()) if known else frozenset()

  for eqn in jaxpr.eqns:
    outs = _spread_through(eqn, [read(v) for v in eqn.invars])
    for var, found in zip(eqn.outvars, outs, strict=True):
      smooth = jnp.issubdtype(var.aval.dtype, jnp.inexact)
      reached[var] = found if smooth else frozenset()
  return [read(v) for v in jaxpr.outvars]


def _spread_through(eqn: Any, marks: list[frozenset]) -> list[frozenset]:
  name, params = eqn.primitive.name, eqn.params
  if name in _CALLS:
    inner = params.get('jaxpr', params.get('call_jaxpr'))
    return _spread(inner.jaxpr, marks)
  if name == 'cond':
    branches = [_spread(b.jaxpr, marks[1:]) for b in params['branches']]
    return [frozenset().union(*outs) for outs in zip(*branches, strict=True)]
  marks = [] if name in _FLAT else marks
  return [frozenset().union(*marks)] * len(eqn.outvars)


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


def depends_on_first(function: Callable[..., Any], *args: Any) -> bool:
  """Whether a result may depend on the first argument, by the trace alone.

  Args:
    function: of pytrees of arrays.
    *args: its arguments, for their shapes.

  Returns:
    False where no operation leads from it to the result.
  """
  jaxpr = jax.make_jaxpr(function)(*args).jaxpr
  reached = {*jaxpr.invars[: len(jax.tree.leaves(args[0]))]}
  for eqn in jaxpr.eqns:
    # A literal is no variable, and not hashable.
    if any(v in reached for v in eqn.invars if isinstance(v, core.Var)):
      reached |= {*eqn.outvars}
  return any(v in reached for v in jaxpr.outvars if isinstance(v, core.Var))
