"""The text task: its parts, its windows, a user's own file."""

from pydoc_data import topics
import runpy

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs

from metalr_flax import errors
from metalr_flax import tasks
from metalr_flax.config import check
from metalr_flax.trainer import build
from metalr_flax.trainer import build_named

# Each part has letters of its own.
TRAIN, META, TEST = 'abcdefgh' * 100, 'xyz' * 34, '0123456789' * 10


@pytest.fixture
def path(tmp_path):
  path = tmp_path / 'text.txt'
  path.write_text(TRAIN + META[:100] + TEST)
  return str(path)


def _text(batch):
  """The T + 1 bytes of each window of a batch."""
  windows = np.concatenate(
    [batch['inputs'], np.asarray(batch['targets'])[:, -1:]], axis=1
  )
  # A window may cut a letter of several bytes: each byte is one here.
  return [
    bytes(window.astype(np.uint8)).decode('latin-1') for window in windows
  ]


def _texts(batches):
  return [window for batch in batches for window in _text(batch)]


def _draw(task, method, count, seed=0):
  data_state, batches = task.init(jax.random.key(seed)), []
  step = jax.jit(getattr(task, method))
  for _ in range(count):
    data_state, batch = step(data_state)
    batches.append(batch)
  return data_state, batches


def test_without_a_file_it_is_the_standard_librarys_english():
  task = tasks.Text()
  text = b''.join(
    bytes(np.asarray(p)) for p in (task.train, task.meta, task.test)
  )
  pages = [topics.topics[name] for name in sorted(topics.topics)]
  assert text == ''.join(pages).encode()
  assert len(text) > 300_000
  sizes = [len(part) / len(text) for part in (task.train, task.meta, task.test)]
  np.testing.assert_allclose(sizes, [0.8, 0.1, 0.1], atol=1e-4)


def test_a_users_file_is_cut_in_order(path):
  task = tasks.Text(path=path)
  parts = [
    bytes(np.asarray(p)).decode() for p in (task.train, task.meta, task.test)
  ]
  assert parts == [TRAIN, META[:100], TEST]


def test_bytes_beyond_ascii_are_kept(tmp_path):
  (tmp_path / 'text').write_text('grüße, κόσμε ' * 50, encoding='utf-8')
  task = tasks.Text(path=str(tmp_path / 'text'), sequence_length=8)
  assert int(task.train.max()) > 127


def test_targets_follow_inputs(path):
  task = tasks.Text(5, path=path, sequence_length=7)
  _, batches = _draw(task, 'next', 3)
  for batch in batches:
    for array in batch.values():
      assert array.shape == (5, 7)
      assert array.dtype == jnp.int32
    np.testing.assert_array_equal(
      batch['targets'][:, :-1], batch['inputs'][:, 1:]
    )
    assert all(window in TRAIN for window in _text(batch))


def test_windows_come_from_their_own_part(path):
  task = tasks.Text(16, path=path, sequence_length=20)
  for method, part in (('next', TRAIN), ('next_meta', META)):
    _, batches = _draw(task, method, 5)
    windows = _texts(batches)
    assert all(window in part for window in windows)
  windows = _texts(task.eval_batches())
  assert all(window in TEST for window in windows)


def test_every_window_of_a_part_can_be_drawn(tmp_path):
  path = tmp_path / 'text'
  path.write_text('abcdef' + 'xyz' + '012')
  task = tasks.Text(
    50, path=str(path), sequence_length=2, meta_fraction=1 / 4,
    test_fraction=1 / 4, eval_sequences=3,
  )  # fmt: skip
  _, (batch,) = _draw(task, 'next', 1)
  assert set(_text(batch)) == {'abc', 'bcd', 'cde', 'def'}
  _, (batch,) = _draw(task, 'next_meta', 1)
  assert set(_text(batch)) == {'xyz'}
  assert _texts(task.eval_batches()) == 3 * ['012']


