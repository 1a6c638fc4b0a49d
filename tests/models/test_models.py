"""The models: shapes, modes, and what each layer is there for."""

import dataclasses
import runpy

import chex
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
import tiers

from metalr_flax.config import check
from metalr_flax.models import cnn
from metalr_flax.models import functional
from metalr_flax.models import transformer
from metalr_flax.trainer import build


def _cnn(**kwargs):
  sizes = {'features': (4, 6), 'num_classes': 3, 'rngs': nnx.Rngs(0)}
  return cnn.CNN(**{**sizes, **kwargs})


def _transformer(**kwargs):
  sizes = {'vocab_size': 11, 'd_model': 8, 'num_heads': 2, 'num_layers': 1}
  return transformer.Transformer(**{**sizes, 'rngs': nnx.Rngs(0), **kwargs})


@nnx.jit
def _logits(model, batch):
  return model(batch)


def _images(*shape):
  return jax.random.uniform(jax.random.key(1), shape)


def _tokens(*shape):
  return jax.random.randint(jax.random.key(1), shape, 0, 11)


def _sum_of_squares(model, batch):
  logits = model(batch)
  return jnp.sum(logits**2), {'logits': logits}


def _in_mode(split, mode):
  """`batch -> (logits, model_state after)` of a model in one of its modes."""
  loss_fn = functional.make_loss_fn(getattr(split, mode), _sum_of_squares)
  jitted = jax.jit(loss_fn)

  def apply(batch, model_state=split.model_state):
    _, (model_state, metrics) = jitted(split.params, model_state, batch)
    return np.asarray(metrics['logits']), model_state

  return apply


MODELS = [
  pytest.param(_cnn, _images(5, 8, 8, 1), id='cnn'),
  pytest.param(_transformer, _tokens(5, 7), id='transformer'),
]


@pytest.mark.parametrize(
  ('norm', 'size'),
  [
    ('batch', (8, 8)),
    pytest.param('layer', (7, 5), marks=pytest.mark.thorough),
    pytest.param('layer', (1, 2), marks=pytest.mark.thorough),
  ],
)
def test_cnn_maps_images_of_any_size_to_logits(norm, size):
  model = _cnn(features=(4, 5, 6), in_channels=2, norm=norm)
  logits = _logits(model, _images(3, *size, 2))
  assert logits.shape == (3, 3)
  assert logits.dtype == jnp.float32
  assert np.isfinite(logits).all()


def test_transformer_maps_tokens_to_logits():
  logits = _logits(_transformer(), _tokens(2, 7))
  assert logits.shape == (2, 7, 11)
  assert logits.dtype == jnp.float32


@pytest.mark.parametrize(
  ('make', 'kwargs', 'message'),
  [
    (_cnn, {'norm': 'group'}, 'norm=group: must be one of batch, layer'),
    (_cnn, {'features': ()}, 'features'),
    (_cnn, {'dropout': 1.0}, 'dropout=1.0'),
    (_transformer, {'dropout': -0.1}, 'dropout=-0.1'),
    (_transformer, {'num_heads': 3}, 'multiple of 2 . num_heads = 6'),
    (_transformer, {'num_heads': 0}, 'num_heads >= 1'),
    (_transformer, {'num_heads': 8}, 'multiple of 2 . num_heads = 16'),
    (_transformer, {'remat': 'all'}, "remat='all': must be one of 'none'"),
  ],
)
def test_bad_arguments_are_refused_in_one_line(make, kwargs, message):
  with pytest.raises(ValueError, match=message) as caught:
    make(**kwargs)
  assert '\n' not in str(caught.value)


