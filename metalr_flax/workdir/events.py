"""The only user of CLU: TensorBoard events, progress, a table of parameters.

CLU 0.0.12 imports TensorFlow through one leaf, the summary writer, for no more
than writing event files. A module of that name which writes through
TensorBoard's own event-file writer takes the leaf's place before CLU is first
imported; all other parts of CLU are the genuine ones. (TensorFlow would cost
1.4 GiB and ten seconds of every start.)
"""

from collections.abc import Mapping
import io
import itertools
import os
import pathlib
import re
import socket
import sys
import time
import types
from typing import Any

from absl import logging
import numpy as np
from PIL import Image
from tensorboard.compat.proto import event_pb2
from tensorboard.compat.proto import summary_pb2
from tensorboard.compat.proto import tensor_pb2
from tensorboard.compat.proto import tensor_shape_pb2
from tensorboard.compat.proto import types_pb2
from tensorboard.plugins.hparams import summary_v2 as hparams_summary
from tensorboard.plugins.image import metadata as image_metadata
from tensorboard.plugins.scalar import summary_v2 as scalar_summary
from tensorboard.plugins.text import summary_v2 as text_summary
from tensorboard.summary.writer import record_writer

from metalr_flax.workdir import files

_LEAF = 'clu.metric_writers.tf.summary_writer'
_SWITCH = 'tensorboard.compat.notf'
_PREFIX = 'events.out.tfevents.'
_UNIQUE = itertools.count()


class SummaryWriter:
  """CLU's writer of TensorBoard events, rebuilt without TensorFlow."""

  def __init__(self, logdir: str, first: int = 0):
    now, process = time.time(), f'{socket.gethostname()}.{os.getpid()}'
    number = max(int(now), 1 + _last_number(pathlib.Path(logdir)))
    name = f'{_PREFIX}{number:010d}.{process}.{next(_UNIQUE)}'
    # TensorBoard's own file writer hangs for ever after a fault.
    self._file = files.AppendFile(pathlib.Path(logdir) / name, 0)
    self._records = record_writer.RecordWriter(self._file)
    self._write(event_pb2.Event(wall_time=now, file_version='brain.Event:2'))
    # A TensorBoard that watched all along drops what is about to come again.
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._write(
      event_pb2.Event(wall_time=now, step=first + 1, session_log=start)
    )

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    """Writes each scalar under its name."""
    for name, value in scalars.items():
      self._add(step, scalar_summary.scalar_pb(name, np.float32(value)))
    self._file.push()

  def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
    """Writes each text (Markdown) under its name."""
    for name, text in texts.items():
      self._add(step, text_summary.text_pb(name, text))
    self._file.push()

  def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    """Writes each picture, uint8 [height, width, channels]."""
    for name, image in images.items():
      self._add(step, _image_pb(name, image))
    self._file.push()

  def write_hparams(self, hparams: Mapping[str, Any]) -> None:
    """Writes the run's hyperparameters, at step 0."""
    # Without a trial's name the table names each row after its run.
    self._add(0, hparams_summary.hparams_pb(dict(hparams), trial_id=''))
    self._file.push()

  def flush(self) -> None:
    """Puts all events on the disk."""
    self._file.sync()

  def close(self) -> None:
    """Closes the file; flush it before."""
    self._file.close()

  def _add(self, step: int, summary: summary_pb2.Summary) -> None:
    self._write(
      event_pb2.Event(wall_time=time.time(), step=step, summary=summary)
    )

  def _write(self, event: event_pb2.Event) -> None:
    self._records.write(event.SerializeToString())


def _image_pb(name: str, image: np.ndarray) -> summary_pb2.Summary:
  height, width = image.shape[:2]
  png = io.BytesIO()
  Image.fromarray(image).save(png, format='png')
  size = [str(width).encode(), str(height).encode()]
  shape = tensor_shape_pb2.TensorShapeProto(
    dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=3)]
  )
  tensor = tensor_pb2.TensorProto(
    dtype=types_pb2.DT_STRING,
    string_val=[*size, png.getvalue()],
    tensor_shape=shape,
  )
  metadata = image_metadata.create_summary_metadata(None, None)
  return summary_pb2.Summary(
    value=[
      summary_pb2.Summary.Value(tag=name, tensor=tensor, metadata=metadata)
    ]
  )


def _take_the_leafs_place() -> None:
  leaf = types.ModuleType(_LEAF)
  leaf.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
  sys.modules.setdefault(_LEAF, leaf)
  # TensorBoard's own switch: or its file writer, too, would import TensorFlow
  # wherever that happens to be installed.
  sys.modules.setdefault(_SWITCH, types.ModuleType(_SWITCH))


_take_the_leafs_place()
# Only now: CLU imports its summary writer with the package.
from clu import metric_writers  # noqa: E402
from clu import parameter_overview  # noqa: E402
from clu import periodic_actions  # noqa: E402

ReportProgress = periodic_actions.ReportProgress


def overview(params: Any) -> str:
  """A table of the parameters' names, shapes, dtypes and sizes."""
  return parameter_overview.get_parameter_overview(
    _named(params), include_stats=False
  )


def _named(tree: Any) -> Any:
  """Makes all keys strings, for CLU's table: module lists have numbers."""
  if isinstance(tree, dict):
    return {str(key): _named(value) for key, value in tree.items()}
  return tree


def cut_events(workdir: pathlib.Path, sizes: Mapping[str, int]) -> None:
  """Cuts event files back to what a checkpoint recorded.

  What was written after it will be written again; without the cut, readers
  would show those points twice.

  Args:
    workdir: the folder of the event files.
    sizes: bytes to keep of each by name; a file not named is removed.
  """
  for path in _event_files(workdir):
    _cut(path, sizes.get(path.name, 0))
  left = event_sizes(workdir)
  for name, size in sizes.items():
    if left.get(name, 0) < size:
      logging.warning(
        '%s: not as the checkpoint recorded; TensorBoard will miss what it '
        'held, metrics.csv has it', workdir / name,
      )  # fmt: skip
  files.sync_directory(workdir)


@files.retried
def _cut(path: pathlib.Path, size: int) -> None:
  if not size:
    path.unlink(missing_ok=True)
  elif path.stat().st_size > size:
    os.truncate(path, size)


@files.retried
def event_sizes(workdir: pathlib.Path) -> dict[str, int]:
  """The sizes in bytes of a workdir's event files."""
  return {path.name: path.stat().st_size for path in _event_files(workdir)}


def _event_files(workdir: pathlib.Path) -> list[pathlib.Path]:
  names = files.list_directory(workdir)
  return [workdir / n for n in names if n.startswith(_PREFIX)]


def _last_number(workdir: pathlib.Path) -> int:
  """The number in the last event file's name, 0 where there is none.

  Readers take the files in the order of their names, whose numbers are seconds:
  a clock that was set back must not put what is new before what is old.
  """
  names = ' '.join(path.name for path in _event_files(workdir))
  return max(map(int, re.findall(rf'{_PREFIX}(\d+)', names)), default=0)


def make_writer(
  workdir: pathlib.Path, first: int
) -> metric_writers.MetricWriter:
  """CLU's writer of TensorBoard events into a folder.

  Not the asynchronous one: it answers a full disk with a traceback of its own,
  and there is nothing to wait for.

  Args:
    workdir: the folder.
    first: inner updates done before; what is there of later ones is void.
  """
  return metric_writers.MultiWriter([SummaryWriter(os.fspath(workdir), first)])


def no_writer() -> metric_writers.MetricWriter:
  """A writer that writes nowhere, for a process that leaves it to another."""
  return metric_writers.MultiWriter([])
