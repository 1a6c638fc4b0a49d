"""A user's own model and task, as they would write them."""

import sys

from flax import nnx
import jax
import jax.numpy as jnp
import optax

from metalr_flax import tasks


class Net(nnx.Module):
  """BatchNorm and Dropout, a list of modules and a buffer of its own."""

  def __init__(self, width, *, widths=(3,), rngs):
    self.hidden = nnx.Linear(2, width, rngs=rngs)
    self.norm = nnx.BatchNorm(width, rngs=rngs)
    self.dropout = nnx.Dropout(0.1, rngs=rngs)
    self.heads = nnx.List([nnx.Linear(width, 1, rngs=rngs) for _ in widths])
    self.widths = widths
    self.calls = nnx.Variable(jnp.zeros((), jnp.int32))

  def __call__(self, x):
    self.calls[...] = self.calls[...] + 1
    h = self.dropout(jax.nn.relu(self.norm(self.hidden(x))))
    return sum(head(h) for head in self.heads)[..., 0]


class Named(nnx.Module):
  """A weight of a name that the user chooses, beside others."""

  def __init__(self, name, shape=(2,), *, rngs):
    self.parts = nnx.Dict(
      {
        name: nnx.Param(jnp.ones(shape)),
        'a': nnx.Dict({'b': nnx.Param(jnp.full(2, 3.0))}),
      }
    )

  def __call__(self, x):
    return x @ self.parts['a']['b'][...]


class Weak(nnx.Module):
  """Variables made of Python numbers, which JAX promotes otherwise."""

  def __init__(self, *, rngs):
    self.scale = nnx.Param(jnp.asarray(0.3))
    self.shift = nnx.Variable(jnp.asarray(0.3))
    self.mask = nnx.Variable(jnp.array([0.0, -jnp.inf]))
    self.few = nnx.Variable(jnp.ones(3, jnp.int4))

  def __call__(self, x):
    half = jnp.bfloat16(1.1)
    y = x[..., 0] + x[..., 1]
    return y * (self.scale[...] * half) + self.shift[...] * half


class Half(nnx.Module):
  """Weights in bfloat16."""

  def __init__(self, *, rngs):
    self.layer = nnx.Linear(2, 1, param_dtype=jnp.bfloat16, rngs=rngs)

  def __call__(self, x):
    return self.layer(x.astype(jnp.bfloat16))[..., 0].astype(jnp.float32)


class Annotated(nnx.Module):
  """Says itself how its weights are split over devices."""

  def __init__(self, *, axes=(None, 'model'), width=64, rngs):
    split = lambda *axes: nnx.with_partitioning(
      nnx.initializers.lecun_normal(), axes
    )
    self.up = nnx.Linear(2, width, kernel_init=split(*axes), rngs=rngs)
    self.down = nnx.Linear(width, 1, kernel_init=split(*axes[::-1]), rngs=rngs)

  def __call__(self, x):
    return self.down(jnp.tanh(self.up(x)))[..., 0]


class Plane(tasks.Task):
  """y = a . x + noise."""

  def __init__(self, batch_size, *, slopes):
    self.batch_size = batch_size
    self.slopes = jnp.asarray(slopes)

  def init(self, rng):
    return {'rng': rng, 'drawn': jnp.zeros((), jnp.int32)}

  def next(self, data_state):
    rng, key = jax.random.split(data_state['rng'])
    x = jax.random.normal(key, (self.batch_size, 2))
    batch = {'x': x, 'y': x @ self.slopes}
    return {'rng': rng, 'drawn': data_state['drawn'] + 1}, batch

  def loss(self, model, batch):
    error = model(batch['x']) - batch['y']
    return jnp.mean(error**2), {'largest': jnp.max(jnp.abs(error))}

  def eval_batches(self):
    x = jnp.stack([jnp.linspace(-1, 1, 30), jnp.linspace(1, 0, 30)], axis=-1)
    whole = {'x': x, 'y': x @ self.slopes}
    return [
      {k: v[:20] for k, v in whole.items()},
      {k: v[20:] for k, v in whole.items()},
    ]


