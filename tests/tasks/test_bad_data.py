"""Whatever is wrong with a user's data is one line, status 2, nothing written.

A line names the field, or the file and the row.
"""

import io
import itertools

import numpy as np
from PIL import Image
import pytest
import runs

from metalr_flax import errors

GOOD = 'a,b,y\n' + ''.join(f'{i},{i % 3},{i % 2}\n' for i in range(60))


def csv(*, header='a,b,y', row='1,2,0', number=1):
  """A table of 60 good rows and, as the given one, another."""
  rows = GOOD.splitlines()[1:]
  rows.insert(number - 1, row)
  return '\n'.join([header, *rows, ''])


def npz(images=None, labels=None, **others):
  """An NPZ file of 40 images in two classes, or of what is given."""
  images = np.zeros((40, 4, 4), np.uint8) if images is None else images
  labels = np.arange(40) % 2 if labels is None else labels
  file = io.BytesIO()
  np.savez(file, **(others or {'images': images, 'labels': labels}))
  return file.getvalue()


def png(size=(4, 4), value=0, mode='L', format='PNG'):
  file = io.BytesIO()
  Image.new(mode, size, value).save(file, format)
  return file.getvalue()


def folder(**others):
  """Two classes of six images; `others` replace files, None removes one."""
  files = {
    f'd/{name}/{i}.png': png(value=i)
    for name, i in itertools.product('ab', range(6))
  }
  changed = {**files, **others}
  return {name: data for name, data in changed.items() if data is not None}


def table(content, message, **kwargs):
  data = content if isinstance(content, bytes) else content.encode()
  return {'t.csv': data}, 'table', 't.csv', {'target': 'y', **kwargs}, message


def tables(files, message, **kwargs):
  files = {'t.csv': GOOD, **files}
  return files, 'table', 't.csv', {'target': 'y', **kwargs}, message


def arrays(content, message, **kwargs):
  return {'i.npz': content}, 'images', 'i.npz', kwargs, message


def images(files, message, **kwargs):
  return files, 'images', 'd', kwargs, message


def text(files, message, path='d', **kwargs):
  return files, 'text', path, kwargs, message


