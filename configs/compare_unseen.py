"""Compares self_tuning with searches by the loss on unseen data.

  python -m metalr_flax.compare --config=configs/compare_unseen.py
      [--config.only=digits_small] [--config.methods=constant,self_tuning]

It takes about five minutes on two cores. Every run is stopped where its
held-out loss was least, `constant` and `cosine` are picked from learning rates
times weight decays by that loss, and reported is the test loss. `self_tuning`
is given a held-out gradient at every fourth update, and learns the decay as
well where the optimizer has one (adamw).
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
  """The config of the comparison."""
  config = config_dict.ConfigDict()
  config.seed = 0
  config.num_seeds = 3  # seeds seed, seed + 1, ...: other weights and batches
  config.num_evaluations = 40  # evenly spaced; a run may be stopped at each

  # The inner optimizers, with what else than rate and decay they are given.
  config.optimizers = config_dict.ConfigDict(
    {'adamw': {}, 'sgd': {'momentum': 0.9}, 'rmsprop': {}}
  )
  # The grid of `constant` and `cosine`; the decays for adamw alone.
  config.learning_rates = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3)
  config.weight_decays = (0.0, 1e-2, 0.1, 1.0)
  # Where `self_tuning` and `trainer` start.
  config.initial_learning_rates = (1e-5, 1e-3, 0.1)

  config.methods = (
    'constant',
    'cosine',
    'self_tuning',
    'trainer',
    'prodigy_cosine',
    'schedule_free_adamw',
  )
  config.only = ()  # the problems to do now, () for all

  config.problems = config_dict.ConfigDict()
  # 170 examples to train on, 171 held out, and 228 unseen ones.
  thirds = {'meta_fraction': 0.3, 'test_fraction': 0.4}
  config.problems.breast_cancer = _problem('breast_cancer', (30, 2), **thirds)
  config.problems.breast_cancer_mlp = _problem(
    'breast_cancer', (30, 64, 2), **thirds
  )
  # 269 examples, 270 and 1258.
  config.problems.digits_small = _problem(
    'digits', (64, 64, 10), test_fraction=0.7
  )
  # 1167 examples, 270 and 360.
  config.problems.digits_large = _problem('digits', (64, 64, 10))
  return config


def _problem(
  task: str, features: tuple[int, ...], **task_kwargs: float
) -> config_dict.ConfigDict:
  """A problem: a task and a multilayer perceptron."""
  problem = config_dict.ConfigDict()
  problem.task = config_dict.ConfigDict(
    {'name': task, 'batch_size': 32, 'path': '', 'kwargs': task_kwargs}
  )
  problem.model = config_dict.ConfigDict(
    {'name': 'mlp', 'kwargs': {'features': features}}
  )
  problem.num_steps = 1000
  problem.objective = 'unseen'
  return problem
