"""The reference run: y = 10 x + noise, and a learning rate that learns.

  python -m metalr_flax.main --config=configs/default.py

It takes about 4 seconds on two cores. The learning rate starts at 0.1, peaks at
0.158 after about 60 outer steps and ends at 0.0628; theta ends at 9.92, where
the answer is 10, and eval/loss at 0.62, where the noise in the data is 0.5.

Each update sees one sample, so theta jumps about 10 and eval/loss with it; the
four values that are printed happen to rise. Over the outer steps 50 to 500
theta is off by 0.126 (root mean square), over the last 500 by 0.080: that is
what the falling rate is for, and the plot shows it.

It repeats optax's meta-learning example, sample for sample:
https://optax.readthedocs.io/en/latest/_collections/examples/meta_learning.html
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
  """The config of the reference run."""
  config = config_dict.ConfigDict()
  config.seed = 0  # the data's key; the model's initial value has its own
  config.num_outer_steps = 2000

  # In outer steps.
  config.log_every = 20
  config.eval_every = 500
  config.checkpoint_every = 1000

  config.task = config_dict.ConfigDict()
  config.task.name = 'linear_regression'
  config.task.batch_size = 1
  config.task.path = ''
  config.task.kwargs = config_dict.ConfigDict({'skip': 5})

  config.model = config_dict.ConfigDict()
  config.model.name = 'linear'
  config.model.kwargs = config_dict.ConfigDict({'init_seed': 42})

  config.inner = config_dict.ConfigDict()
  config.inner.optimizer = 'rmsprop'
  config.inner.learning_rate = 0.1  # the initial one
  config.inner.kwargs = config_dict.ConfigDict()

  config.meta = config_dict.ConfigDict()
  # learning_rate = sigmoid(eta)
  config.meta.learned = config_dict.ConfigDict({'learning_rate': 'sigmoid'})
  config.meta.unroll_length = 6  # K inner updates, then one held-out batch
  config.meta.estimator = 'forward'  # exact, in constant memory
  config.meta.remat = 'none'
  config.meta.curvature = 'exact'
  config.meta.subsample = 0.25  # of a batch, where curvature is 'subsample'
  config.meta.discount = 0.0
  config.meta.objective = 'held_out'
  config.meta.optimizer = 'adam'
  config.meta.learning_rate = 0.03

  # The example was made when this was JAX's default; other samples otherwise.
  config.threefry_partitionable = False
  return config