TABLES = {
  'no file': tables({}, ['task.path=t.csv: cannot be read (No such file']),
  'a folder for a file': ({'t.csv/x': b''}, 'table', 't.csv', {'target': 'y'}, ['task.path=t.csv: cannot be read (Is a directory)']),
  'empty file': table('', ['task.path=t.csv: is empty']),
  'only a header': table('a,b,y\n', ['task.path=t.csv: has no rows']),
  'no target given': (dict(t=b''), 'table', 't', {}, ["task.kwargs: Table: missing a required argument: 'target'"]),
  'unknown target': table(GOOD, ['task.kwargs.target=z: there is no such column', 'the columns are a, b, y'], target='z'),
  'unknown column to drop': table(GOOD, ['task.kwargs.drop=c: there is no such column'], drop=['c']),
  'a name for a list': table(GOOD, ["task.kwargs.drop=a: must be a list", "['...']"], drop='a'),
  'a column in two roles': table(GOOD, ['task.kwargs.categorical=a: task.kwargs.numeric names it as well'], numeric=['a'], categorical=['a']),
  'the target among the inputs': table(GOOD, ['task.kwargs.numeric=y: task.kwargs.target names it as well'], numeric=['y']),
  'nothing to learn from': table(GOOD, ['task.path=t.csv: has no column to learn from'], drop=['a', 'b']),
  'two columns of one name': table(csv(header='a,a,y'), ['t.csv: two columns are named a']),
  'a column without a name': table(csv(header=',b,y'), ['t.csv: column 1 has no name', 'without its index']),
  'a row too long': table(csv(row='1,2,0,4', number=7), ['t.csv: row 7 (line 8) has 4 cells and the header 3']),
  'a row too short': table(csv(row='1,2', number=7), ['t.csv: row 7 (line 8) has 2 cells and the header 3']),
  'a quote left open': table(csv(row='"1,2,0', number=9), ['t.csv: row 9 (line ', ' cells and the header 3']),
  'another encoding': table(csv(row='1,2,0', header='größe,b,y').encode('latin-1'), ['t.csv: is not UTF-8 text']),
  'no table at all': table(b'PK\x03\x04\x00\x00' * 99, ['task.path=t.csv: ']),
  'text among numbers': table(csv(row='1,n.a.,0', number=5), ['t.csv: column b has text, \'n.a.\', in row 5']),
  'text where numbers are named': table(csv(row='1,n.a.,0', number=5), ["t.csv: column b has 'n.a.' in row 5", 'no finite number'], numeric=['b']),
  'an infinite number': table(csv(row='inf,2,0', number=4), ['t.csv: column a has inf in row 4', 'no finite number']),
  'a number too large': table(csv(row='1e200,2,0', number=4), ['t.csv: column a has 1e+200 in row 4']),
  'a column that is empty': table(csv(row=',2,0').replace('\n', ',\n').replace('y,\n', 'y,e\n'), ['t.csv: column e has no value in the train part', 'task.kwargs.drop']),
  'too many categories': table('a,y\n' + ''.join(f'name{i},{i % 2}\n' for i in range(2000)), ['t.csv: column a has ', ' categories, at most 1000', 'task.kwargs.drop']),
  'a target missing': table(csv(row='1,2,', number=3), ['t.csv: column y has no value in row 3']),
  'an infinite target': table(csv(row='1,2,inf', number=3), ['t.csv: column y has inf in row 3'], kind='regression'),
  'text as a number to predict': table(csv(row='1,2,no', number=3), ["t.csv: column y has 'no' in row 3, which is no finite number"], kind='regression'),
  'text among the targets': table(csv(row='1,2,no', number=3), ["t.csv: column y has text, 'no', in row 3"]),
  'an unknown kind': table(GOOD, ["task.kwargs.kind=ranking: must be 'classification'"], kind='ranking'),
  'one class': table('a,y\n' + '1,0\n2,0\n' * 30, ['t.csv: column y: all examples are of class 0']),
  'one number': table('a,y\n' + '1,0.5\n2,0.5\n' * 30, ['t.csv: column y: is 0.5 in every row of the train part']),
  'a class too small': table(csv(row='1,2,7'), ['t.csv: class 7 has 1 of the 3 examples that 3 parts need']),
  'fewer rows than a batch': table(GOOD, ['task.batch_size=64: must be at most 39, the examples of its part']),
  'fewer rows than a held-out batch': table(GOOD + 2 * GOOD.partition('\n')[2], ['task.kwargs.meta_batch_size=64: must be at most 27'], meta_batch_size=64),
  'too few rows to split': table('a,y\n1,0.5\n2,1.5\n', ['t.csv: 2 examples are too few for a train, a meta']),
  'no part to train on': table(GOOD, ['meta_fraction=0.8, test_fraction=0.2: must be > 0 and sum to less than 1'], meta_fraction=0.8),
  'an unknown part': table('a,p,y\n1,train,0\n2,dev,1\n', ["t.csv: column p is 'dev' in row 2; write train, meta or test"], split_column='p'),
  'no rows to train on': table('a,p,y\n1,meta,0\n2,test,1\n', ['task.kwargs.split_column=p: no row of it is train'], split_column='p'),
  'two ways to split': tables({'u.csv': GOOD}, ['task.kwargs.split_column=b: splits the rows, and so do other files'], split_column='b', test_path='u.csv'),
  'a class of one part alone': tables({'u.csv': csv(row='1,2,5', number=4)}, ['task.kwargs.test_path=u.csv: row 4 is of class 5'], test_path='u.csv'),
  'a second file that is missing': tables({}, ['task.kwargs.meta_path=u.csv: cannot be read'], meta_path='u.csv'),
  'a second file of other columns': tables({'u.csv': csv(header='a,c,y')}, ['task.kwargs.test_path=u.csv: has no column b, which task.path=t.csv has'], test_path='u.csv'),
  'text in a second file': tables({'u.csv': csv(row='1,x,0', number=8)}, ["task.kwargs.test_path=u.csv: column b has 'x' in row 8"], test_path='u.csv'),
  'a corrupt Parquet file': ({'t.parquet': b'PAR1' + bytes(40)}, 'table', 't.parquet', {'target': 'y'}, ['task.path=t.parquet: ']),
  'an unknown argument': table(GOOD, ['task.kwargs: Table: ', 'sheet'], sheet=1),
  'a seed that is none': table(GOOD, ['split_seed=-1: must be an integer >= 0'], split_seed=-1),
}  # fmt: skip
del TABLES['no file'][0]['t.csv']