@pytest.mark.thorough
@pytest.mark.parametrize('size', [(8, 8), (5, 2)])
def test_convolve_is_xlas_convolution(size):
  x = _images(2, *size, 3)
  kernel = jax.random.normal(jax.random.key(2), (3, 3, 3, 4))
  expected = jax.lax.conv_general_dilated(
    x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  np.testing.assert_allclose(
    cnn.convolve(x, kernel), expected, rtol=1e-5, atol=1e-5
  )


def test_images_are_halved_between_convolutions():
  x = _images(1, 5, 4, 1)
  halved = cnn._halved(x)
  assert halved.shape == (1, 3, 2, 1)
  np.testing.assert_allclose(halved[0, 0, 1], x[0, :2, 2:].mean(), rtol=1e-6)
  # The odd edge has no zeros mixed in.
  np.testing.assert_allclose(halved[0, 2, 0], x[0, 4, :2].mean(), rtol=1e-6)


@pytest.mark.parametrize(('make', 'batch'), MODELS)
def test_dropout_is_on_in_training_alone(make, batch):
  split = functional.split(make(dropout=0.5))
  train = _in_mode(split, 'train')
  first, model_state = train(batch)
  again, _ = train(batch)
  later, _ = train(batch, model_state)
  np.testing.assert_array_equal(first, again)
  assert not np.allclose(first, later)
  without = dataclasses.replace(functional.split(make()), params=split.params)
  undropped, _ = _in_mode(without, 'train')(batch)
  for mode in ('meta', 'eval'):
    logits, unchanged = _in_mode(split, mode)(batch)
    np.testing.assert_array_equal(logits, undropped)
    assert _counts(unchanged) == _counts(split.model_state)


def _counts(model_state):
  """How many keys each dropout layer has drawn."""
  return [
    int(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(model_state)
    if 'count' in jax.tree_util.keystr(path)
  ]


@pytest.mark.parametrize('make', [_cnn, _transformer])
def test_there_are_no_dropout_layers_without_dropout(make):
  assert functional.split(make()).model_state == {}
  modules = [module for _, module in nnx.iter_modules(make(dropout=0.25))]
  rates = [m.rate for m in modules if isinstance(m, nnx.Dropout)]
  assert set(rates) == {0.25}


def test_batch_norm_updates_its_averages_in_training_alone():
  model = _cnn(norm='batch')
  split, batch = functional.split(model), _images(5, 8, 8, 1)
  _, model_state = _in_mode(split, 'train')(batch)
  averages = model_state['blocks'][0]['norm']
  pixels = np.asarray(model.blocks[0].conv(batch)).reshape(-1, 4)
  np.testing.assert_allclose(
    averages['mean'], 0.1 * pixels.mean(axis=0), rtol=1e-4, atol=1e-6
  )
  np.testing.assert_allclose(
    averages['var'], 0.9 + 0.1 * pixels.var(axis=0), rtol=1e-5
  )
  _, unchanged = _in_mode(split, 'eval')(batch, model_state)
  jax.tree.map(np.testing.assert_array_equal, unchanged, model_state)


@pytest.mark.parametrize(
  ('norm', 'mode', 'alone'),
  [
    ('batch', 'train', False),
    ('batch', 'meta', False),
    ('batch', 'eval', True),
    ('layer', 'train', True),
  ],
)
def test_whether_an_image_is_judged_alone(norm, mode, alone):
  split, batch = functional.split(_cnn(norm=norm)), _images(5, 8, 8, 1)
  together, _ = _in_mode(split, mode)(batch)
  fewer, _ = _in_mode(split, mode)(batch[:2])
  assert np.allclose(together[:2], fewer, atol=1e-5) == alone


def test_layer_norm_takes_an_images_statistics():
  model, batch = _cnn(norm='layer'), _images(5, 8, 8, 1)
  normed = np.asarray(model.blocks[0].norm(10 * model.blocks[0].conv(batch)))
  np.testing.assert_allclose(normed.mean(axis=(1, 2, 3)), 0, atol=1e-4)
  np.testing.assert_allclose(normed.std(axis=(1, 2, 3)), 1, rtol=1e-3)
  assert normed.std(axis=-1).min() < 0.9  # a pixel's own are others


@pytest.mark.parametrize('changed', [1, 4, 6])
def test_no_token_sees_a_later_one(changed):
  model, tokens = _transformer(num_layers=2), _tokens(2, 7)
  before = _logits(model, tokens)
  after = _logits(model, tokens.at[:, changed].add(1) % 11)
  same = np.isclose(before, after, rtol=0, atol=1e-6).all(axis=-1)
  assert same[:, :changed].all()
  assert not same[:, changed:].any()


def test_the_order_of_earlier_tokens_matters():
  # Without positions the last token would see a bag of tokens in one layer.
  model = _transformer()
  logits = _logits(model, jnp.array([[1, 2, 3, 4]]))[0, -1]
  permuted = _logits(model, jnp.array([[3, 1, 2, 4]]))[0, -1]
  assert np.abs(logits - permuted).max() > 1e-5


def test_rotated_products_depend_on_distance_alone():
  vectors = jax.random.normal(jax.random.key(0), (2, 1, 1, 3, 6))
  q, k = (
    transformer.rotate(jnp.broadcast_to(v, (1, 9, 3, 6)))[0] for v in vectors
  )
  products = np.einsum('ihf,jhf->hij', q, k)
  for distance in range(-8, 9):
    along = np.diagonal(products, distance, axis1=1, axis2=2)
    np.testing.assert_allclose(along, along[:, :1] + 0 * along, atol=1e-5)
  assert np.std(products, axis=(1, 2)).min() > 0.1
  np.testing.assert_array_equal(q[0], vectors[0, 0, 0])  # token 0 stays
  np.testing.assert_allclose(
    np.linalg.norm(q, axis=-1), np.linalg.norm(q[:1], axis=-1) + np.zeros((9, 1)),
    rtol=1e-5,
  )  # fmt: skip


def test_one_matrix_embeds_and_reads_out():
  model = _transformer()
  shapes = [p.shape for p in jax.tree.leaves(functional.split(model).params)]
  assert [shape for shape in shapes if 11 in shape] == [(11, 8)]
  tokens = jnp.array([[1, 2, 3]])
  before = _logits(model, tokens)
  model.embedding[...] = model.embedding[...].at[7].multiply(3.0)
  after = _logits(
    model, tokens
  )  # 7 is not among them: only its own logit triples
  np.testing.assert_allclose(after[..., 7], 3 * before[..., 7], rtol=1e-5)
  others = np.delete(np.arange(11), 7)
  np.testing.assert_array_equal(after[..., others], before[..., others])


def test_blocks_add_to_what_they_are_given():
  block, x = _transformer().blocks[0], _images(2, 7, 8)
  for layer in (block.attention.out, block.down):
    assert np.abs(_logits(block, x) - x).max() > 0.01
    layer.kernel[...] = jnp.zeros_like(layer.kernel[...])
  np.testing.assert_array_equal(_logits(block, x), x)


def test_the_perceptrons_width_is_four_times_the_models():
  assert _transformer().blocks[0].up.kernel.shape == (8, 32)
  assert _transformer(d_ff=5).blocks[0].up.kernel.shape == (8, 5)


@pytest.mark.thorough
@pytest.mark.parametrize(
  ('kwargs', 'make', 'batch', 'h', 'tolerance'),
  [
    pytest.param(
      {'norm': 'batch', 'features': (4,)},
      *MODELS[0].values,
      1e-6,
      1e-6,
      id='cnn',
    ),
    # dot_product_attention takes its softmax in float32, whatever it is given.
    pytest.param({}, *MODELS[1].values, 1e-5, 1e-3, id='transformer'),
  ],
)
def test_second_derivatives_in_float64(x64, kwargs, make, batch, h, tolerance):
  # A meta-gradient takes them.
  split = functional.split(make(**kwargs))
  loss_fn = functional.make_loss_fn(split.meta, _sum_of_squares)
  to_64 = lambda a: a.astype('float64')
  params, model_state = jax.tree.map(to_64, (split.params, split.model_state))
  batch = to_64(batch) if make is _cnn else batch
  gradient = jax.grad(lambda p: loss_fn(p, model_state, batch)[0])
  direction = jax.tree.map(lambda a: np.cos(1e3 * np.asarray(a) + 1), params)

  @jax.jit
  def products(params):
    def ahead(h):
      return gradient(jax.tree.map(lambda p, d: p + h * d, params, direction))

    numeric = jax.tree.map(
      lambda above, below: (above - below) / (2 * h), ahead(h), ahead(-h)
    )
    return jax.jvp(gradient, (params,), (direction,))[1], numeric

  exact, numeric = map(jax.tree.leaves, products(params))
  for product, difference in zip(exact, numeric, strict=True):
    assert product.dtype == jnp.float64
    atol = tolerance * np.abs(product).max()
    np.testing.assert_allclose(difference, product, rtol=0, atol=atol)


@pytest.mark.thorough
def test_the_digits_cnn_config_learns_with_dropout_and_batch_norm():
  config = _config()
  config['meta']['unroll_length'] = 2
  config['model']['kwargs']['features'] = [8]
  config['inner']['learning_rate'] = 3e-3
  with build.randomness(config):
    experiment = build.build(config)
    step_fn = jax.jit(experiment.step_fn)
    state = before = experiment.init_state()
    losses = []
    for _ in range(15):
      state, metrics = step_fn(state)
      assert all(np.isfinite(value) for value in metrics.values())
      losses.append(float(metrics['meta/loss']))
    evaluation = experiment.evaluate(state.params, state.model_state)
  assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.03
  assert metrics['hyperparams/learning_rate'] > 4e-3
  assert np.isfinite(evaluation['loss'])
  # Once an inner update; the outer loss leaves no trace.
  assert _counts(state.model_state) == [30]
  assert _counts(before.model_state) == [0]
  means = [s.model_state['blocks'][0]['norm']['mean'] for s in (before, state)]
  assert np.abs(means[1] - means[0]).min() > 0


def _config():
  path = runs.CONFIGS / 'digits_cnn.py'
  config = runpy.run_path(str(path))['get_config']()
  return check.resolve(config.to_dict())


def _derivatives(remat, tokens):
  """The gradient, its derivative along ones, and the loss's program."""
  model = _transformer(num_layers=3, dropout=0.5, remat=remat)
  parts = functional.split(model)

  def loss(params):
    loss_fn = functional.make_loss_fn(parts.train, _mean_square)
    return loss_fn(params, parts.model_state, tokens)[0]

  def both(params):
    ones = jax.tree.map(jnp.ones_like, params)
    return jax.jvp(jax.grad(loss), (params,), (ones,))

  return jax.jit(both)(parts.params), str(jax.make_jaxpr(loss)(parts.params))


def _mean_square(model, tokens):
  return jnp.mean(model(tokens) ** 2), {}


@tiers.parametrize('remat', ['dots', 'full'], [])
def test_what_is_computed_again_changes_no_derivative(remat):
  """Nor what dropout draws; each block is a part of its own."""
  tokens = _tokens(2, 7)
  (expected, plain), (given, program) = (
    _derivatives(kind, tokens) for kind in ('none', remat)
  )
  chex.assert_trees_all_close(given, expected, rtol=1e-4, atol=1e-6)
  names = ('checkpoint[', 'remat2[')
  assert [sum(map(p.count, names)) for p in (plain, program)] == [0, 3]
