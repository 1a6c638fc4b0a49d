"""Compares self_tuning with tuned baselines on seven small problems.

  python -m metalr_flax.compare --config=configs/compare.py
      [--config.only=digits_mlp,text] [--config.methods=constant,self_tuning]

It takes about two hours on two cores, one and a half for `text`: leave that out
with `only`. The same command goes on where it was stopped; `only` and `methods`
may be others then. A problem of your own is one more section below, of any task
and model of the project or of your own, `module:Class`.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
  """The config of the comparison."""
  config = config_dict.ConfigDict()
  config.seed = 0
  config.num_seeds = 5  # seeds seed, seed + 1, ...; a problem may have its own
  config.num_evaluations = 40  # evenly spaced; the last tenth is the result

  # The inner optimizers, with what else than the rate they are given.
  config.optimizers = config_dict.ConfigDict(
    {'sgd': {'momentum': 0.9}, 'rmsprop': {}, 'adam': {}}
  )
  # The grid of `constant`, `cosine` and `linear`, in half decades.
  config.learning_rates = (
    1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0,
  )  # fmt: skip
  # Where `self_tuning` and `trainer` start.
  config.initial_learning_rates = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0)

  config.methods = (
    'constant',
    'cosine',
    'linear',
    'self_tuning',
    'trainer',
    'mechanize',
    'mechanize_cosine',
    'prodigy',
    'prodigy_cosine',
    'dadapt_adamw',
    'dadapt_adamw_cosine',
    'dog',
    'dowg',
    'cocob',
    'momo_adam',
    'schedule_free_adamw',
  )
  config.only = ()  # the problems to do now, () for all

  config.problems = _problems()
  return config


def _problems() -> config_dict.ConfigDict:
  """The seven of them, by name."""
  problems = config_dict.ConfigDict()
  problems.noisy_quadratic = _problem(
    'noisy_quadratic', 'vector', {'size': 100}, batch_size=1, num_steps=2000
  )
  problems.ill_conditioned_regression = _problem(
    'ill_conditioned_regression',
    'vector',
    {'size': 50, 'scale': 0.1},
    batch_size=32,
    num_steps=2000,
  )
  problems.breast_cancer = _problem(
    'breast_cancer', 'mlp', {'features': (30, 2)}, batch_size=32, num_steps=2000
  )
  problems.digits_mlp = _problem(
    'digits',
    'mlp',
    {'features': (64, 64, 64, 10)},
    batch_size=32,
    num_steps=2000,
  )
  # The two heaviest: fewer updates and seeds, and no pass over all the data.
  problems.digits_cnn = _problem(
    'digits',
    'cnn',
    {'features': (8, 16), 'norm': 'layer', 'dropout': 0.0},
    batch_size=32,
    task_kwargs={'flatten': False},
    num_steps=400,
    num_seeds=3,
    objective='batches',
  )
  problems.text = _problem(
    'text',
    'transformer',
    {
      'vocab_size': 256,
      'd_model': 32,
      'num_heads': 2,
      'num_layers': 2,
      'dropout': 0.0,
    },
    batch_size=16,
    task_kwargs={'sequence_length': 32},
    num_steps=400,
    num_seeds=3,
    objective='batches',
  )
  problems.drifting_target = _problem(
    'drifting_target', 'vector', {'size': 20}, batch_size=1, num_steps=2000
  )
  return problems


def _problem(
  task: str,
  model: str,
  model_kwargs: dict,
  *,
  batch_size: int,
  num_steps: int,  # a multiple of 8, the trainer's window
  task_kwargs: dict | None = None,
  num_seeds: int | None = None,  # the comparison's
  objective: str = 'task',  # its own, or the mean training loss: 'batches'
) -> config_dict.ConfigDict:
  """A problem: a task, a model, and how long they are trained."""
  problem = config_dict.ConfigDict()
  problem.task = config_dict.ConfigDict(
    {
      'name': task,
      'batch_size': batch_size,
      'path': '',
      'kwargs': task_kwargs or {},
    }
  )
  problem.model = config_dict.ConfigDict(
    {'name': model, 'kwargs': model_kwargs}
  )
  problem.num_steps = num_steps
  if num_seeds is not None:
    problem.num_seeds = num_seeds
  problem.objective = objective
  return problem
