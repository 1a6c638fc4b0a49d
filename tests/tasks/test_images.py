"""A user's images: folders and arrays, standardised, and classes by name."""

import sys

import jax
import numpy as np
from PIL import Image
import pytest
import runs

import metalr_flax
from metalr_flax import errors
from metalr_flax import tasks

CLASSES = {'dark': 40, 'light': 200, 'mid': 120}


def pixels(name, seed, shape=(6, 8, 3)):
  noise = np.random.default_rng(seed).integers(-30, 30, shape)
  return (CLASSES[name] + noise).astype(np.uint8)


def save(folder, count=20, seed=0, shape=(6, 8, 3)):
  """Images of three classes that differ in brightness."""
  for number, name in enumerate(CLASSES):
    (folder / name).mkdir(parents=True)
    for i in range(count):
      array = pixels(name, [seed, number, i], shape)
      Image.fromarray(array.squeeze()).save(folder / name / f'{i:02}.png')
  return str(folder)


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  return save(tmp_path_factory.mktemp('images') / 'd')


@pytest.fixture(scope='module')
def images(path):
  return tasks.Images(8, path=path)


def rows(part):
  return [image.tobytes() for image in np.asarray(part['image'])]


def test_a_folder_is_split_with_each_class_in_every_part(images):
  parts = images.train, images.meta, images.test
  assert [len(part['label']) for part in parts] == [39, 9, 12]
  for part in parts:
    assert part['image'].shape[1:] == (6, 8, 3)
    assert part['image'].dtype == np.float32
    shares = np.bincount(part['label']) / len(part['label'])
    np.testing.assert_allclose(shares, 1 / 3, atol=0.03)
  whole = [row for part in parts for row in rows(part)]
  assert len({*whole}) == len(whole) == 60
  assert images.class_names == ['dark', 'light', 'mid']


def test_each_channel_is_standardised_by_the_train_part_alone(images):
  train = np.asarray(images.train['image'], np.float64)
  np.testing.assert_allclose(train.mean(axis=(0, 1, 2)), 0, atol=1e-5)
  np.testing.assert_allclose(train.std(axis=(0, 1, 2)), 1, atol=1e-5)
  test = np.asarray(images.test['image']) * images.deviation[None, None, None]
  test = test + images.mean[None, None, None]
  assert 0 <= test.min() < test.max() <= 1


def test_what_the_test_folder_holds_changes_nothing_of_the_rest(tmp_path):
  found = []
  for seed in (1, 2):
    folder = tmp_path / str(seed)
    save(folder / 'train')
    save(folder / 'test', count=5, seed=seed)
    found.append(tasks.Images(8, path=str(folder)))
  one, other = found
  for name in ('train', 'meta'):
    jax.tree.map(
      np.testing.assert_array_equal, getattr(one, name), getattr(other, name)
    )
  assert rows(one.test) != rows(other.test)
  sizes = [len(p['label']) for p in (one.train, one.meta, one.test)]
  assert sizes == [51, 9, 15]


def test_labels_are_those_of_the_folders(images, path):
  for name, label in zip(images.class_names, range(3), strict=True):
    files = [f'{path}/{name}/{i:02}.png' for i in range(20)]
    encoded = {row.tobytes() for row in images.encode(files)}
    for part in (images.train, images.meta, images.test):
      for row, found in zip(rows(part), part['label'], strict=True):
        assert (row in encoded) == (found == label)


def test_encode_takes_files_and_arrays_and_decode_gives_names(images, path):
  file = f'{path}/mid/03.png'
  array = pixels('mid', [0, 2, 3])
  found = images.encode([file, array, (array / 255).astype(np.float32)])
  assert found.dtype == np.float32
  np.testing.assert_array_equal(found[0], found[1])
  np.testing.assert_allclose(found[1], found[2], atol=1e-6)
  grey = images.encode([array[..., 0]])
  np.testing.assert_array_equal(grey[..., 0], found[1:2, ..., 0])
  assert images.decode(np.eye(3)).tolist() == ['dark', 'light', 'mid']
  with pytest.raises(ValueError, match=r'image 2: has the shape \(5, 8, 3\)'):
    images.encode([array, array[:5]])


@pytest.mark.parametrize('dtype', ['uint8', 'float32'])
def test_arrays_of_an_npz_are_images_as_well(dtype, tmp_path):
  array = np.stack([pixels(n, i, (6, 8)) for i in range(20) for n in CLASSES])
  names = np.array(20 * [*CLASSES])
  if dtype == 'float32':
    array = (array / 255).astype(dtype)
  np.savez(tmp_path / 'i.npz', images=array, labels=names)
  task = tasks.Images(8, path=str(tmp_path / 'i.npz'))
  assert task.train['image'].shape == (39, 6, 8, 1)
  assert task.class_names == ['dark', 'light', 'mid']
  encoded = {row.tobytes() for row in task.encode(array[names == 'light'])}
  for row, label in zip(rows(task.train), task.train['label'], strict=True):
    assert (row in encoded) == (label == 1)


def test_all_are_resized_where_the_config_says_so(path, tmp_path):
  task = tasks.Images(8, path=path, size=(4, 5))
  assert task.train['image'].shape[1:] == (4, 5, 3)
  assert task.encode([f'{path}/mid/03.png']).shape == (1, 4, 5, 3)
  # An array is resized as a file is, up to the rounding of bytes.
  file, array = task.encode([f'{path}/mid/03.png', pixels('mid', [0, 2, 3])])
  np.testing.assert_allclose(file, array, atol=0.03)
  square = tasks.Images(8, path=path, size=7)
  assert square.train['image'].shape[1:] == (7, 7, 3)


