"""Imports run downward, and each library has one door."""

import ast
import graphlib
import importlib
import pathlib
import re
import subprocess
import sys

import pytest

import metalr_flax

PACKAGE = pathlib.Path(metalr_flax.__file__).parent
ROOT = PACKAGE.parent


def _rules():
  """What each folder, or file of the top, may import, by CONTRIBUTING.md."""
  text = (ROOT / 'CONTRIBUTING.md').read_text()
  block = re.search(r'^```\n(errors .*?)^```', text, re.DOTALL | re.MULTILINE)
  rules = {}
  for line in block[1].splitlines():
    places, allowed = line.split(': ')
    words = {'nothing': (), 'everything above': (*rules,)}
    found = words.get(allowed, tuple(allowed.split()))
    rules |= dict.fromkeys(places.split(), found)
  return rules


RULES = _rules()
DOORS = {
  'array_record': {'tasks.records'},
  'grain': {'tasks.grain_data'},
  'rich': {'terminal'},
  'orbax': {'workdir.arrays'},
  'etils': {'workdir.arrays'},
  'tensorstore': {'workdir.arrays'},
  'clu': {'workdir.events'},
  'tensorboard': {'workdir.events'},
  'matplotlib': {'workdir.drawing'},
  'pandas': {'tasks.frames'},
  'PIL': {'tasks.pictures', 'workdir.events'},
  'ml_collections': {'config.flags', 'trainer.loading'},
}
FILES = sorted(PACKAGE.rglob('*.py'))


def _name(path):
  """A file's dotted name below the package."""
  return '.'.join(path.relative_to(PACKAGE).with_suffix('').parts)


def _imports(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, 'relative import'
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def _imported(path):
  """The project's files that a file imports, by dotted name."""
  for name in _imports(path):
    package, _, below = name.partition('.')
    if package == 'metalr_flax':
      found = PACKAGE / below.replace('.', '/')
      is_file = found.is_dir() or found.with_suffix('.py').exists()
      yield below if is_file else below.rpartition('.')[0]


@pytest.mark.parametrize('path', FILES, ids=_name)
def test_imports_run_downward(path):
  place = _name(path).split('.')[0]
  for name in _imported(path):
    if place == '__init__':
      pytest.fail(name)
    allowed = tuple(f'{other}.' for other in (place, *RULES[place]))
    assert f'{name}.'.startswith(allowed), f'{_name(path)} imports {name}'


def test_the_seven_rules_name_every_folder_and_file_of_the_top():
  places = {_name(path).split('.')[0] for path in FILES}
  assert {*RULES} == places - {'__init__'}
  assert RULES['tasks'] == ()
  assert 'workdir' in RULES['trainer']
  assert 'comparison' not in RULES['trainer']


def test_imports_make_no_circle():
  graphlib.TopologicalSorter(
    {_name(path): {*_imported(path)} for path in FILES}
  ).prepare()


@pytest.mark.parametrize('path', FILES, ids=_name)
def test_each_library_has_one_door(path):
  for name in _imports(path):
    library = name.split('.')[0]
    assert _name(path) in DOORS.get(library, {_name(path)}), name
    assert '_src' not in name.split('.'), 'private import'
    assert library not in ('tensorflow', 'torch')
    assert library != 'sklearn' or _name(path).startswith('tasks.')


def test_nnx_is_seen_by_models_tasks_and_the_trainer_alone():
  seen = {
    _name(path).split('.')[0]
    for path in FILES
    for name in _imports(path)
    if name.startswith('flax.nnx')
  }
  assert seen == {'models', 'tasks', 'trainer'}


def test_a_folder_of_its_own_says_what_it_is():
  for path in PACKAGE.glob('*/__init__.py'):
    body = ast.parse(path.read_text()).body
    if path.parent.name not in ('models', 'tasks'):  # their tables
      assert len(body) == 1
    assert isinstance(body[0].value, ast.Constant)


def test_configs_import_ml_collections_alone():
  for path in (PACKAGE.parent / 'configs').glob('*.py'):
    assert {name.split('.')[0] for name in _imports(path)} == {'ml_collections'}


def test_the_main_program_is_flags_and_one_call():
  assert len((PACKAGE / 'main.py').read_text().splitlines()) <= 60


def test_importing_the_package_imports_nothing_heavy():
  code = (
    'import sys, metalr_flax; dir(metalr_flax); '
    'heavy = {"jax", "flax", "optax", "numpy", "orbax", "clu"}; '
    'sys.exit(len(heavy & {m.split(".")[0] for m in sys.modules}))'
  )
  subprocess.run([sys.executable, '-c', code], check=True, cwd=PACKAGE.parent)


def test_public_names_resolve_and_none_shares_a_modules_name():
  modules = {path.stem for path in PACKAGE.glob('*')}
  for name in metalr_flax.__all__:
    public = getattr(metalr_flax, name)
    assert name not in modules
    assert getattr(public, '__doc__', None), name
  with pytest.raises(AttributeError, match='no attribute'):
    metalr_flax.nothing  # noqa: B018


def test_every_planted_fault_still_has_its_place():
  sys.path.insert(0, str(PACKAGE.parent / 'tests' / 'torture'))
  try:
    mutants = importlib.import_module('mutants')
  finally:
    sys.path.pop(0)
  for mutant in mutants.MUTANTS:
    source = (PACKAGE / f'{mutant.file}.py').read_text()
    assert source.count(mutant.old) == 1, mutant.what
