"""Your own images: a folder of files for each class, or NPZ arrays.

  python -m metalr_flax.main --config=configs/images.py

It takes about 25 seconds on two cores. Without a path of yours the images are
scikit-learn's 1797 digits of 8 x 8. The net has batch norm and dropout, and its
learning rate follows held-out images from 1e-3 up to 5e-3 and down again. Test
accuracy ends at 99.2 % (mean of seeds 0-1, each its own split).

Yours: --config.task.path=FOLDER, which has a folder of files for each class,
with --config.task.kwargs.size='(32, 32)', the model's in_channels and its
num_classes; docs/own_data.md says how they are read, and how to predict.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
  """The config of the images run."""
  config = config_dict.ConfigDict()
  config.seed = 0
  config.num_outer_steps = 300

  # In outer steps.
  config.log_every = 20
  config.eval_every = 100
  config.checkpoint_every = 100

  config.task = config_dict.ConfigDict()
  config.task.name = 'images'
  config.task.batch_size = 64
  config.task.path = ''  # a folder, or an NPZ file
  config.task.kwargs = config_dict.ConfigDict(
    {
      'size': (8, 8),  # height and width that images are resized to
      # Another seed is another split, too.
      'split_seed': config.get_ref('seed'),
    }
  )

  config.model = config_dict.ConfigDict()
  config.model.name = 'cnn'
  config.model.kwargs = config_dict.ConfigDict(
    {
      'features': (16, 32),  # channels; the image is halved between them
      'in_channels': 1,  # 3 for images with colours
      'num_classes': 10,
      'norm': 'batch',
      'dropout': 0.2,
    }
  )

  config.inner = config_dict.ConfigDict()
  config.inner.optimizer = 'adam'
  config.inner.learning_rate = 1e-3  # the initial one
  config.inner.kwargs = config_dict.ConfigDict()

  config.meta = config_dict.ConfigDict()
  config.meta.learned = config_dict.ConfigDict({'learning_rate': 'log'})
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