def test_grey_files_have_one_channel_unless_others_have_colours(tmp_path):
  grey = save(tmp_path / 'grey', shape=(6, 8, 1))
  assert tasks.Images(8, path=grey).train['image'].shape[1:] == (6, 8, 1)
  Image.fromarray(pixels('mid', 7)).save(tmp_path / 'grey' / 'mid' / '99.png')
  task = tasks.Images(8, path=grey)
  assert task.train['image'].shape[1:] == (6, 8, 3)


def test_other_and_hidden_files_are_left_alone(path, tmp_path, images):
  folder = tmp_path / 'd'
  save(folder)
  (folder / 'README.md').write_text('mine')
  (folder / 'mid' / 'Thumbs.db').write_text('not mine')
  (folder / 'mid' / '._01.png').write_text('not mine')
  (folder / '.cache').mkdir()
  task = tasks.Images(8, path=str(folder))
  jax.tree.map(np.testing.assert_array_equal, task.train, images.train)


def test_a_photograph_stands_as_its_camera_was_held(path, tmp_path):
  file = tmp_path / 'turned.png'
  exif = Image.Exif()
  exif[0x0112] = 6  # to be turned by 90 degrees
  upright = pixels('mid', 5)
  turned = Image.fromarray(upright).transpose(Image.Transpose.ROTATE_90)
  turned.save(file, exif=exif)
  task = tasks.Images(8, path=path)
  np.testing.assert_array_equal(task.encode([file]), task.encode([upright]))


def test_batches_are_pure_and_evaluation_is_the_whole_test_part():
  task = tasks.Images(64)  # scikit-learn's digits
  step = jax.jit(task.next)
  state = task.init(jax.random.key(0))
  state, _ = step(state)
  saved = jax.device_get(state)
  _, batch = step(state)
  _, again = step(saved)
  jax.tree.map(np.testing.assert_array_equal, batch, again)
  assert batch['image'].shape == (64, 8, 8, 1)
  assert {*rows(batch)} <= {*rows(task.train)}
  batches = list(task.eval_batches())
  assert [len(b['label']) for b in batches] == [256, 104]
  assert [r for b in batches for r in rows(b)] == rows(task.test)


# --- By config alone.

MODULE = """
from flax import nnx
import jax
import jax.numpy as jnp


class Net(nnx.Module):
  def __init__(self, channels, classes, *, rngs):
    self.conv = nnx.Conv(channels, 8, (3, 3), rngs=rngs)
    self.head = nnx.Linear(8, classes, rngs=rngs)

  def __call__(self, x):
    return self.head(jnp.mean(jax.nn.relu(self.conv(x)), axis=(1, 2)))
"""


@pytest.fixture
def own_net(tmp_path, monkeypatch):
  (tmp_path / 'my_net_of_images.py').write_text(MODULE)
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(tmp_path)
  yield 'my_net_of_images:Net'
  sys.modules.pop('my_net_of_images', None)


@pytest.mark.thorough
def test_train_resume_load_and_predict(own_net, tmp_path):
  save(tmp_path / 'photos')
  fields = {
    'task__name': 'images',
    'task__path': 'photos',
    'task__kwargs': {},
    'task__batch_size': 16,
    'model__name': own_net,
    'model__kwargs': {'channels': 3, 'classes': 3},
    'inner__optimizer': 'adam',
    'inner__learning_rate': 0.01,
    'checkpoint_every': 10,
  }
  workdir = tmp_path / 'run'
  for steps in (10, 40):  # the second goes on where the first ended
    runs.run_here(workdir, 'digits_mlp', num_outer_steps=steps, **fields)
  assert len(runs.rows(workdir)) == 40
  model, _, _ = metalr_flax.load(workdir)
  task = metalr_flax.load_task(workdir)
  new = [pixels(name, [9, i]) for name in CLASSES for i in range(10)]
  found = task.decode(model(task.encode(new)))
  expected = np.repeat([*CLASSES], 10)
  assert (found == expected).mean() > 0.9
  Image.fromarray(new[0]).save(tmp_path / 'new.png')
  assert task.decode(model(task.encode(['new.png']))) == ['dark']


SIZES = {
  'outputs': ({'num_classes': 4, 'in_channels': 3}, r'model.kwargs: .* of shape \(\d+, 4\) for \d+ examples of 3 classes; give it 3 outputs'),
  'channels': ({'num_classes': 3}, r'model.name=cnn: does not fit task.name=images .*its inputs are float32 \[B, 6, 8, 3\]'),
}  # fmt: skip


@pytest.mark.thorough
@pytest.mark.parametrize('case', SIZES)
def test_a_wrong_size_is_told_with_the_right_one(case, path, tmp_path):
  kwargs, message = SIZES[case]
  with pytest.raises(errors.ConfigError, match=message):
    runs.run_here(
      tmp_path / 'run',
      'digits_mlp',
      task__name='images',
      task__path=path,
      task__kwargs={},
      task__batch_size=8,
      model__name='cnn',
      model__kwargs=kwargs,
    )
  assert not (tmp_path / 'run').exists()
