"""Which inputs move which outputs, read off a trace."""

import jax
import jax.numpy as jnp

from metalr_flax.engine import jaxprs


def reached(function, **arguments):
  """For each output the names of the inputs that it can move with."""
  closed = jaxprs.trace_derivative(lambda v: function(**v), arguments)
  marks = [frozenset({name}) for name in sorted(arguments)]
  return [set(found) for found in jaxprs.find_reached(closed, marks)]


def test_what_is_multiplied_is_reached_and_what_only_decides_is_not():
  def function(a, b, c):
    both = jnp.isfinite(a) & jnp.isfinite(b)
    return jnp.where(both, a, 0), a * jnp.sign(c), b * a.astype(int), a + c

  found = reached(function, a=1.0, b=2.0, c=3.0)
  assert found == [{'a'}, {'a'}, {'b'}, {'a', 'c'}]


def test_calls_and_branches_are_looked_into_and_loops_join():
  def function(a, b):
    swap = lambda pair: pair[::-1]
    called = jax.jit(swap)((a, b))
    branched = jax.lax.cond(a > 0, swap, lambda pair: (pair[1], 0.0), (a, b))
    looped, _ = jax.lax.scan(lambda c, _: (swap(c), None), (a, b), length=2)
    return called, branched, looped

  both = {'a', 'b'}
  found = reached(function, a=1.0, b=2.0)
  assert found == [{'b'}, {'a'}, {'b'}, {'a'}, both, both]


def test_what_is_computed_from_an_output_reads_what_took_its_place():
  def function(x):
    doubled = 2 * x
    return doubled, doubled + 1, x, doubled, 7.0

  replace = lambda place, value: value if place in (1, 3) else value + 100
  replaced = jaxprs.with_outputs(function, replace)
  assert replaced(jnp.float32(1)) == (102, 103, 101, 102, 107)
  assert jax.jit(jaxprs.with_outputs(function, lambda _, v: v))(1.0) == (
    2, 3, 1, 2, 7,
  )  # fmt: skip
