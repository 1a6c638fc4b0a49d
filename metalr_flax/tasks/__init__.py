"""Tasks: data, loss and metrics. `TASKS` lists the ones a config can name."""

from metalr_flax.tasks.digits import Digits
from metalr_flax.tasks.linear_regression import LinearRegression
from metalr_flax.tasks.task import Task
from metalr_flax.tasks.text import Text

TASKS: dict[str, type[Task]] = {
  'digits': Digits,
  'linear_regression': LinearRegression,
  'text': Text,
}
