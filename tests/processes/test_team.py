"""Processes agree: what one sees, all act upon. Here each is a thread."""

import concurrent.futures
import threading

import pytest

from metalr_flax import errors
from metalr_flax.processes import team as team_lib

COUNT = 3


def together(action):
  """What `action(team)` returns or raises in each process of a team."""
  barrier, texts = threading.Barrier(COUNT), {}

  def exchange_of(index):
    def exchange(text):
      texts[index] = text
      barrier.wait(10)
      found = [texts[i] for i in range(COUNT)]
      barrier.wait(10)  # all have read
      return found

    return exchange

  def run(index):
    try:
      return action(team_lib.Team(index, COUNT, exchange_of(index)))
    except Exception as error:
      return error

  with concurrent.futures.ThreadPoolExecutor(COUNT) as pool:
    return [*pool.map(run, range(COUNT))]


def test_values_are_gathered_in_order():
  assert together(lambda g: g.gather({'i': g.index})) == (
    [[{'i': 0}, {'i': 1}, {'i': 2}]] * COUNT
  )


def test_the_first_alone_acts_and_all_know():
  acted = []

  def action(team):
    return team.first(lambda: acted.append(team.index) or [1, 'x'])

  assert together(action) == [[1, 'x']] * COUNT
  assert acted == [0]


def raising(error):
  def action():
    raise error

  return action


def test_what_the_first_raises_all_raise():
  found = together(
    lambda g: g.first(raising(errors.WorkdirError(f'in use, {g.index}')))
  )
  assert [type(e) for e in found] == [errors.WorkdirError] * COUNT
  assert [str(e) for e in found] == ['in use, 0'] * COUNT
  found = together(lambda g: g.first(raising(FileNotFoundError(2, 'none'))))
  assert all(isinstance(e, OSError) and 'none' in str(e) for e in found), found


def test_what_one_raises_all_raise():
  def action(team):
    bad = raising(errors.DataError('a shard is damaged'))
    return team.each(bad if team.index == 1 else lambda: team.index)

  found = together(action)
  assert [type(e) for e in found] == [errors.DataError] * COUNT
  assert str(found[1]) == 'a shard is damaged'
  assert str(found[0]) == str(found[2]) == 'process 1: a shard is damaged'


def test_where_none_raises_each_has_its_own():
  assert together(lambda g: g.each(lambda: g.index)) == [0, 1, 2]


class OwnError(Exception):
  """Of no kind that is shared unless asked for."""


def test_other_exceptions_are_shared_where_asked_for():
  found = together(lambda g: g.first(raising(OwnError('x')), OwnError))
  assert [type(e) for e in found] == [OwnError] * COUNT


def test_a_group_of_one_exchanges_nothing():
  alone = team_lib.ALONE
  unshared = object()
  assert alone.first(lambda: unshared) is unshared
  assert alone.each(lambda: unshared) is unshared
  assert alone.gather(unshared) == [unshared]
  with pytest.raises(OwnError):
    alone.first(raising(OwnError()))
