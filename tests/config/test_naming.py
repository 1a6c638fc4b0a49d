"""Workdirs named after the fields of their configs."""

import pathlib
import shlex

import pytest
import runs

from metalr_flax import errors
from metalr_flax.config import flags
from metalr_flax.workdir import folder

DEFAULT = f'--config={runs.CONFIGS / "default.py"}'


def named(template, *argv):
  arguments = flags.parse(
    'metalr_flax.main', [DEFAULT, f'--workdir={template}', *argv], ''
  )
  return str(arguments.workdir)


@pytest.mark.parametrize(
  ('template', 'argv', 'name'),
  [
    ('x/lr{inner.learning_rate}_seed{seed}', [], 'x/lr0.1_seed0'),
    ('lr{inner.learning_rate}', ['--config.inner.learning_rate=1e-5'], 'lr1e-05'),
    ('{seed}/{task.name}', ['--config.seed=3'], '3/linear_regression'),
    ('{model.kwargs.init_seed}', [], '42'),
    ('{meta.learned.learning_rate}', ['--config.meta.learned.learning_rate=sigmoid(0, 0.5)'], 'sigmoid-0-0.5'),
    ('{meta.groups}', ['--config.meta.groups=my.module:label'], 'my.module-label'),
    ('a{task.path}', ['--config.task.path=/data/../x y.csv'], 'adata-..-x-y.csv'),
    ('a{task.path}', [], 'anone'),
    ('{task.path}', ['--config.task.path=..'], 'none'),
    ('{threefry_partitionable}', [], 'False'),
    ('{model.kwargs.features}', ["--config.model.kwargs={'features': (1, 2)}"], '1+2'),
    ('{{seed}}', [], '{seed}'),
    ('{{{seed}}}', [], '{0}'),
    ('plain', [], 'plain'),
  ],
)  # fmt: skip
def test_fields_are_filled_in(template, argv, name):
  assert named(template, *argv) == name


@pytest.mark.parametrize(
  ('template', 'parts'),
  [
    ('{inner.learning_rte}', ['inner.learning_rte is no field of this config; did you mean inner.learning_rate?', '{{ }}']),
    ('{learning_rate}', ['did you mean ', 'learning_rate?']),
    ('{}', ['known are ', 'inner.learning_rate']),
    ('{0}', ['0 is no field']),
    ('{seed:03d}', ['seed:03d is no field of this config; did you mean seed?']),
    ('{seed!r}', ['seed!r is no field']),
    ('{inner}', ['inner is no field']),
    ('{seed', ["has a lone brace; the name's own are written {{ }}"]),
    ('seed}', ['has a lone brace']),
  ],
)  # fmt: skip
def test_what_is_no_field_is_refused(template, parts):
  with pytest.raises(errors.ConfigError) as caught:
    named(template)
  line = str(caught.value)
  assert line.startswith(f'workdir={template}: ')
  for part in parts:
    assert part in line


def test_a_comparison_has_its_own_fields():
  argv = [
    f'--config={runs.CONFIGS / "compare.py"}',
    '--config.only=text,digits_mlp',
  ]
  argv += ['--workdir={only}_{num_seeds}_{problems.text.num_steps}']
  assert str(runs.parse(argv).workdir) == 'digits_mlp+text_5_400'


@pytest.mark.parametrize('name', ['a', 'a b', '{seed}', 'a{b'])
def test_a_folders_flag_names_that_folder(name):
  (flag,) = shlex.split(folder.as_flag(pathlib.Path(name)))
  assert named(flag.removeprefix('--workdir=')) == name
