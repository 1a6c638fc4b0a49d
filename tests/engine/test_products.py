"""A gradient's products, arranged for the derivative: same values, same slope."""

import jax
import jax.numpy as jnp
import tiers

from metalr_flax.engine import products

LOSSES = {
  'matrix': lambda w, x: jnp.sum(jnp.tanh(x @ w) ** 2),
  'two products': lambda w, x: jnp.sum(jnp.tanh(jnp.tanh(x @ w) @ w.T)),
  'sequence': lambda w, x: jnp.sum(
    jnp.tanh(jnp.einsum('btd,de->bte', x[:, None] * jnp.ones((1, 3, 1)), w))
  ),
  'heads': lambda w, x: jnp.sum(
    jnp.tanh(jnp.einsum('bhd,hde->bhe', jnp.stack([x, -x], 1),
                        jnp.stack([w, w * w])))
  ),
  'jitted': lambda w, x: jnp.sum(jax.jit(lambda w: jnp.tanh(x @ w))(w) ** 2),
  'relu': lambda w, x: jnp.sum(jax.nn.relu(x @ w) @ jax.nn.relu(w.T)),
  'outer product': lambda w, x: jnp.sum(
    jnp.tanh(jax.lax.dot_general(w[0], x[0], (((), ()), ((), ()))).T)
  ),
}  # fmt: skip


# Small operands are joined, large ones are not.
@tiers.parametrize('rows', [2, 50], [2])
@tiers.parametrize('name', LOSSES, ['two products', 'sequence', 'jitted'])
def test_values_and_derivatives_stay(name, rows):
  keys = jax.random.split(jax.random.key(0), 3)
  w, w_dot = jax.random.normal(keys[0], (2, 16, 24))
  x = jax.random.normal(keys[1], (rows, 16))
  plain = jax.grad(LOSSES[name])
  arranged = products.arranged(plain)
  wanted = jax.jvp(lambda w: plain(w, x), (w,), (w_dot,))
  got = jax.jvp(lambda w: arranged(w, x), (w,), (w_dot,))
  for a, b in zip(got, wanted, strict=True):
    assert jnp.allclose(a, b, rtol=1e-4, atol=1e-4 * jnp.max(jnp.abs(b)))


def test_what_surrounds_an_operation_stays():
  """The random generator's kind, for one, is not a part of the operation."""

  def loss(w, x):
    with jax.threefry_partitionable(False):
      noise = jax.random.normal(jax.random.key(0), x.shape)
    return jnp.sum((noise @ w) ** 2)

  w, x = jnp.ones((3, 2)), jnp.ones((5, 3))
  arranged = products.arranged(jax.value_and_grad(loss))
  assert arranged(w, x)[0] == loss(w, x)
  assert jax.jit(arranged)(w, x)[0] == jax.jit(loss)(w, x)


def _count_products(function, *args):
  text = jax.jit(function).lower(*args).compile().as_text()
  return text.count(' dot(')


def test_two_products_of_small_operands_become_one():
  def loss(params, x):
    return jnp.sum(jnp.tanh(jnp.tanh(x @ params['a']) @ params['b']) ** 2)

  def push(grad):
    return lambda w, x: jax.jvp(lambda w: grad(w, x), (w,), (w,))

  weights = {'a': jnp.ones((64, 64)), 'b': jnp.ones((64, 64))}
  plain = _count_products(push(jax.grad(loss)), weights, jnp.ones((4, 64)))
  few = push(products.arranged(jax.grad(loss)))
  # The first layer's input does not move: one product as it is.
  assert _count_products(few, weights, jnp.ones((4, 64))) == plain - 1
  assert _count_products(few, weights, jnp.ones((50, 64))) == plain