def test_batches_are_a_function_of_the_key(path):
  task = tasks.Text(4, path=path)
  _, first = _draw(task, 'next', 3)
  _, again = _draw(task, 'next', 3)
  _, other = _draw(task, 'next', 3, seed=1)
  assert list(map(_text, first)) == list(map(_text, again))
  assert list(map(_text, first)) != list(map(_text, other))
  assert _text(first[0]) != _text(first[1])


def test_the_two_streams_do_not_move_each_other():
  task = tasks.Text(4)
  alone = {name: _draw(task, name, 3)[1] for name in ('next', 'next_meta')}
  data_state = task.init(jax.random.key(0))
  for i in range(3):
    for name, batches in alone.items():
      data_state, batch = getattr(task, name)(data_state)
      assert _text(batch) == _text(batches[i])
  assert len(set(_texts(alone['next_meta']))) == 12


def test_evaluation_windows_are_fixed_and_spread_over_the_part():
  task = tasks.Text(sequence_length=32, eval_sequences=150)
  batches = list(task.eval_batches())
  assert [len(batch['inputs']) for batch in batches] == [64, 64, 22]
  windows, again = (_texts(b) for b in (batches, task.eval_batches()))
  assert windows == again
  assert len(set(windows)) > 140
  test = bytes(np.asarray(task.test)).decode()
  assert test.startswith(windows[0])
  assert test.endswith(windows[-1])


class Constant(nnx.Module):
  """The same logits for every token."""

  def __init__(self, logits):
    self.logits = nnx.Variable(logits)

  def __call__(self, tokens):
    return jnp.broadcast_to(self.logits[...], (*tokens.shape, self.logits.size))


def test_loss_is_nats_a_byte(path):
  task = tasks.Text(4, path=path)
  _, (batch,) = _draw(task, 'next', 1)
  loss, metrics = task.loss(Constant(jnp.zeros(256)), batch)
  np.testing.assert_allclose(loss, np.log(256), rtol=1e-5)
  np.testing.assert_allclose(metrics['bits_per_byte'], 8, rtol=1e-5)
  assert float(metrics['accuracy']) == 0
  always_c = jnp.zeros(256).at[ord('c')].set(1.0)
  loss, metrics = task.loss(Constant(always_c), batch)
  share = np.mean(np.asarray(batch['targets']) == ord('c'))
  np.testing.assert_allclose(metrics['accuracy'], share, rtol=1e-6)
  np.testing.assert_allclose(loss, np.log(255 + np.e) - share, rtol=1e-5)


def test_a_model_without_all_bytes_is_refused(path):
  task = tasks.Text(4, path=path)
  _, (batch,) = _draw(task, 'next', 1)
  with pytest.raises(ValueError, match='vocab_size=256'):
    task.loss(Constant(jnp.zeros(128)), batch)


@pytest.mark.parametrize(
  ('kwargs', 'message'),
  [
    ({'path': 'no/such/file'}, 'no/such/file: cannot be read'),
    ({'unit': 'words'}, "task.kwargs.unit=words: must be 'bytes' or"),
    ({'sequence_length': 100}, 'its meta part has 100 bytes .* 101'),
    ({'sequence_length': 0}, 'sequence_length=0'),
    ({'sequence_length': 'long'}, 'sequence_length=long'),
    ({'eval_sequences': 0}, 'eval_sequences=0'),
    ({'meta_fraction': 0.0}, 'meta_fraction=0.0'),
    ({'meta_fraction': 0.5, 'test_fraction': 0.5}, 'sum to less than 1'),
  ],
)
def test_bad_arguments_are_refused_in_one_line(path, kwargs, message):
  with pytest.raises(ValueError, match=message) as caught:
    tasks.Text(**{'path': path, **kwargs})
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  ('content', 'message'),
  [(b'', 'train part has 0 bytes'), (b'\xff' * 999, 'is not UTF-8 text')],
)
def test_bad_files_are_config_errors(tmp_path, content, message):
  (tmp_path / 'file').write_bytes(content)
  config = _config()
  config['task']['path'] = str(tmp_path / 'file')
  with pytest.raises(errors.ConfigError, match=message) as caught:
    build_named.build_task(config['task'])
  assert str(tmp_path / 'file') in str(caught.value)
  assert '\n' not in str(caught.value)


