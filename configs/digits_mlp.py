"""Real data: handwritten digits and a small MLP.

  python -m metalr_flax.main --config=configs/digits_mlp.py

It takes about 10 seconds on two cores. The learning rate starts at 1e-4, ten
times too small; it rises to about 2e-3 and falls again as the net fits its
data. Test accuracy ends at 97.7 % (mean of seeds 0-4, each its own split).
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
  """The config of the digits run."""
  config = config_dict.ConfigDict()
  config.seed = 0
  config.num_outer_steps = 500

  # In outer steps.
  config.log_every = 20
  config.eval_every = 100
  config.checkpoint_every = 200

  config.task = config_dict.ConfigDict()
  config.task.name = 'digits'
  config.task.batch_size = 64
  config.task.path = ''
  # Another seed is another split, too.
  config.task.kwargs = config_dict.ConfigDict(
    {'split_seed': config.get_ref('seed')}
  )

  config.model = config_dict.ConfigDict()
  config.model.name = 'mlp'
  config.model.kwargs = config_dict.ConfigDict({'features': (64, 128, 10)})

  config.inner = config_dict.ConfigDict()
  config.inner.optimizer = 'rmsprop'
  config.inner.learning_rate = 1e-4  # the initial one
  config.inner.kwargs = config_dict.ConfigDict()

  config.meta = config_dict.ConfigDict()
  config.meta.learned = config_dict.ConfigDict({'learning_rate': 'sigmoid'})
  config.meta.unroll_length = 8  # K inner updates, then one held-out batch
  config.meta.estimator = 'forward'  # exact, in constant memory
  config.meta.remat = 'none'
  config.meta.curvature = 'exact'
  config.meta.subsample = 0.25  # of a batch, where curvature is 'subsample'
  config.meta.discount = 0.0
  config.meta.objective = 'held_out'
  config.meta.optimizer = 'adam'
  config.meta.learning_rate = 0.05

  config.threefry_partitionable = True
  return config