class Apart(Plane):
  """With batches of its own for the outer loss."""

  def next_meta(self, data_state):
    return self.next(data_state)


class Bare:
  """Duck-typed: no base class, no batch_size, the three methods alone."""

  def init(self, rng):
    return rng

  def next(self, data_state):
    rng, key = jax.random.split(data_state)
    x = jax.random.normal(key, (8, 2))
    return rng, {'x': x, 'y': jnp.sum(x, axis=-1)}

  def loss(self, model, batch):
    return jnp.mean((model(batch['x']) - batch['y']) ** 2), {}


class Exits(Plane):
  """Its constructor does not find what it needs."""

  def __init__(self, batch_size):
    sys.exit(0)


class ExitsInLoss(Plane):
  """Only its loss does."""

  def __init__(self, batch_size):
    super().__init__(batch_size, slopes=(1.0, 2.0))

  def loss(self, model, batch):
    sys.exit(0)


class ExitingModel(nnx.Module):
  """A generator in its constructor was closed."""

  def __init__(self, *, rngs):
    raise GeneratorExit


class Wordless(nnx.Module):
  """Refuses its arguments with an exception that cannot be shown."""

  def __init__(self, *, rngs):
    class WordlessError(ValueError):
      def __str__(self):
        raise RuntimeError('no words')

    raise WordlessError


def exiting_labels(params):
  sys.exit()


class Penalized(tasks.Task):
  """Its loss has arguments of other names, and one named as AdamW's."""

  def init(self, rng):
    return rng

  def next(self, data_state):
    data_state, key = jax.random.split(data_state)
    return data_state, jax.random.normal(key, (8, 2))

  def loss(self, net, points, *, weight_decay=0.0, name=1.0):
    weights = jnp.sum(net.hidden.kernel[...] ** 2)
    error = jnp.mean((net(points) - points[:, 0]) ** 2)
    return name * error + weight_decay * weights, {}


class BadLoss(Plane):
  """Its loss is what the test asks for."""

  def __init__(self, batch_size, *, kind):
    super().__init__(batch_size, slopes=(2.0, -1.0))
    self.kind = kind

  def loss(self, model, batch):
    loss, metrics = super().loss(model, batch)
    return {
      'alone': loss,
      'vector': (loss * jnp.ones(3), metrics),
      'float': (0.5, metrics),
      'constant': (jnp.mean(batch['y']), metrics),
      'metrics': (loss, {'each': jnp.ones(3)}),
    }[self.kind]


class NotAModule:
  """Refused: a model is an nnx.Module."""

  def __init__(self, *, rngs):
    pass


def clipped_adam(learning_rate, max_norm=1.0):
  """An inner optimizer of the user's own, with something new to learn."""
  return optax.chain(
    optax.clip_by_global_norm(max_norm), optax.adam(learning_rate)
  )


def deaf(learning_rate):
  """An optimizer that ignores its learning rate."""
  del learning_rate
  return optax.sgd(0.1)


def head_and_body(params):
  """A label function: the last layers' parameters, and the rest."""
  return {
    name: jax.tree.map(lambda _, n=name: 'head' if n == 'heads' else 'body', p)
    for name, p in params.items()
  }


def not_labels(params):
  return {'all': 1}


def ramp(length=10):
  """A schedule of a user's own."""
  return lambda count: jnp.minimum(count / length, 1.0)


def no_schedule():
  return 0.5


def two_at_once():
  return lambda count: jnp.stack([count, count])


def steps_down(length=10):
  return lambda count: 1.0 - count / length


def looks_at_its_count():
  return lambda count: 1.0 if count > 3 else 0.5


def none_at_all():
  return lambda count: 0.0 * count
