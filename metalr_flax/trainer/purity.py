"""Refuses a task whose `next` is not a pure function of its `data_state`.

`next` is traced once and compiled. What it draws by other means than JAX, from
`np.random` or an iterator, would be part of the program: one batch for ever.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.extend import core
import numpy as np

from metalr_flax import errors
from metalr_flax import tasks

PyTree = Any
_REMEDY = (
  'derive it from metalr_flax.tasks.Stream, which reads batches on the host '
  '(docs/streams.md)'
)
# Its value would have to be known while it is traced, or it is no array.
_NEEDS_VALUES = (
  jax.errors.ConcretizationTypeError,
  jax.errors.TracerArrayConversionError,
  jax.errors.TracerIntegerConversionError,
)
_PLAIN = (bool, int, float, complex, str, bytes, type(None), np.dtype)


def check(task: tasks.Task, data_state: PyTree, name: str) -> None:
  """Traces `next` and `next_meta` twice; refuses what differs.

  Args:
    task: in memory, no stream.
    data_state: a state of its sampler.
    name: the task's in the config.

  Raises:
    ConfigError: saying what is wrong and what to do.
  """
  if ':' not in name:
    return  # ours
  for method in ('next', 'next_meta'):
    function = getattr(task, method, None)
    if function is None:
      continue
    one, other = (_trace(function, data_state, name) for _ in range(2))
    if not _same(one, other):
      raise errors.ConfigError(
        f'task.name={name}: {method} gives another batch each time that it is '
        f'called with the same data_state; its first would be the only one of '
        f'the run, for it is compiled; draw it with jax.random from a key in '
        f'data_state, or {_REMEDY}'
      )


def _trace(function: Any, data_state: PyTree, name: str) -> list[Any]:
  """All that a trace of `function` depends on besides `data_state`."""
  # A function of its own each time: JAX keeps the traces of one it knows.
  fresh = lambda data_state: function(data_state)
  try:
    return [*_values(jax.make_jaxpr(fresh)(data_state))]
  except _NEEDS_VALUES as error:
    text = errors.text_of(error).partition('\n')[0].partition('. ')[0]
    reason = f'{type(error).__name__}: {text[:100]}'
  except TypeError as error:
    if 'valid JAX type' not in errors.text_of(error):
      raise
    reason = 'what it gives are not all arrays'
  raise errors.ConfigError(
    f'task.name={name}: {function.__name__} cannot be compiled ({reason}); '
    f'compute with JAX alone, or {_REMEDY}'
  )


def _values(value: Any) -> Iterator[Any]:
  """Operations, constants and parameters of a trace, in order.

  A function among the parameters counts by its type: it may be a new one each
  time and still do the same.
  """
  if isinstance(value, core.ClosedJaxpr):
    yield from value.consts
    value = value.jaxpr
  if isinstance(value, core.Jaxpr):
    for eqn in value.eqns:
      yield eqn.primitive.name
      yield from (str(v.aval) for v in eqn.outvars)
      yield from (v.val for v in eqn.invars if isinstance(v, core.Literal))
      for key in sorted(eqn.params):
        yield key
        yield from _values(eqn.params[key])
    yield from (v.val for v in value.outvars if isinstance(v, core.Literal))
  elif isinstance(value, (tuple, list)):
    yield len(value)
    for item in value:
      yield from _values(item)
  elif isinstance(value, (*_PLAIN, np.ndarray, np.generic, jax.Array)):
    yield value
  else:
    yield type(value)


def _same(one: Sequence[Any], other: Sequence[Any]) -> bool:
  return len(one) == len(other) and all(map(_equal, one, other))


def _equal(one: Any, other: Any) -> bool:
  if one is other:  # the data of a task, for one
    return True
  if isinstance(one, (np.ndarray, np.generic, jax.Array)):
    return hasattr(other, 'dtype') and _same_bits(one, other)
  return type(one) is type(other) and (one == other or one != one)


def _same_bits(one: Any, other: Any) -> bool:
  if (one.dtype, one.shape) != (other.dtype, other.shape):
    return False
  if jax.dtypes.issubdtype(one.dtype, jax.dtypes.prng_key):
    one, other = jax.random.key_data(one), jax.random.key_data(other)
  return np.array_equal(_bits(one), _bits(other))


def _bits(array: Any) -> np.ndarray:
  return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
