"""The symbols of a text, each a number: bytes, or characters."""

import numpy as np


class Bytes:
  """Each byte is itself.

  Attributes:
    size: 256.
  """

  size = 256

  def encode(self, text: bytes) -> np.ndarray:
    """The numbers of a text, uint8 `[length]`."""
    return np.frombuffer(text, np.uint8)

  def decode(self, numbers: np.ndarray) -> str:
    """The text of numbers `[length]`; U+FFFD for what is no UTF-8."""
    return numbers.astype(np.uint8).tobytes().decode(errors='replace')


class Characters:
  """The characters of a text by code point, and one symbol for all others.

  Attributes:
    size: V, the characters and the unknown one, which is V - 1.
  """

  def __init__(self, text: str):
    """Lists the characters that `text` has."""
    self._points = np.unique(_points(text))
    self.size = len(self._points) + 1

  def encode(self, text: str) -> np.ndarray:
    """The numbers of a text, unsigned integers `[length]`."""
    points = _points(text)
    places = np.searchsorted(self._points, points)
    unknown = self.size - 1
    places[self._points[np.minimum(places, unknown - 1)] != points] = unknown
    return places.astype(np.min_scalar_type(unknown))

  def decode(self, numbers: np.ndarray) -> str:
    """The text of numbers `[length]`; U+FFFD for the unknown one."""
    letters = [*map(chr, self._points), '\ufffd']
    return ''.join(letters[number] for number in numbers)


def of(train: str | bytes) -> Bytes | Characters:
  """The symbols of a text whose train part this is."""
  return Bytes() if isinstance(train, bytes) else Characters(train)


def _points(text: str) -> np.ndarray:
  """Code points, uint32 `[length]`; a lone half of a pair is one, too."""
  return np.frombuffer(text.encode('utf-32-le', 'surrogatepass'), np.uint32)
