"""A `next` that is no pure function of its state is refused, no other is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
import users_code

from metalr_flax import errors
from metalr_flax.trainer import purity

KEY = jax.random.key(0)
BATCHES = iter(np.random.default_rng(0).standard_normal((100, 3)))
DATA = np.arange(12.0)


class Bare:
  """A task of one method."""

  def __init__(self, draw):
    self.next = lambda state: (state, draw(state))


def _own_gradient():
  """A function of its own, new at each trace."""

  @jax.custom_jvp
  def twice(x):
    return 2 * x

  twice.defjvp(lambda primals, tangents: (twice(*primals), *tangents))
  return twice


IMPURE = {
  'random array': lambda key: jnp.asarray(np.random.standard_normal(3)),
  'random scalar': lambda key: jnp.ones(3) * np.random.standard_normal(),
  'random slice': lambda key: jnp.asarray(DATA)[np.random.permutation(12)[:3]],
  'random rows': lambda key: jnp.asarray(DATA)[(i := np.random.randint(10**6)) % 9 : i % 9 + 3] + i,
  'an iterator': lambda key: next(BATCHES),
  'within jit': lambda key: jax.jit(lambda k: jnp.ones(3) * np.random.rand())(key),
  'a key of its own': lambda key: jax.random.normal(jax.random.key(np.random.randint(10**6)), (3,)),
}  # fmt: skip
PURE = {
  'the whole data': lambda key: jnp.asarray(DATA),
  'rows by key': lambda key: jnp.take(DATA, jax.random.randint(key, (3,), 0, 12)),
  'NaN': lambda key: jnp.asarray(DATA * np.nan),
  'a seed of its own': lambda key: np.random.default_rng(0).standard_normal(3),
  'a new function': lambda key: _own_gradient()(jax.random.normal(key)),
  'loops': lambda key: jax.lax.fori_loop(0, 3, lambda i, x: x + DATA[0], jax.random.normal(key)),
  'partial': lambda key: jax.jit(functools.partial(jax.random.normal, shape=(3,)))(key),
}  # fmt: skip
CONCRETE = {
  'NumPy of a key': lambda key: np.asarray(jax.random.normal(key)),
  'int': lambda key: DATA[int(jax.random.randint(key, (), 0, 9))],
  'if': lambda key: DATA if jax.random.uniform(key) > 0.5 else DATA[:3],
  'text': lambda key: 'a batch',
}


@pytest.mark.parametrize('name', IMPURE)
def test_one_batch_for_ever_is_refused(name):
  task = Bare(IMPURE[name])
  with pytest.raises(errors.ConfigError, match=r'next gives another batch'):
    purity.check(task, KEY, 'my:Task')
  task.next, task.next_meta = Bare(PURE['NaN']).next, task.next
  with pytest.raises(errors.ConfigError, match=r'next_meta gives another'):
    purity.check(task, KEY, 'my:Task')


@pytest.mark.parametrize('name', PURE)
def test_what_is_pure_is_not(name):
  purity.check(Bare(PURE[name]), KEY, 'my:Task')


@pytest.mark.parametrize('name', CONCRETE)
def test_what_cannot_be_compiled_is_sent_to_streams(name):
  with pytest.raises(errors.ConfigError, match=r'cannot be compiled .*Stream'):
    purity.check(Bare(CONCRETE[name]), KEY, 'my:Task')


def test_a_bug_keeps_its_traceback():
  with pytest.raises(TypeError, match='unsupported operand'):
    purity.check(Bare(lambda key: 1 + None), KEY, 'my:Task')


class Random(users_code.Plane):
  """Trained on one batch without a word, before there was this check."""

  def next(self, data_state):
    x = jnp.asarray(np.random.standard_normal((8, 2)), jnp.float32)
    return data_state, {'x': x, 'y': x @ self.slopes}


def test_a_run_is_refused_before_anything_is_written(tmp_path):
  fields = {
    'task__name': 'trainer.test_purity:Random',
    'task__kwargs': {'slopes': (2.0, -1.0)},
    'model__name': 'vector',
    'model__kwargs': {'size': 2},
  }
  with pytest.raises(errors.ConfigError, match='next gives another batch'):
    runs.run_here(tmp_path / 'new', **fields)
  assert not (tmp_path / 'new').exists()
