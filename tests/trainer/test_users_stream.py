"""A Grain dataset of the user's own trains by config alone."""

import json
import textwrap

import jax.numpy as jnp
import numpy as np
import pytest
import runs

import metalr_flax

DATASET = """
  import grain
  import numpy as np


  def examples(split, seed):
    first = {'train': 0, 'meta': 200, 'test': 300}[split]
    return grain.MapDataset.range(first, first + 100).map(example)


  def example(number):
    x = np.random.default_rng(number).standard_normal(3).astype(np.float32)
    return {'x': x, 'label': np.int32(x[0] > x[1])}
"""


@pytest.mark.thorough
def test_it_trains_resumes_exports_and_predicts(tmp_path, monkeypatch):
  (tmp_path / 'users_dataset.py').write_text(textwrap.dedent(DATASET))
  monkeypatch.syspath_prepend(tmp_path)
  fields = {
    'task__name': 'stream',
    'task__batch_size': 16,
    'task__kwargs': {'dataset': 'users_dataset:examples', 'input_name': 'x'},
    'model__name': 'mlp',
    'model__kwargs': {'features': (3, 2)},
    'inner__learning_rate': 0.01,
    'num_outer_steps': 40,
    'eval_every': 20,
    'checkpoint_every': 20,
  }
  whole, cut = tmp_path / 'whole', tmp_path / 'cut'
  runs.run_here(whole, **fields)
  runs.run_here(cut, **{**fields, 'num_outer_steps': 13})
  runs.run_here(cut, **fields)
  runs.assert_same_run(whole, cut)
  model, config, schedule = metalr_flax.load(whole)
  assert config.task.name == 'stream'
  assert float(schedule(10**6)) > 0.01
  x = np.random.default_rng(0).standard_normal((200, 3)).astype(np.float32)
  predicted = jnp.argmax(model(x), axis=-1)
  assert np.mean(predicted == (x[:, 0] > x[:, 1])) > 0.9
  results = json.loads((whole / 'results.json').read_text())
  assert results['eval/accuracy'] > 0.9
