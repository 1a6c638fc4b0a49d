"""The best evaluation so far: its checkpoint, and when to stop for want of one.

What is remembered goes into every checkpoint, so a run decides the same however
it is cut into parts.
"""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

from metalr_flax import errors
from metalr_flax.config import check
from metalr_flax.engine import records


@dataclasses.dataclass(frozen=True, kw_only=True)
class Standing:
  """The best evaluation of a run so far.

  Attributes:
    metric: key of the value that is compared, such as `eval/loss`; empty where
      none is.
    largest: whether the largest value is the best one.
    step: outer step of the best evaluation; None before there is one.
    value: its value, always finite: NaN is never the best.
    since: evaluations after it.
    patience: how many of them end the run; 0 for no number.
  """

  metric: str
  largest: bool
  step: int | None = None
  value: float = math.nan
  since: int = 0
  patience: int = 0

  def after(self, step: int, value: float) -> 'Standing':
    """The standing after one more evaluation, at outer step `step`."""
    if math.isfinite(value) and self._is_better(value):
      return dataclasses.replace(self, step=step, value=value, since=0)
    return dataclasses.replace(self, since=self.since + 1)

  def _is_better(self, value: float) -> bool:
    if self.step is None:
      return True
    return value > self.value if self.largest else value < self.value

  @property
  def is_stalled(self) -> bool:
    """Whether so many evaluations were no better that the run is to end."""
    return 0 < self.patience <= self.since

  def why(self) -> str:
    """Says why a run ends early."""
    if self.step is None:
      return f'{self.metric} was finite in none of {self.since} evaluations'
    return (
      f'{self.metric} was best at outer step {self.step} ({self.value:.6g}) '
      f'and no better in the {self.since} evaluations since'
    )

  def record(self) -> dict[str, Any]:
    """What a checkpoint keeps of it, JSON values; `{}` without a metric."""
    if not self.metric:
      return {}
    best = {'step': self.step, 'since': self.since}
    return {'best': best if self.step is None else best | {'value': self.value}}

  def results(self) -> dict[str, Any]:
    """What `results.json` says of it; `{}` where no evaluation counted."""
    if self.step is None:
      return {}
    return {'best/outer_step': self.step, f'best/{self.metric}': self.value}


def standing(config: Mapping[str, Any], record: Mapping[str, Any]) -> Standing:
  """The standing that a run begins with.

  Args:
    config: resolved.
    record: of the checkpoint it goes on from; an empty one for a new run.
  """
  order, _, metric = config['best_metric'].rpartition(':')
  largest = order == 'max' if order else metric.endswith('accuracy')
  new = Standing(metric=metric, largest=largest, patience=config['patience'])
  return dataclasses.replace(new, **record.get('best', {}))


def check_metric(
  config: Mapping[str, Any], evaluation: records.Metrics
) -> None:
  """Refuses a `best_metric` that the task's evaluation does not have.

  Args:
    config: resolved.
    evaluation: values by name, or their shapes.

  Raises:
    ConfigError: naming those that it has.
  """
  metric = standing(config, {}).metric
  known = tuple(f'eval/{name}' for name in evaluation)
  if metric and metric not in known:
    task = config['task']['name']
    raise errors.ConfigError.of(
      'best_metric',
      config['best_metric'],
      'must be a value of the evaluation',
      check.suggest(metric, known)
      if known
      else f'task.name={task} has no evaluation; leave it out',
    )
