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
  files = files_of(path)
  if not files:
    raise task.RefusedError(f'{where}: holds no file; give one of texts')
  return '\n'.join(_read_file(file, f'{where}: {file}') for file in files)


def files_of(path: str) -> list[pathlib.Path]:
  """The files that `read` reads, by name, without hidden ones."""
  root = pathlib.Path(path)
  if not path or not root.is_dir():
    return [root] if path else []
  return [
    file
    for file in sorted(root.rglob('*'))
    if file.is_file()
    and not any(p.startswith('.') for p in file.relative_to(root).parts)
  ]


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
