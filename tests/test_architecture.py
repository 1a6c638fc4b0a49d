"""Imports run downward, each library has one door, files stay small."""

import ast
import pathlib
import subprocess
import sys

import pytest

import metalr_flax

PACKAGE = pathlib.Path(metalr_flax.__file__).parent
# From the bottom up: a module imports only from lines above its own.
LAYERS = [
  {'errors', 'ranges', 'state', 'interrupts', 'fields', 'jaxprs', 'storage'},
  {'console', 'drawing'},
  {'losses'},
  {'products', 'hyperparams', 'optimizers', 'curvature', 'safe_derivatives'},
  {
    'config',
    'cells',
    'schedule',
    'inner',
    'factors',
    'injected',
    'steering',
    'guard',
  },
  {'workdir', 'manifest', 'fingerprint', 'comparison_config', 'outcomes'},
  {'standings', 'comparison_workdir', 'arrays'},
  {'comparison_plots', 'comparison_table'},
  {'problem', 'evaluate', 'records', 'plots', 'cli'},
  {'forward', 'window'},
  {'tangents'},
  {'forward_gradient', 'agreement'},
  {'meta_gradient', 'online'},
  {'outer', 'tuner'},
  {'tuning', 'models', 'tasks', 'writers', 'checkpoint'},
  {'lookup', 'saving'},
  {'build_optimizers'},
  {'build', 'report', 'refusals'},
  {'recorder', 'loading', 'finite_difference', 'arena'},
  {'train', 'contestants'},
  {'launch', 'race'},
  {'comparison'},
  {'main', 'audit', 'compare'},
]
LEVEL = {name: i for i, layer in enumerate(LAYERS) for name in layer}
DOORS = {
  'orbax': {'arrays'},
  'etils': {'arrays'},
  'tensorstore': {'arrays'},
  'clu': {'writers'},
  'tensorboard': {'writers'},
  'matplotlib': {'drawing'},
  'ml_collections': {'cli', 'loading'},
  'sklearn': {'tasks'},
}
FILES = sorted(PACKAGE.rglob('*.py'))


def _module(path):
  """The layer that a file belongs to: its name, or its folder's."""
  parts = path.relative_to(PACKAGE).with_suffix('').parts
  return parts[0]


def _imports(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, 'relative import'
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.stem)
def test_imports_run_downward(path):
  module = _module(path)
  if module == '__init__':
    assert not [i for i in _imports(path) if i.startswith('metalr_flax')]
    return
  for name in _imports(path):
    if name.startswith('metalr_flax.'):
      imported = name.split('.')[1]
      same_folder = imported == module and (PACKAGE / module).is_dir()
      assert same_folder or LEVEL[imported] < LEVEL[module], name


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.stem)
def test_each_library_has_one_door(path):
  for name in _imports(path):
    library = name.split('.')[0]
    assert _module(path) in DOORS.get(library, {_module(path)}), name
    assert '_src' not in name.split('.'), 'private import'
    assert library not in ('tensorflow', 'torch')


def test_nnx_is_seen_by_models_tasks_and_the_builder_alone():
  seen = {
    _module(path)
    for path in FILES
    for name in _imports(path)
    if name.startswith('flax.nnx')
  }
  assert seen == {'models', 'tasks', 'build', 'loading'}


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
  modules = {path.stem for path in PACKAGE.glob('*.py')}
  for name in metalr_flax.__all__:
    public = getattr(metalr_flax, name)
    assert name not in modules
    assert getattr(public, '__doc__', None), name
  with pytest.raises(AttributeError, match='no attribute'):
    metalr_flax.nothing  # noqa: B018
