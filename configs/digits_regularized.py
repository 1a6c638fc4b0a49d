"""What generalises: rate, weight decay and label smoothing from held-out data.

  python -m metalr_flax.main --config=configs/digits_regularized.py

It takes about 10 seconds on two cores. The digits MLP with AdamW; all three are
learned together on held-out digits, by the drop-in's rule. Label smoothing is a
hyperparameter of the loss: the training loss has it, the outer loss and the
evaluation do not. On the test digits the loss ends at 0.055 and the accuracy at
98.7 % (means of seeds 0-4, each its own split); with the rate alone learned in
the same way it is 0.110 and 97.7 %.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
  """The config of the regularized digits run."""
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
  # Arguments of the task's loss in training; learned where `learned` has them.
  config.task.loss_kwargs = config_dict.ConfigDict({'label_smoothing': 0.01})

  config.model = config_dict.ConfigDict()
  config.model.name = 'mlp'
  config.model.kwargs = config_dict.ConfigDict({'features': (64, 128, 10)})

  config.inner = config_dict.ConfigDict()
  config.inner.optimizer = 'adamw'
  # 'steering' starts at a rate of 1e-5 and a weight decay of 1e-3.
  config.inner.learning_rate = 1e-3
  config.inner.kwargs = config_dict.ConfigDict({'weight_decay': 1e-3})

  config.meta = config_dict.ConfigDict()
  config.meta.learned = config_dict.ConfigDict(
    {
      'learning_rate': 'log',
      'weight_decay': 'log',
      'label_smoothing': 'sigmoid',
    }
  )
  config.meta.unroll_length = 8  # K inner updates, then one held-out batch
  config.meta.estimator = 'forward'  # exact, in constant memory
  config.meta.remat = 'none'
  config.meta.curvature = 'exact'
  config.meta.subsample = 0.25  # of a batch, where curvature is 'subsample'
  config.meta.discount = 0.9  # weight decay works slowly: look back 10 windows
  config.meta.objective = 'held_out'
  config.meta.optimizer = 'steering'  # the drop-in's rule
  config.meta.learning_rate = 0.0  # of an optax optimizer; 'steering' has none

  config.threefry_partitionable = True
  return config
