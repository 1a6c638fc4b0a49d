"""Tasks: data, loss and metrics. `TASKS` lists the ones a config can name."""

from metalr_flax.tasks.breast_cancer import BreastCancer
from metalr_flax.tasks.classification_stream import ClassificationStream
from metalr_flax.tasks.digits import Digits
from metalr_flax.tasks.images import Images
from metalr_flax.tasks.linear_regression import LinearRegression
from metalr_flax.tasks.quadratic import NoisyQuadratic
from metalr_flax.tasks.regression import DriftingTarget
from metalr_flax.tasks.regression import IllConditionedRegression
from metalr_flax.tasks.stream import Stream as Stream
from metalr_flax.tasks.table import Table
from metalr_flax.tasks.task import RefusedError as RefusedError
from metalr_flax.tasks.task import Task
from metalr_flax.tasks.text import Text

TASKS: dict[str, type[Task]] = {
  'breast_cancer': BreastCancer,
  'digits': Digits,
  'drifting_target': DriftingTarget,
  'ill_conditioned_regression': IllConditionedRegression,
  'images': Images,
  'linear_regression': LinearRegression,
  'noisy_quadratic': NoisyQuadratic,
  'stream': ClassificationStream,
  'table': Table,
  'text': Text,
}
