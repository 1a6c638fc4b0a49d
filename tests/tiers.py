"""Which values of a test's table a person waits for."""

import pytest


def parametrize(argument, values, quick, *, key=str):
  """`pytest.mark.parametrize`, with all values but the quick ones thorough.

  Args:
    argument: the test's argument.
    values: all of them.
    quick: the keys of those that every session tries.
    key: from a value to its key, which is the test's id.
  """
  keys = [key(value) for value in values]
  missing = {*map(str, quick)} - {*keys}
  assert not missing, missing
  return pytest.mark.parametrize(
    argument,
    [
      pytest.param(
        value,
        id=name,
        marks=[] if name in [*map(str, quick)] else pytest.mark.thorough,
      )
      for value, name in zip(values, keys, strict=True)
    ],
  )
