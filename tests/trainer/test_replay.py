"""What a run learned, replayed by a plain optax loop."""

import numpy as np
import optax
import references
import runs
import tiers

import metalr_flax
from metalr_flax.config import check
from metalr_flax.trainer import build
from metalr_flax.workdir import metrics_csv


@tiers.parametrize('name', ['rmsprop', 'adam', 'sgd'], [])
def test_a_plain_run_with_the_schedule_reproduces_the_losses(name, tmp_path):
  """The same rates at the same updates, on the same batches, from theta_0."""
  runs.run_here(
    tmp_path, 'digits_mlp', num_outer_steps=60, inner__optimizer=name
  )
  columns = metrics_csv.read(tmp_path / 'metrics.csv')
  _, config, schedule = metalr_flax.load(tmp_path)
  experiment = build.build(check.resolve(config.to_dict()))
  start, problem = experiment.init_state(), experiment.problem
  tx = getattr(optax, name)(schedule)
  loop = references.plain_loop(
    tx,
    lambda params, batch: problem.loss_fn(params, start.model_state, batch)[0],
    problem.next_batch,
    steps=60 * problem.unroll_length,
  )
  _, losses = loop(start.params, tx.init(start.params), start.data_state)
  replayed = np.mean(np.reshape(losses, (60, -1)), axis=1)
  learned = columns['train/loss']
  np.testing.assert_allclose(replayed, learned, rtol=0.02)
  assert learned[-1] < 0.9 * learned[0]
  rates = columns['hyperparams/learning_rate']
  assert max(rates) / min(rates) > 2
