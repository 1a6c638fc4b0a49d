"""A file that grows: whatever fails in between, its bytes are right."""

import errno
import os
import pathlib

import pytest

from metalr_flax.workdir import files


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  monkeypatch.setattr(files, 'RETRY_SECS', (0.0, 0.0))


def fail_once(monkeypatch, name, before=lambda *args: None):
  """The first call of an `os` function answers with an I/O error."""
  real, calls = getattr(os, name), []

  def function(*args):
    calls.append(args)
    if len(calls) == 1:
      before(*args)
      raise OSError(errno.EIO, 'Input/output error')
    return real(*args)

  monkeypatch.setattr(os, name, function)
  return calls


def test_it_grows_from_a_known_size(tmp_path):
  path = tmp_path / 'file'
  path.write_bytes(b'kept, not kept')
  file = files.AppendFile(path, 4)
  file.write(b' one')
  assert path.read_bytes() == b'kept'
  file.push()
  assert path.read_bytes() == b'kept one'
  file.write(b' two')
  assert file.sync() == 12
  file.write(b' three')
  assert file.sync() == 18
  file.close()
  assert path.read_bytes() == b'kept one two three'


def test_after_a_failed_fsync_everything_is_written_again(
  tmp_path, monkeypatch
):
  """Linux drops the pages that it could not write, and says so once."""
  path = tmp_path / 'file'
  file = files.AppendFile(path, 0)
  file.write(b'on the disk ')
  file.sync()
  file.write(b'dropped')
  file.push()

  def drop(descriptor):
    os.ftruncate(descriptor, 12)
    os.pwrite(descriptor, bytes(7), 12)

  calls = fail_once(monkeypatch, 'fsync', drop)
  assert file.sync() == 19
  assert len(calls) == 2
  file.close()
  assert path.read_bytes() == b'on the disk dropped'


def test_a_write_that_fails_is_done_again_in_its_place(tmp_path, monkeypatch):
  path = tmp_path / 'file'
  file = files.AppendFile(path, 0)
  fail_once(monkeypatch, 'pwrite')
  file.write(b'abc')
  file.push()
  file.write(b'def')
  assert file.sync() == 6
  file.close()
  assert path.read_bytes() == b'abcdef'


def test_a_fault_that_stays_is_raised(tmp_path, monkeypatch):
  file = files.AppendFile(tmp_path / 'file', 0)

  def never(*args):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(os, 'pwrite', never)
  file.write(b'abc')
  with pytest.raises(OSError, match='No space left'):
    file.push()
  file.close()


def test_a_directory_that_cannot_be_listed_is_not_an_empty_one(
  tmp_path, monkeypatch
):
  (tmp_path / 'file').touch()
  assert files.list_directory(tmp_path) == ['file']
  assert files.list_directory(tmp_path / 'nowhere') == []

  def never(*args):
    raise OSError(errno.EMFILE, 'Too many open files')

  monkeypatch.setattr(os, 'listdir', never)
  monkeypatch.setattr(os, 'scandir', never)
  with pytest.raises(OSError, match='Too many'):
    files.list_directory(tmp_path)
  with pytest.raises(OSError, match='Too many'):
    files.walk(tmp_path)


@pytest.mark.parametrize(
  ('error', 'says'),
  [
    (OSError('Orbax says why'), 'Orbax says why'),
    (OSError(errno.EIO, 'I/O error'), "[Errno 5] I/O error: '/the/file'"),
    (FileNotFoundError(2, 'Gone', 'x'), "[Errno 2] Gone: 'x'"),
  ],
)
def test_a_fault_without_a_number_keeps_its_message(error, says, monkeypatch):
  monkeypatch.setattr(files, 'RETRY_SECS', ())

  def fail(path):
    raise error

  with pytest.raises(OSError, match=r'why|Errno') as caught:
    files.retried(fail)(pathlib.Path('/the/file'))
  assert str(caught.value) == says
