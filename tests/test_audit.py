"""The audit: a user's own config against finite differences."""

import subprocess
import sys

import pytest
import runs
import tiers

from metalr_flax import audit
from metalr_flax.trainer import finite_difference


def arguments(config, **fields):
  return [
    a for a in runs.command('unused', config, **fields) if 'workdir' not in a
  ]


@tiers.parametrize('estimator', ['forward', 'reverse'], ['forward'])
def test_the_reference_config_passes(estimator, capsys):
  line = arguments('default', meta__estimator=estimator)
  assert audit.main(line) == 0
  out = capsys.readouterr().out
  assert 'learning_rate' in out
  assert 'all 1 agree' in out


@pytest.mark.thorough
def test_batch_norm_and_dropout_pass(capsys):
  """The outer loss uses batch statistics, so nothing of dF/deta is missing."""
  own = {
    'model__name': 'users_code:Net',
    'model__kwargs': {'width': 8},
    'task__name': 'users_code:Plane',
    'task__kwargs': {'slopes': (2.0, -1.0)},
    'inner__learning_rate': 0.01,
    'meta__groups': 'per_leaf',
  }
  assert audit.main(arguments('digits_mlp', **own)) == 0
  assert 'learning_rate/norm/scale' in capsys.readouterr().out


def test_an_approximation_fails_and_says_by_how_much(capsys):
  line = arguments('default', meta__curvature='none')
  assert audit.main(line) == 1
  out = capsys.readouterr().out
  assert 'FAILS' in out
  assert '1 of 1 differ by more than 1e-06' in out


@pytest.mark.parametrize(
  ('fields', 'says'),
  [
    ({'meta__estimator': 'none'}, 'no meta-gradient to audit'),
    ({'meta__estimator': 'revers'}, 'did you mean reverse?'),
    (
      {
        'inner__optimizer': 'lion',
        'meta__learned': {'b1': 'one_minus_log'},
      },
      'identically zero',
    ),
  ],
)
def test_what_cannot_be_audited_is_refused(fields, says, capsys):
  assert audit.main(arguments('default', **fields)) == 2
  assert says in capsys.readouterr().err


@pytest.mark.thorough
def test_as_a_command():
  line = [sys.executable, '-m', 'metalr_flax.audit', *arguments('default')]
  done = subprocess.run(
    line, capture_output=True, text=True, cwd=runs.ROOT, env=runs.environment()
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith('hyperparameter')


def test_the_difference_itself_is_right():
  import math

  slope = finite_difference.differentiate(lambda t: math.exp(2 * t))
  assert slope == pytest.approx(2, rel=1e-11)
