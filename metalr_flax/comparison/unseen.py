"""Measures a model on data that it never saw: held-out batches, and a test set.

Held-out data decide, test data report: where a run is stopped and which setting
of a grid counts is a matter of the held-out loss alone.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from metalr_flax import errors
from metalr_flax import tasks
from metalr_flax.engine import losses
from metalr_flax.engine import records
from metalr_flax.models import functional
from metalr_flax.trainer import build_named
from metalr_flax.trainer import evaluate

PyTree = Any
MeanLoss = Callable[[PyTree, PyTree], jax.Array]  # (params, model_state)
# With batches of 32 these are 256 examples, more than the 100 that held-out
# losses want (docs/self_tuning.md), and nearly all that the small tasks hold
# out: 8 batches of 270 digits, four passes over 85 tumours. An evaluation costs
# no more than 8 forward passes.
NUM_HELD_OUT = 8
_STREAM = 0x686F6C64  # a key that no run starts from


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unseen:
  """What a problem has besides its training data.

  Attributes:
    next_batch: `data_state -> (data_state, batch)`, a held-out one.
    loss_fn: the loss of such a batch to differentiate: without dropout, with
      the batch's own statistics, as the trainer's outer loss.
    measure: `(params, model_state) -> losses [2]`, on the fixed held-out
      batches and on the whole test set, of the model in evaluation mode.
    loss_label: what the losses measure and their unit.
  """

  next_batch: records.NextBatch
  loss_fn: records.LossFn
  measure: Callable[[PyTree, PyTree], jax.Array]
  loss_label: str


def build_unseen(
  section: Mapping[str, Any],
  task: tasks.Task,
  split: functional.Split,
  seed: int,
) -> Unseen:
  """Builds what a problem's losses on unseen data need.

  Args:
    section: the problem's, of the config.
    task: its task.
    split: its model.
    seed: the comparison's; the held-out batches to measure are drawn once.

  Raises:
    ConfigError: for a task without held-out batches of its own or without
      test data.
  """
  test = list(task.eval_batches())
  _check(section['task']['name'], task, len(test))
  return Unseen(
    next_batch=task.next_meta,
    loss_fn=functional.make_loss_fn(split.meta, task.loss),
    measure=_make_measure(
      make_mean_loss(task, split, _draw_held_out(task, seed)),
      make_mean_loss(task, split, test),
    ),
    loss_label=task.loss_label,
  )


def _check(name: str, task: tasks.Task, num_test: int) -> None:
  if not build_named.has_next_meta(task):
    raise errors.ConfigError.of(
      'objective',
      'unseen',
      f'needs held-out batches, and the task {name} has no next_meta',
      'give it one of examples that next never draws, or another objective',
    )
  if not num_test:
    raise errors.ConfigError.of(
      'objective',
      'unseen',
      f'needs test data, and eval_batches of the task {name} gives none',
      'give it some, or another objective',
    )


def _draw_held_out(task: tasks.Task, seed: int) -> list[PyTree]:
  """The fixed held-out batches, the same for all methods and seeds."""
  key = jax.random.fold_in(jax.random.key(seed), _STREAM)
  data_state, batches = task.init(key), []
  for _ in range(NUM_HELD_OUT):
    data_state, batch = task.next_meta(data_state)
    batches.append(batch)
  return batches


def make_mean_loss(
  task: tasks.Task, split: functional.Split, batches: list[PyTree]
) -> MeanLoss:
  """Makes the mean loss on some batches of the model in evaluation mode.

  Args:
    task: whose loss it is.
    split: the model.
    batches: the data, at least one batch.

  Returns:
    `(params, model_state) -> loss`, a scalar.
  """
  loss_fn = functional.make_loss_fn(split.eval, task.loss)
  measure = evaluate.make_evaluate(losses.checked('loss_fn', loss_fn), batches)
  return lambda params, model_state: measure(params, model_state)['loss']


def _make_measure(held_out: MeanLoss, test: MeanLoss) -> MeanLoss:
  """The held-out loss and the test loss as one function, [2]."""
  return lambda *given: jnp.stack([held_out(*given), test(*given)])
