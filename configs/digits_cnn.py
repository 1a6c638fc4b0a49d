"""Real data: handwritten digits and a small convolutional network.

  python -m metalr_flax.main --config=configs/digits_cnn.py

It takes about 25 seconds on two cores. The net has batch norm and dropout. The
learning rate starts at 1e-4, ten times too small; it rises to about 5e-3 and
falls again as the net fits its data. Test accuracy ends at 99.2 % (mean of
seeds 0-4, each its own split).
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
  """The config of the convolutional digits run."""
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
    {'flatten': False, 'split_seed': config.get_ref('seed')}
  )

  config.model = config_dict.ConfigDict()
  config.model.name = 'cnn'
  config.model.kwargs = config_dict.ConfigDict(
    {
      'features': (16, 32),  # channels; the image is halved between them
      'norm': 'batch',
      'dropout': 0.2,
    }
  )

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
