"""Reads text: a file, a folder of files, or the standard library's own."""

import pathlib

from metalr_flax.tasks import task


def read(path: str, where: str) -> str:
  """The text of a file, or of all files in a folder, joined by name.

  Args:
    path: the file or folder; hidden files are left alone. '' for the Python
      manual's reference pages.
    where: the field and path, for messages.

  Raises:
    RefusedError: naming the file that cannot be read or is not UTF-8.
  """
  if not path:
    from pydoc_data import topics  # half a megabyte: only where it is used

    return ''.join(topics.topics[name] for name in sorted(topics.topics))
  if not pathlib.Path(path).is_dir():
    return _read_file(pathlib.Path(path), where)
  files = [*_files_in(pathlib.Path(path))]
  if not files:
    raise task.RefusedError(f'{where}: holds no file; give one of texts')
  return '\n'.join(_read_file(file, f'{where}: {file}') for file in files)


def _files_in(folder: pathlib.Path) -> list[pathlib.Path]:
  """The files below a folder by name, without hidden ones."""
  found = []
  for path in sorted(folder.rglob('*')):
    parts = path.relative_to(folder).parts
    if path.is_file() and not any(part.startswith('.') for part in parts):
      found.append(path)
  return found


def _read_file(file: pathlib.Path, where: str) -> str:
  try:
    return file.read_bytes().decode()
  except OSError as error:
    raise task.RefusedError(
      f'{where}: cannot be read ({error.strerror}); give a file of UTF-8 text, '
      f'or a folder of them'
    ) from error
  except UnicodeDecodeError as error:
    raise task.RefusedError(
      f'{where}: is not UTF-8 text (byte {error.start}); convert it'
    ) from error