@pytest.mark.thorough
def test_the_text_transformer_config_learns(path):
  config = _config()
  config['task'].update(path=path, batch_size=4)
  config['task']['kwargs']['eval_sequences'] = 4
  config['model']['kwargs']['num_layers'] = 1
  config['meta']['unroll_length'] = 2
  with build.randomness(config):
    experiment = build.build(config)
    step_fn = jax.jit(experiment.step_fn)
    state, losses, rates = experiment.init_state(), [], []
    for _ in range(8):
      state, metrics = step_fn(state)
      assert all(np.isfinite(value) for value in metrics.values())
      losses.append(float(metrics['train/loss']))
      rates.append(float(metrics['hyperparams/learning_rate']))
    evaluation = experiment.evaluate(state.params, state.model_state)
  assert losses[0] == pytest.approx(np.log(256), rel=0.05)
  assert losses[-1] < losses[0] - 0.5
  assert rates[-1] > rates[0] > config['inner']['learning_rate']
  assert np.isfinite(evaluation['loss'])


def _config():
  path = runs.CONFIGS / 'text_transformer.py'
  config = runpy.run_path(str(path))['get_config']()
  return check.resolve(config.to_dict())


# --- Characters, folders, and text back from a model.


def test_characters_are_those_of_the_train_part_and_one_for_others(tmp_path):
  (tmp_path / 'text').write_text('häß' * 100 + 'zh' * 10 + 'hö' * 10)
  task = tasks.Text(
    path=str(tmp_path / 'text'), unit='characters', sequence_length=8,
    meta_fraction=20 / 340, test_fraction=20 / 340,
  )  # fmt: skip
  assert task.vocab_size == 4  # h, ß, ä in their order, and all others
  assert np.asarray(task.train[:3]).tolist() == [0, 2, 1]
  assert np.asarray(task.meta[:2]).tolist() == [3, 0]
  assert np.asarray(task.test[:2]).tolist() == [0, 3]
  np.testing.assert_array_equal(task.encode('ßx'), [[1, 3]])
  assert task.encode('ßx').dtype == np.int32
  logits = np.eye(4)[task.encode('hßxä')]
  assert task.decode(logits) == ['hß\ufffdä']
  assert task.decode(logits[0]) == 'hß\ufffdä'


@pytest.mark.parametrize('text', ['grüße, κόσμε', '', 'a\r\nb\U0001f600'])
def test_bytes_come_back_as_text(text, path):
  task = tasks.Text(path=path)
  assert task.encode(text).shape == (1, len(text.encode()))
  assert task.decode(np.eye(300)[task.encode(text)]) == [text]


@pytest.mark.parametrize('unit', ['byte', 'character'])
def test_bits_are_a_units(unit, path):
  task = tasks.Text(4, path=path, unit=f'{unit}s')
  _, (batch,) = _draw(task, 'next', 1)
  logits = jnp.zeros(task.vocab_size)
  _, metrics = task.loss(Constant(logits), batch)
  expected = np.log2(256 if unit == 'byte' else 9)
  np.testing.assert_allclose(metrics[f'bits_per_{unit}'], expected, rtol=1e-5)
  assert f'(nats a {unit})' in task.loss_label
  with pytest.raises(ValueError, match=f'vocab_size={task.vocab_size}'):
    task.loss(Constant(logits[1:]), batch)


def test_the_files_of_a_folder_are_joined_by_name(tmp_path):
  for name, text in (('b.txt', 'x' * 50), ('a/1.md', 'é' * 50), ('.git', '?')):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
  task = tasks.Text(path=str(tmp_path), unit='characters', sequence_length=5)
  parts = task.train, task.meta, task.test
  assert [len(part) for part in parts] == [81, 10, 10]
  whole = np.concatenate(parts)
  text = task.decode(np.eye(task.vocab_size)[whole])
  assert text == 'é' * 50 + '\n' + 'x' * 50