IMAGES = {
  'no path there': images({}, ['task.path=d: cannot be read (No such file']),
  'neither NPZ nor folder': arrays(b'no zip', ['task.path=i.npz: is no NPZ file']),
  'a damaged NPZ': arrays(npz()[:200], ['task.path=i.npz: ']),
  'an NPZ with damage inside': arrays(npz().replace(bytes(40), b'x' * 40, 1), ['task.path=i.npz: is damaged']),
  'an NPY file': arrays(b'\x93NUMPY\x01\x00v\x00' + repr({'descr': '|u1', 'fortran_order': False, 'shape': (4,)}).ljust(117).encode() + b'\n' + bytes(4), ['task.path=i.npz: is no NPZ file']),
  'other names in the NPZ': arrays(npz(x=np.zeros(3), y=np.zeros(3)), ['i.npz: must have the arrays images and labels and has x, y', 'numpy.savez']),
  'pickled objects': arrays(npz(np.array([None, 'x'], object)), ['i.npz: is no NPZ file of plain arrays (Object arrays']),
  'flat images': arrays(npz(np.zeros((40, 16), np.uint8)), ['i.npz: images has the shape (40, 16)', '[N, H, W]']),
  'no images': arrays(npz(np.zeros((0, 4, 4), np.uint8), np.zeros(0, int)), ['i.npz: images has the shape (0, 4, 4)']),
  'labels of another length': arrays(npz(labels=np.arange(39) % 2), ['i.npz: has 40 images and 39 labels']),
  'labels that are no classes': arrays(npz(labels=np.linspace(0, 1, 40)), ['i.npz: labels is float64', 'integers or text']),
  'labels in two columns': arrays(npz(labels=np.zeros((40, 2), int)), ['i.npz: labels is int64 of shape (40, 2)']),
  'integers of unknown range': arrays(npz(np.zeros((40, 4, 4), int)), ['i.npz: images is int64; make it uint8']),
  'floats beyond 1': arrays(npz(np.where(np.arange(40) == 7, 16.0, 1.0)[:, None, None] * np.ones((1, 4, 4))), ['i.npz: image 8 has values outside [0, 1]']),
  'NaN in an image': arrays(npz(np.full((40, 4, 4), np.nan)), ['i.npz: image 1 has values outside [0, 1]']),
  'one class': arrays(npz(labels=np.zeros(40, int)), ['i.npz: all examples are of class 0']),
  'a class too small': arrays(npz(labels=np.arange(40) // 39), ['i.npz: class 1 has 1 of the 3 examples']),
  'fewer images than a batch': arrays(npz(), ['task.batch_size=64: must be at most 26']),
  'a folder without folders': images({'d/1.png': png()}, ['task.path=d: d has no folders', 'the images of each class']),
  'a folder without images': images(folder(**{'d/c/notes.txt': b'mine'}), ['task.path=d: d/c holds no image']),
  'a corrupt image': images(folder(**{'d/b/3.png': png()[:40]}), ['task.path=d: d/b/3.png cannot be read as an image']),
  'no image behind its name': images(folder(**{'d/b/3.jpg': b'text'}), ['task.path=d: d/b/3.jpg cannot be read as an image (cannot identify image file)']),
  'images of different sizes': images(folder(**{'d/b/3.png': png((4, 5))}), ['task.path=d: d/a/0.png has 4 x 4 pixels and d/b/3.png 5 x 4', 'set task.kwargs.size']),
  'more than a byte a value': images(folder(**{'d/b/3.png': png(mode='I;16')}), ['d/b/3.png has more than 8 bits a value (I;16)']),
  'a size that is none': images(folder(), ['task.kwargs.size=(4, 0, 3): must be one number or two'], size=[4, 0, 3]),
  'a size of nothing': images(folder(), ['task.kwargs.size=0: must be an integer >= 1'], size=0),
  'a third folder beside train and test': images({f'd/{part}/{c}/0.png': png() for part in ('train', 'test', 'val') for c in 'ab'}, ['task.path=d: has the folder val beside train and test']),
  'a class of the test part alone': images({f'd/{part}/{c}/{i}.png': png() for part, names in (('train', 'ab'), ('test', 'ac')) for c in names for i in range(4)}, ["task.path=d: test: image 5 is of class 'c', of which the train part has no example"]),
  'parts of different sizes': images({f'd/{part}/{c}/{i}.png': png((n, n)) for part, n in (('train', 4), ('test', 5)) for c in 'ab' for i in range(4)}, ['task.path=d: the images of test have (5, 5) pixels', 'set task.kwargs.size']),
}  # fmt: skip

TEXTS = {
  'no file': text({}, ['task.path=none.txt: cannot be read'], path='none.txt'),
  'an empty file': text({'t': b''}, ['task.path=t: its train part has 0 bytes', 'sequence_length'], path='t'),
  'a folder without files': text({'d/.hidden': b'x'}, ['task.path=d: holds no file']),
  'no UTF-8': text({'t': b'abc\xff' * 99}, ['task.path=t: is not UTF-8 text (byte 3)'], path='t'),
  'one file of a folder': text({'d/a.txt': b'x' * 999, 'd/b/c.txt': b'\x80'}, ['task.path=d: d/b/c.txt: is not UTF-8 text (byte 0)']),
  'too few characters': text({'t': 'äöü'.encode() * 100}, ['task.path=t: its meta part has 30 characters and must have sequence_length + 1 = 65'], path='t', unit='characters'),
  'an unknown unit': text({'t': b'x' * 999}, ["task.kwargs.unit=words: must be 'bytes' or 'characters'"], path='t', unit='words'),
}  # fmt: skip

CASES = {
  f'{kind}: {name}': case
  for kind, cases in (('table', TABLES), ('images', IMAGES), ('text', TEXTS))
  for name, case in cases.items()
}


def write(files):
  for name, data in files.items():
    path = runs.pathlib.Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


@pytest.mark.parametrize('name', CASES)
def test_bad_data_are_told_in_one_line(name, tmp_path, monkeypatch, capfd):
  files, task, path, kwargs, parts = CASES[name]
  monkeypatch.chdir(tmp_path)
  write(files)
  status = errors.status_of(
    lambda: runs.run_here(
      'run',
      'digits_mlp',
      task__name=task,
      task__path=path,
      task__kwargs=kwargs,
    )
  )
  stdout, stderr = capfd.readouterr()
  assert (status, stdout) == (2, ''), stderr
  assert stderr.startswith('metalr_flax: error: ')
  assert stderr.count('\n') == 1
  for part in ('; ', *parts):
    assert part in stderr
  assert len(stderr) < 400
  assert not (tmp_path / 'run').exists()
  assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
    {name.split('/')[0] for name in files}
  )
