"""Functions as the operations that they trace to (jaxprs).

`with_rule` runs a function with some operations exchanged for others, and
`with_outputs` with other outputs.
`find_reached` finds which inputs each output depends on; of a function's
derivative (`trace_derivative`) that is what each output moves with.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core
import jax.numpy as jnp

from metalr_flax.engine.records import PyTree

# (equation, arguments) -> its outputs, or None to leave it as it is.
Rule = Callable[[Any, list[Any]], Sequence[Any] | None]

_CALLS = ('jit', 'pjit', 'closed_call', 'core_call')
# That a dependence passes as it passes the function inside.
_TRANSPARENT = (
  *_CALLS, 'checkpoint', 'remat2', 'custom_jvp_call', 'custom_vjp_call'
)  # fmt: skip
_NOTHING: frozenset = frozenset()


def with_rule(
  function: Callable[..., Any], make_rule: Callable[[], Rule]
) -> Callable[..., Any]:
  """Returns `function` with some of its operations replaced by a rule.

  Args:
    function: of pytrees of arrays.
    make_rule: gives the rule, a new one for each call of the function.

  Returns:
    A function of the same arguments and result, which any transformation of
    JAX may go through.
  """

  def replayed(*args: Any, **kwargs: Any) -> Any:
    trace = jax.make_jaxpr(function, return_shape=True)
    closed, shape = trace(*args, **kwargs)
    leaves = _evaluate(
      closed.jaxpr, closed.consts, jax.tree.leaves((args, kwargs)), make_rule()
    )
    return jax.tree.unflatten(jax.tree.structure(shape), leaves)

  return replayed


def with_outputs(
  function: Callable[..., Any], replace: Callable[[int, Any], Any]
) -> Callable[..., Any]:
  """Returns `function` with outputs replaced before anything reads them.

  Args:
    function: of pytrees of arrays.
    replace: from a place among the leaves of the result and what is computed
      there, to what takes its place: of the same shape and dtype.

  Returns:
    A function of the same arguments and result. What it computes from one of
    its outputs, it computes from what took that one's place.
  """

  def replayed(*args: Any) -> Any:
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
    jaxpr = closed.jaxpr
    made = {var for eqn in jaxpr.eqns for var in eqn.outvars}
    places: dict[Any, int] = {}
    for place, atom in enumerate(jaxpr.outvars):
      if not isinstance(atom, core.Literal) and atom in made:
        places.setdefault(atom, place)
    change = lambda var, value: (
      replace(places[var], value) if var in places else value
    )
    leaves = _evaluate(
      jaxpr, closed.consts, jax.tree.leaves(args), lambda *_: None, change
    )
    done = {*places.values()}
    leaves = [
      leaf if place in done else replace(place, leaf)
      for place, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(jax.tree.structure(shape), leaves)

  return replayed


def trace_derivative(
  function: Callable[..., PyTree], values: PyTree, *fixed: PyTree
) -> core.ClosedJaxpr:
  """The derivative of a function in forward mode, traced and not computed.

  Args:
    function: `(values, *fixed) -> result`, of pytrees of arrays.
    values: what moves; for its shapes.
    *fixed: what does not; for its shapes.

  Returns:
    The trace of a function from tangents (one for each leaf of `values`), the
    leaves of `values` and those of `fixed` to a tangent for each leaf of the
    result; a leaf that is no float has a zero. Where JAX knows that a tangent
    is 0 (behind a sign, a rounding, a `stop_gradient`, an argument that is not
    used) it depends on none.
  """
  leaves, treedef = jax.tree.flatten(values)
  floats = [i for i, leaf in enumerate(leaves) if is_float(leaf)]

  def push(dots: list, leaves: list, fixed: tuple) -> list[jax.Array]:
    def of_floats(*some: Any) -> list[jax.Array]:
      given = dict(zip(floats, some, strict=True))
      moved = [given.get(i, leaf) for i, leaf in enumerate(leaves)]
      result = function(jax.tree.unflatten(treedef, moved), *fixed)
      out = jax.tree.leaves(result)
      return [leaf if is_float(leaf) else jnp.zeros(()) for leaf in out]

    pick = lambda them: tuple(them[i] for i in floats)
    return jax.jvp(of_floats, pick(leaves), pick(dots))[1]

  dots = [leaf if is_float(leaf) else jnp.zeros(()) for leaf in leaves]
  return jax.make_jaxpr(push)(dots, leaves, fixed)


def is_float(leaf: Any) -> bool:
  """Whether an array is of real or complex numbers."""
  dtype = leaf.dtype if hasattr(leaf, 'dtype') else jnp.result_type(leaf)
  return jnp.issubdtype(dtype, jnp.inexact)


def find_reached(
  closed: core.ClosedJaxpr, marks: Sequence[frozenset]
) -> list[frozenset]:
  """The marks of the inputs that each output depends on, by the trace alone.

  Args:
    closed: a traced function, as `jax.make_jaxpr` gives it.
    marks: a set for each input; for the first inputs alone where the others
      have none.

  Returns:
    A set for each output: the union of those that reach it.
  """
  rest = len(closed.jaxpr.invars) - len(marks)
  return _spread(closed.jaxpr, [*marks, *[_NOTHING] * rest])


def _spread(jaxpr: Any, marks: Sequence[frozenset]) -> list[frozenset]:
  reached = dict(zip(jaxpr.invars, marks, strict=True))

  def read(atom: Any) -> frozenset:
    known = not isinstance(atom, core.Literal)
    return reached.get(atom, _NOTHING) if known else _NOTHING

  for eqn in jaxpr.eqns:
    outs = _spread_through(eqn, [read(v) for v in eqn.invars])
    reached.update(zip(eqn.outvars, outs, strict=True))
  return [read(v) for v in jaxpr.outvars]


def _spread_through(eqn: Any, marks: list[frozenset]) -> list[frozenset]:
  name, params = eqn.primitive.name, eqn.params
  if not any(marks):
    return [_NOTHING] * len(eqn.outvars)
  if name in _TRANSPARENT:
    inner = params.get('jaxpr', params.get('call_jaxpr'))
    return _spread(getattr(inner, 'jaxpr', inner), marks)
  if name == 'cond':
    index, *operands = marks
    branches = [_spread(b.jaxpr, operands) for b in params['branches']]
    return [index.union(*outs) for outs in zip(*branches, strict=True)]
  if name == 'scan':
    return _spread_through_loop(
      params['jaxpr'].jaxpr, marks, params['num_consts'], params['num_carry']
    )
  if name == 'while':
    return _spread_through_while(params, marks)
  return [_union(marks)] * len(eqn.outvars)


def _spread_through_loop(
  body: Any, marks: list[frozenset], num_consts: int, num_carry: int
) -> list[frozenset]:
  """What reaches a loop's outputs after however many rounds."""
  end = num_consts + num_carry
  consts, carry, rows = marks[:num_consts], marks[num_consts:end], marks[end:]
  while True:
    outs = _spread(body, [*consts, *carry, *rows])
    after = [a | b for a, b in zip(carry, outs, strict=False)]
    if after == carry:
      return [*carry, *outs[num_carry:]]
    carry = after


