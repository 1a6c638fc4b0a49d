"""Your own table: predict a column of a CSV or Parquet file from the others.

  python -m metalr_flax.main --config=configs/table.py

It takes about 10 seconds on two cores. Without a path of yours the table is
scikit-learn's diabetes data: 442 patients, 10 measurements, and the course of
the disease, a number from 25 to 346. The learning rate and the weight decay
are learned on held-out patients, by the drop-in's rule. On the test patients
the root of the mean squared error ends at 55.7 (mean of seeds 0-4, each its own
split), as that of least squares does; always saying the mean is off by 73.4.

Yours: --config.task.path=FILE --config.task.kwargs.target=COLUMN, with
--config.task.kwargs.categorical='()' and the model's features; docs/own_data.md
says how columns are read, and how to predict.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
  """The config of the table run."""
  config = config_dict.ConfigDict()
  config.seed = 0
  config.num_outer_steps = 300

  # In outer steps.
  config.log_every = 20
  config.eval_every = 100
  config.checkpoint_every = 200

  config.task = config_dict.ConfigDict()
  config.task.name = 'table'
  config.task.batch_size = 32
  config.task.path = ''  # a CSV or Parquet file
  config.task.kwargs = config_dict.ConfigDict(
    {
      'target': 'target',  # the column to predict
      'categorical': ('sex',),  # a number in the file, and no amount
      'drop': (),
      # Another seed is another split, too.
      'split_seed': config.get_ref('seed'),
    }
  )

  config.model = config_dict.ConfigDict()
  config.model.name = 'mlp'
  # From 9 numbers and 2 categories to 1 number; of another table an error line
  # says the right sizes.
  config.model.kwargs = config_dict.ConfigDict({'features': (11, 32, 1)})

  config.inner = config_dict.ConfigDict()
  config.inner.optimizer = 'adamw'
  # 'steering' starts at a rate of 1e-5 and a weight decay of 1e-3.
  config.inner.learning_rate = 1e-3
  config.inner.kwargs = config_dict.ConfigDict({'weight_decay': 1e-3})

  config.meta = config_dict.ConfigDict()
  config.meta.learned = config_dict.ConfigDict(
    {'learning_rate': 'log', 'weight_decay': 'log'}
  )
  config.meta.unroll_length = 8  # K inner updates, then one held-out batch
  config.meta.estimator = 'forward'
  config.meta.remat = 'none'
  config.meta.curvature = 'none'
  config.meta.subsample = 0.25  # of a batch, where curvature is 'subsample'
  config.meta.discount = 0.9
  config.meta.objective = 'held_out'
  config.meta.optimizer = 'steering'
  config.meta.learning_rate = 0.05  # not used by 'steering'

  config.threefry_partitionable = True
  return config
