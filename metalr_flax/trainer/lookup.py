"""Finds the class or function that a config names; checks its arguments."""

from collections.abc import Callable, Mapping
import functools
import importlib
import inspect
from typing import Any

import optax

from metalr_flax import errors
from metalr_flax import tasks


def find_class(field: str, name: str, known: Mapping[str, type]) -> type:
  """The class a config names: of this package, or the user's own."""
  if name in known:
    return known[name]
  cls = find(field, name)
  if not isinstance(cls, type):
    raise errors.ConfigError(
      f'{field}={name}: is a {type(cls).__name__}, not a class; name a class'
    )
  return cls


def find_factory(field: str, name: str) -> Callable:
  """The function that makes an optimizer: optax's, or the user's own."""
  return find(field, name) if ':' in name else getattr(optax, name)


def find(field: str, name: str) -> Any:
  """Imports what `package.module:Name` names."""
  module_name, _, class_name = name.partition(':')
  try:
    with errors.exits_refused(f'{field}={name}'):
      return getattr(importlib.import_module(module_name), class_name)
  except (ImportError, AttributeError) as error:
    raise errors.ConfigError(
      f'{field}={name}: cannot be imported ({errors.text_of(error)}); check '
      f'the name, and that its folder is the current one or on PYTHONPATH'
    ) from error


def construct(field: str, cls: type, arguments: dict[str, Any]) -> Any:
  """Makes an instance of `cls`; arguments that it refuses are an error line.

  A TypeError from inside the user's own constructor keeps its traceback: there
  it is a bug to be found, here it is a value of the wrong type.
  """
  check_arguments(field, cls, arguments)
  ours = cls.__module__.startswith('metalr_flax.')
  refusals = (ValueError, TypeError, OverflowError) if ours else ValueError
  try:
    with errors.exits_refused(f'{field}: {cls.__name__}'):
      return cls(**arguments)
  except tasks.RefusedError as error:  # says itself which field
    raise errors.ConfigError(str(error)) from error
  except refusals as error:
    raise errors.ConfigError(
      f'{field}: {cls.__name__} refuses its arguments '
      f'({errors.text_of(error)}); change them'
    ) from error


def check_arguments(
  field: str, function: Callable, arguments: Mapping[str, Any]
) -> None:
  """Refuses arguments that a function does not have, or lacks."""
  try:
    signature_of(function).bind(**arguments)
  except TypeError as error:
    whole = function
    if isinstance(function, functools.partial):
      whole = function.func
    raise errors.ConfigError(
      f'{field}: {whole.__name__}: {error}; its arguments are '
      f'{_without_types(signature_of(function))}'
    ) from error


def _without_types(signature: inspect.Signature) -> inspect.Signature:
  """A signature that fits a line: its names and defaults alone."""
  empty = inspect.Parameter.empty
  names = [p.replace(annotation=empty) for p in signature.parameters.values()]
  return inspect.Signature(names)


def signature_of(function: Callable) -> inspect.Signature:
  """The arguments to call with; of a class its constructor's."""
  if not isinstance(function, type):
    return inspect.signature(function)
  # NNX's metaclass hides the signature of the class itself.
  constructor = function.__init__  # type: ignore[misc]
  if constructor is object.__init__:
    return inspect.Signature()
  _, *arguments = inspect.signature(constructor).parameters.values()
  return inspect.Signature(arguments)


def as_tuples(value: Any) -> Any:
  """Converts JSON's lists to tuples: NNX takes lists for lists of modules."""
  if isinstance(value, Mapping):
    return {key: as_tuples(item) for key, item in value.items()}
  if isinstance(value, list):
    return tuple(as_tuples(item) for item in value)
  return value