def _spread_through_while(
  params: dict[str, Any], marks: list[frozenset]
) -> list[frozenset]:
  asked, given = params['cond_nconsts'], params['body_nconsts']
  body, carry = params['body_jaxpr'].jaxpr, len(marks) - asked - given
  outs = _spread_through_loop(body, marks[asked:], given, carry)
  (again,) = _spread(params['cond_jaxpr'].jaxpr, [*marks[:asked], *outs])
  return [again | out for out in outs]  # how often it runs decides on all


def _union(marks: Sequence[frozenset]) -> frozenset:
  return _NOTHING.union(*marks)


def _evaluate(
  jaxpr: Any,
  consts: Sequence[Any],
  args: Sequence[Any],
  rule: Rule,
  change: Callable[[Any, Any], Any] = lambda _, value: value,
) -> list[Any]:
  values = dict(zip(jaxpr.constvars, consts, strict=True))
  values |= dict(zip(jaxpr.invars, args, strict=True))

  def read(atom: Any) -> Any:
    return atom.val if isinstance(atom, core.Literal) else values[atom]

  for eqn in jaxpr.eqns:
    # What surrounded the operation: the random generator's kind, a mesh, ...
    with eqn.ctx.manager:
      outs = _apply(eqn, [read(v) for v in eqn.invars], rule)
    outs = [*map(change, eqn.outvars, outs)]
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
  marks = [frozenset({True}) for _ in jax.tree.leaves(args[0])]
  return any(find_reached(jax.make_jaxpr(function)(*args), marks))
