"""`python -m metalr_flax` alone: which commands there are."""

import subprocess
import sys

import pytest
import runs
import test_main_errors

from metalr_flax import __main__ as commands

without_jax = test_main_errors.without_jax


def test_it_names_every_command_without_jax(tmp_path, without_jax):
  environment = runs.environment()
  paths = f'{without_jax}:{environment["PYTHONPATH"]}'
  process = subprocess.run(
    [sys.executable, '-m', 'metalr_flax'],
    env={**environment, 'PYTHONPATH': paths},
    capture_output=True,
    text=True,
    cwd=tmp_path,
    check=False,
  )
  assert (process.returncode, process.stderr) == (0, '')
  for line in (
    'python -m metalr_flax.main --config=configs/digits_mlp.py',
    'python -m metalr_flax.audit --config=configs/digits_mlp.py',
    'python -m metalr_flax.compare --config=configs/compare.py',
  ):
    assert f'  {line}\n' in process.stdout
    assert (runs.ROOT / line.partition('=')[2]).exists()
  assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize('flag', ['-h', '--help'])
def test_help_is_the_same(flag, capsys):
  assert commands.main([flag]) == 0
  assert 'python -m metalr_flax.audit' in capsys.readouterr().out


@pytest.mark.parametrize(
  ('argv', 'line'),
  [
    (['train'], 'train: unknown command; did you mean metalr_flax.main?'),
    (['comparison'], 'did you mean metalr_flax.compare?'),
    (['zzz'], 'known are metalr_flax.main, metalr_flax.audit, metalr_flax.c'),
    (['audit', '--config=a b.py'], "run python -m metalr_flax.audit '--config=a b.py'"),
    (['main.py'], 'run python -m metalr_flax.main\n'),
    (['--config=x.py', '--workdir=y'], 'run python -m metalr_flax.main --config=x.py --workdir=y'),
  ],
)  # fmt: skip
def test_another_word_is_answered_with_the_command(argv, line, capsys):
  assert commands.main(argv) == 2
  printed = capsys.readouterr()
  assert (printed.out, printed.err.count('\n')) == ('', 1)
  assert line in printed.err
