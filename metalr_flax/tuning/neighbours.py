"""What stands beside `self_tuning` in a chain of optax, read from the states.

Inside an update a transformation sees neither those before it nor those after
it. The chain's state shows both, and looking at it costs an update nothing.
"""

from collections.abc import Iterator
from typing import Any
import warnings

import jax

from metalr_flax.engine.records import PyTree
from metalr_flax.tuning.state import SelfTuningState


def warn(opt_state: PyTree, stacklevel: int) -> None:
  """Warns of neighbours that what is learned cannot be right beside.

  Args:
    opt_state: a state with `SelfTuningState` somewhere in it.
    stacklevel: of the call that the warning shall name, 1 being this one.
  """
  for before, after in _find(opt_state):
    for name in map(_name, filter(_keeps_arrays, before)):
      warnings.warn(
        f'self_tuning: {name} comes before it in a chain: what it gets must be '
        f'gradients, at most clipped or decayed; put both into inner_tx',
        stacklevel=stacklevel + 1,
      )
    for name in map(_name, after):
      warnings.warn(
        f'self_tuning: {name} comes after it in a chain: what changes its '
        f'updates is not learned with; put it last, the rest into inner_tx',
        stacklevel=stacklevel + 1,
      )


def _find(opt_state: PyTree) -> Iterator[tuple[list[Any], list[Any]]]:
  """The states before and after ours of every chain that it stands in."""
  nodes = jax.tree.leaves(opt_state, is_leaf=_is_chain_of_ours)
  for chain in filter(_is_chain_of_ours, nodes):
    place = [*map(_is_ours, chain)].index(True)
    parts = chain[:place], chain[place + 1 :]
    before, after = ([s for s in part if _is_state(s)] for part in parts)
    yield before, after
    yield from _find(chain[place])


def _is_ours(node: Any) -> bool:
  return isinstance(node, SelfTuningState) or _is_chain_of_ours(node)


def _is_chain_of_ours(node: Any) -> bool:
  """Whether it is the state of `optax.chain` with ours as one of its links."""
  return type(node) is tuple and any(map(_is_ours, node))


def _is_state(node: Any) -> bool:
  """Whether it is a transformation's: a user's own tuple has other things."""
  return isinstance(node, tuple) and hasattr(node, '_fields')


def _keeps_arrays(state: Any) -> bool:
  """Whether it remembers gradients, as momenta do and clipping does not."""
  return any(jax.numpy.ndim(leaf) for leaf in jax.tree.leaves(state))


def _name(state: Any) -> str:
  return type(state).__name__
