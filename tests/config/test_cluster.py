"""The flags of several processes: a mistake is one line, without JAX."""

import pytest
import runs

from metalr_flax import errors
from metalr_flax.config import cluster
from metalr_flax.config import flags

GIVEN = ['--coordinator=10.0.0.1:8476', '--num_processes=4', '--process_id=3']


def parse(*argv, module='metalr_flax.main'):
  config = f'--config={runs.CONFIGS / "default.py"}'
  return flags.parse(module, [config, *argv], '')


def test_what_is_given():
  assert parse().cluster is None
  assert parse('--distributed').cluster == cluster.Cluster()
  assert parse('--distributed', *GIVEN).cluster == cluster.Cluster(
    coordinator='10.0.0.1:8476', num_processes=4, process_id=3
  )


WRONG = {
  'without --distributed': (GIVEN, 'coordinator=10.0.0.1:8476', 'add --distributed'),
  'one is missing': (['--distributed', *GIVEN[:2]], 'needs --process_id= beside it'),
  'no port': (['--distributed', '--coordinator=host', *GIVEN[1:]], 'coordinator=host: must be host:port'),
  'a port too large': (['--distributed', '--coordinator=h:99999', *GIVEN[1:]], 'must be host:port'),
  'no process': (['--distributed', GIVEN[0], '--num_processes=0', GIVEN[2]], 'num_processes=0: must be 1 or more'),
  'a number too large': (['--distributed', *GIVEN[:2], '--process_id=4'], 'process_id=4: must be 0 to 3'),
  'no number': (['--distributed', *GIVEN[:2], '--process_id=x'], 'process_id'),
  'a typo': (['--distribute'], 'did you mean distributed?'),
}  # fmt: skip


@pytest.mark.parametrize(
  ('argv', 'parts'), [(a, p) for a, *p in WRONG.values()], ids=WRONG
)
def test_mistakes(argv, parts):
  with pytest.raises(errors.ConfigError) as info:
    parse(*argv)
  for part in parts:
    assert part in str(info.value)


def test_the_audit_is_of_one_process():
  with pytest.raises(errors.ConfigError, match='unknown flag'):
    parse('--distributed', module='metalr_flax.audit')
