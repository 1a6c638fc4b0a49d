"""Which values of a test's table a person waits for."""

import pytest


def parametrize(argument, values, quick, *, key=str, full=()):
  """`pytest.mark.parametrize`, with all values but the quick ones thorough.

  Args:
    argument: the test's argument.
    values: all of them.
    quick: the keys of those that every session tries.
    key: from a value to its key, which is the test's id.
    full: the keys of those that repeat others and are left to `--full`.
  """
  keys = [key(value) for value in values]
  quick, full = ([*map(str, names)] for names in (quick, full))
  missing = {*quick, *full} - {*keys}
  assert not missing, missing

  def marks(name):
    if name in full:
      return pytest.mark.full
    return [] if name in quick else pytest.mark.thorough

  return pytest.mark.parametrize(
    argument,
    [
      pytest.param(value, id=name, marks=marks(name))
      for value, name in zip(values, keys, strict=True)
    ],
  )
