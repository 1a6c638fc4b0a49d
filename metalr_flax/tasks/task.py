"""The interface of a task: data, a loss, and batches to evaluate on.

A user's own task is one small class: derive from `Task`, write `init`, `next`
and `loss`, and name it in the config as `package.module:Class`.
"""

import abc
from collections.abc import Iterable
from typing import Any

from flax import nnx
import jax

PyTree = Any


class RefusedError(ValueError):
  """A task's arguments, its data or the model do not do.

  Its text is the rest of the error line: `<field>=<value>: <rule>; <remedy>`.
  A ValueError of a task means the same of `task.kwargs` as a whole.
  """


class Task(abc.ABC):
  """Data and loss of a training problem.

  The constructor is called with the config's `task.kwargs`, with `batch_size`
  if it has an argument of that name, and with `path` where the config gives
  one.

  `next` and `next_meta` run inside the jitted loop, many thousand times in one
  device call: pure JAX on what `data_state` holds and on arrays that belong to
  the task. `data_state` is saved with every checkpoint, so it holds the
  position (a key, a counter), never the data.

  Attributes:
    loss_label: what the loss measures and its unit, for the picture of a run,
      e.g. 'cross-entropy (nats)'.
  """

  loss_label = 'loss'

  @abc.abstractmethod
  def init(self, rng: jax.Array) -> PyTree:
    """The sampler's first state, a pytree of arrays.

    Args:
      rng: the run's key, `jax.random.key(seed)`.
    """

  @abc.abstractmethod
  def next(self, data_state: PyTree) -> tuple[PyTree, PyTree]:
    """Draws a batch for an inner update: `(data_state, batch)`."""

  def next_meta(self, data_state: PyTree) -> tuple[PyTree, PyTree]:
    """Draws a batch for the outer loss; the next one of the same stream.

    Where an example can come twice, give batches of examples that `next` never
    draws: the outer loss is to say what generalises. A run that is without
    them says so when it starts.
    """
    return self.next(data_state)

  @abc.abstractmethod
  def loss(
    self, model: nnx.Module, batch: PyTree
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of a model on a batch, a scalar, and more scalars by name."""

  def objective(
    self, model: nnx.Module, data_state: PyTree
  ) -> jax.Array | None:
    """The training objective without sampling noise, to compare runs by.

    Pure JAX, as `next` is. Nothing is trained on it.

    Args:
      model: where to evaluate it.
      data_state: the position of the stream, for a task that changes along it.

    Returns:
      A scalar, or None, as here, where only batches can tell.
    """
    del model, data_state
    return None

  def eval_batches(self) -> Iterable[PyTree]:
    """Batches never trained on; their mean, weighted by size, is `eval/*`.

    The size of a batch is the length of its first array. No batches, as here,
    means no evaluation.
    """
    return ()

  def summarize(self, model: nnx.Module) -> dict[str, jax.Array]:
    """Scalars of the model itself to log at each step, as `params/<name>`."""
    del model
    return {}

  def known_answers(self) -> dict[str, float]:
    """The values that a perfect model would end at, where they are known.

    The picture of a run has a line there, and the console says them.

    Returns:
      Numbers by name. The names are `loss`, which is what the noise in the
      data leaves, and those of `summarize`. Nothing, as here, where no answer
      is known.
    """
    return {}
