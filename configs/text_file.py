"""Your own text: a transformer that predicts the next character.

  python -m metalr_flax.main --config=configs/text_file.py

It takes about a minute and a half on two cores. Without a path of yours the
text is the Python manual's, 466 kB. The learning rate follows held-out text
from 1e-3 up to 4e-3 and down to 2e-4. The test loss ends at 1.38 nats or 1.99
bits a character with the manual of Python 3.11, seed 0.

Yours, UTF-8: --config.task.path=FILE, or a folder of files, and the model's
vocab_size; docs/own_data.md says how it is read, and how to go on writing it.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
  """The config of the run on a text."""
  config = config_dict.ConfigDict()
  config.seed = 0
  config.num_outer_steps = 250

  # In outer steps.
  config.log_every = 20
  config.eval_every = 50
  config.checkpoint_every = 100

  config.task = config_dict.ConfigDict()
  config.task.name = 'text'
  config.task.batch_size = 16
  config.task.path = ''  # a file of UTF-8 text, or a folder of them
  config.task.kwargs = config_dict.ConfigDict(
    {'unit': 'characters', 'sequence_length': 64}
  )

  config.model = config_dict.ConfigDict()
  config.model.name = 'transformer'
  config.model.kwargs = config_dict.ConfigDict(
    {
      # At least the characters of the text and one for unknown ones.
      'vocab_size': 128,
      'd_model': 64,
      'num_heads': 4,
      'num_layers': 2,
      'dropout': 0.0,
    }
  )

  config.inner = config_dict.ConfigDict()
  config.inner.optimizer = 'adam'
  config.inner.learning_rate = 1e-3  # the initial one
  config.inner.kwargs = config_dict.ConfigDict()

  config.meta = config_dict.ConfigDict()
  config.meta.learned = config_dict.ConfigDict({'learning_rate': 'log'})
  config.meta.unroll_length = 8  # K inner updates, then one held-out batch
  config.meta.estimator = 'forward'
  config.meta.remat = 'none'
  # Tangents kept from window to window, without the Hessian: a step costs
  # little more than plain training.
  config.meta.curvature = 'none'
  config.meta.subsample = 0.25  # of a batch, where curvature is 'subsample'
  config.meta.discount = 0.99
  config.meta.objective = 'held_out'
  config.meta.optimizer = 'adam'
  config.meta.learning_rate = 0.05

  config.threefry_partitionable = True
  return config
