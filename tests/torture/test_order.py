"""What a power cut would leave: every byte is on the disk before its name is.

A kill cannot tell, for the system keeps what was written; the order of the
operations can.
"""

import re

import harness
import pytest


@pytest.fixture(scope='module')
def operations(uninterrupted):
  # TensorStore's own directories come with a slash at their end.
  found = harness.read_operations(*uninterrupted)
  return [(kind, path.rstrip('/')) for kind, path in found]


def _places(operations, kind, pattern):
  return [
    i
    for i, (k, path) in enumerate(operations)
    if k == kind and re.fullmatch(pattern, path)
  ]


@pytest.mark.parametrize('step', range(4, 21, 4))
def test_data_then_manifest_then_name(operations, step):
  saving = rf'state/\.{step}\.saving'
  (rename,) = _places(operations, 'rename', rf'state/{step}')
  writes = _places(operations, 'write', rf'{saving}.*')
  (manifest,) = _places(operations, 'write', rf'{saving}/manifest\.json')
  assert max(writes) == manifest, 'the manifest is written last'
  (synced,) = _places(operations, 'fsync', rf'{saving}/manifest\.json')
  assert manifest < synced < rename
  # Under their final names, each file and each folder, before the manifest.
  data = [
    i
    for i in _places(operations, 'fsync', rf'{saving}(/.*)?')
    if 'orbax-checkpoint-tmp' not in operations[i][1]
    and 'manifest.json' not in operations[i][1]
  ]
  before = {operations[i][1] for i in data if i < manifest}
  assert {
    f'state/.{step}.saving/state',
    f'state/.{step}.saving/state/d',
  } <= before
  assert len([p for p in before if re.search(r'/d/[0-9a-f]{16,}', p)]) >= 2
  assert f'state/.{step}.saving/_CHECKPOINT_METADATA' in before
  itself = _places(operations, 'fsync', saving)
  assert any(synced < i < rename for i in itself), (
    'the folder, with its manifest'
  )
  after = _places(operations, 'fsync', 'state')
  assert any(i > rename for i in after), 'the name'
  removed = [
    i for i in _places(operations, 'rename', r'state/\.\d+\.old') if i > rename
  ]
  if removed:
    assert min(i for i in after if i > rename) < removed[0], (
      'an older one goes only when the new name is on the disk'
    )


def test_rows_and_events_are_on_the_disk_before_the_checkpoint(operations):
  for number, step in enumerate(range(4, 21, 4), 1):
    begun = _places(operations, 'mkdir', rf'state/\.{step}\.saving.*')[0]
    for pattern in (r'metrics\.csv', r'events\.out\.tfevents\..*'):
      # The rows of later steps may come while this one is being saved.
      synced = [i for i in _places(operations, 'fsync', pattern) if i < begun]
      assert len(synced) >= number, pattern
      assert _places(operations, 'write', pattern)[0] < synced[0]


@pytest.mark.parametrize(
  'name', ['config.json', 'report.html', 'results.json', 'schedule.json']
)
def test_whole_files_are_replaced_at_once(operations, name):
  (written,) = _places(operations, 'write', rf'\.{re.escape(name)}\.tmp')
  (synced,) = _places(operations, 'fsync', rf'\.{re.escape(name)}\.tmp')
  (renamed,) = _places(operations, 'rename', re.escape(name))
  assert written < synced < renamed
  assert not _places(operations, 'write', re.escape(name))


def test_results_are_the_last_file(operations):
  """With them a run counts as finished: all else is there by then."""
  (results,) = _places(operations, 'rename', 'results.json')
  for name in ('report.html', 'schedule.json', 'plots/learning_rate.png'):
    (written,) = _places(operations, 'rename', re.escape(name))
    assert written < results, name
