"""Models that compute in bfloat16 with weights in float32."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
import tiers

from metalr_flax.engine import jaxprs
from metalr_flax.models import cnn
from metalr_flax.models import functional
from metalr_flax.models import mlp
from metalr_flax.models import transformer
from metalr_flax.trainer import build

IMAGES = jax.random.uniform(jax.random.key(1), (5, 8, 8, 1))
TOKENS = jax.random.randint(jax.random.key(1), (5, 7), 0, 11)
MODELS = {
  'mlp': (functools.partial(mlp.MLP, features=(6, 16, 3)), IMAGES[:, 0, :6, 0]),
  'cnn': (functools.partial(cnn.CNN, features=(4, 6), num_classes=3), IMAGES),
  'cnn_batch': (
    functools.partial(cnn.CNN, features=(4, 6), norm='batch', dropout=0.1),
    IMAGES,
  ),
  'transformer': (
    functools.partial(
      transformer.Transformer,
      vocab_size=11,
      d_model=8,
      num_heads=2,
      num_layers=1,
    ),
    TOKENS,
  ),
}


def _loss_of(name, dtype):
  make, batch = MODELS[name]
  split = functional.split(make(dtype=dtype, rngs=nnx.Rngs(0)))

  def loss(model, batch):
    logits = model(batch)
    return jnp.mean(logits**2), {'logits': logits}

  loss_fn = functional.make_loss_fn(split.meta, loss)
  return loss_fn, (split.params, split.model_state, batch)


def _products(jaxpr):
  """The operands' dtypes of every matrix product in a trace."""
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'dot_general':
      yield {str(v.aval.dtype) for v in eqn.invars}
    for value in eqn.params.values():
      inner = getattr(value, 'jaxpr', value)
      if hasattr(inner, 'eqns'):
        yield from _products(inner)


@tiers.parametrize('name', MODELS, ['mlp'])
def test_products_are_in_bfloat16_and_what_is_kept_is_not(name):
  loss_fn, arguments = _loss_of(name, 'bfloat16')
  traced, kept = jax.make_jaxpr(loss_fn, return_shape=True)(*arguments)
  products = [*_products(traced.jaxpr)]
  assert products
  assert all(dtypes == {'bfloat16'} for dtypes in products), products
  leaves = jax.tree.leaves((arguments[:2], kept))
  floats = {leaf.dtype for leaf in leaves if jaxprs.is_float(leaf)}
  assert floats == {jnp.dtype('float32')}


@tiers.parametrize('name', MODELS, ['mlp'])
def test_logits_and_gradients_are_near_those_of_float32(name):
  (loss_fn, arguments), (plain, _) = (
    _loss_of(name, dtype) for dtype in ('bfloat16', None)
  )
  derive = lambda f: jax.jit(jax.value_and_grad(f, has_aux=True))(*arguments)
  (_, (_, metrics)), grads = derive(loss_fn)
  (_, (_, expected)), slopes = derive(plain)
  np.testing.assert_allclose(
    metrics['logits'], expected['logits'], rtol=0.05, atol=0.05
  )
  for found, slope in zip(*map(jax.tree.leaves, (grads, slopes)), strict=True):
    assert found.dtype == jnp.float32
    error = jnp.linalg.norm(found - slope)
    assert error <= 0.1 * jnp.linalg.norm(slope) + 1e-3


def test_positions_are_told_apart_beyond_256():
  x = jax.random.normal(jax.random.key(0), (1, 1000, 1, 8))
  half = transformer.rotate(x.astype(jnp.bfloat16))
  assert half.dtype == jnp.bfloat16
  np.testing.assert_allclose(
    half.astype(jnp.float32), transformer.rotate(x), atol=0.04
  )


@tiers.parametrize('name', ['mlp', 'cnn', 'transformer'], ['mlp'])
def test_another_dtype_is_refused(name):
  make, _ = MODELS[name]
  with pytest.raises(ValueError, match='dtype=float16: must be one of float32'):
    make(dtype='float16', rngs=nnx.Rngs(0))


def _experiment(dtype, **fields):
  argv = runs.command(
    'unused',
    'digits_mlp',
    model__kwargs={'features': (64, 16, 10), 'dtype': dtype},
    inner__learning_rate=1e-3,
    meta__learned={'learning_rate': 'log'},
    meta__unroll_length=2,
    **fields,
  )
  return build.build(runs.flags.parse('m', argv, '').config)


@pytest.mark.thorough
def test_all_of_a_state_is_float32():
  experiment = _experiment('bfloat16', meta__discount=0.9, average=0.1)
  state = experiment.init_state()
  after = jax.eval_shape(experiment.step_fn, state)
  for leaf in jax.tree.leaves((state, after)):
    assert not jaxprs.is_float(leaf) or leaf.dtype == jnp.float32
  assert state.tangents
  assert state.average


@pytest.mark.thorough
@pytest.mark.parametrize('estimator', ['forward', 'reverse'])
def test_meta_gradients_are_near_those_of_float32(estimator):
  found = []
  for dtype in ('bfloat16', 'float32'):
    experiment = _experiment(dtype, meta__estimator=estimator)
    run = lambda s, e=experiment: e.estimator(s.eta, s.carry, e.problem)[0]
    found.append(jax.jit(run)(experiment.init_state())['learning_rate'])
  np.testing.assert_allclose(*found, rtol=0.1)


@pytest.mark.thorough
def test_a_run_in_bfloat16_trains(tmp_path):
  kwargs = {'features': (64, 128, 10), 'dtype': 'bfloat16'}
  fields = {'num_outer_steps': 100, 'eval_every': 100, 'model__kwargs': kwargs}
  runs.run_here(tmp_path, 'digits_mlp', **fields)
  assert float(runs.rows(tmp_path)[-1]['eval/accuracy']) > 0.9
