"""What README.md and docs/ show is what works.

The python blocks of a page run in their order, as one program, in a folder of
their own; commands and paths name what there is.
"""

import importlib
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
import runs
import tiers
import yaml

import metalr_flax
from metalr_flax.comparison import config as comparison_config
from metalr_flax.config import check
from metalr_flax.config import flags

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [
  'README.md',
  'CONTRIBUTING.md',
  *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob('docs/**/*.md')),
]
# Runs that a page supposes, by the folder below checkpoints/.
RUNS = {
  'docs/own_data.md': ['table'],
  'docs/own_loop.md': ['default'],
  'docs/trainer.md': ['default'],
}


def blocks(page, language):
  text = (ROOT / page).read_text()
  return re.findall(rf'^```{language}\n(.*?)^```', text, re.S | re.M)


def code_of(page):
  return '\n'.join(blocks(page, 'python'))


def run(page):
  """The names that a page's program leaves."""
  names = {'__name__': 'docs'}
  exec(compile(code_of(page), page, 'exec'), names)
  return names


def check_learned(names):
  """The loss fell to a small part of itself, at a rate grown from 1e-5."""
  losses = np.asarray(names['losses'])
  assert losses[-50:].mean() < 0.05 * losses[0]
  assert 5e-3 < names['rate'] < 0.1


RECIPES = [p for p in PAGES if re.match('docs/recipes/', p) and code_of(p)]


@tiers.parametrize(
  'page',
  [page for page in PAGES if code_of(page) and page not in RECIPES],
  ['README.md', 'docs/index.md'],
)
def test_code_runs_as_it_is_printed(page, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for config in RUNS.get(page, []):
    workdir = tmp_path / 'checkpoints' / config
    runs.run_here(workdir, config, num_outer_steps=4)
  run(page)


# The others do the same with other libraries; each compiles for seconds.
@tiers.parametrize('page', RECIPES, ['docs/recipes/plain_jax.md'])
def test_a_recipe_is_one_program_that_learns(page, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert len(blocks(page, 'python')) == 1
  check_learned(run(page))
  assert not list(tmp_path.iterdir())


@pytest.mark.thorough
def test_the_data_parallel_recipe_on_four_devices(tmp_path):
  (tmp_path / 'recipe.py').write_text(code_of('docs/recipes/data_parallel.md'))
  flags = {'XLA_FLAGS': '--xla_force_host_platform_device_count=4'}
  code = (
    'import runpy; found = runpy.run_path("recipe.py"); '
    'print([len(found["mesh"].devices), found["rate"], *found["losses"]])'
  )
  done = subprocess.run(
    [sys.executable, '-c', code],
    env={**os.environ, **flags, 'PYTHONPATH': str(ROOT)},
    cwd=tmp_path,
    check=True,
    capture_output=True,
    text=True,
  )
  devices, rate, *losses = json.loads(done.stdout.splitlines()[-1])
  assert devices == 4
  check_learned({'losses': losses, 'rate': rate})


def test_every_recipe_is_in_the_index():
  index = (ROOT / 'docs/recipes/README.md').read_text()
  for page in (ROOT / 'docs/recipes').glob('*.md'):
    assert page.name == 'README.md' or f']({page.name})' in index


@pytest.mark.parametrize(
  ('page', 'resolve'),
  [
    ('docs/trainer.md', check.resolve),
    ('docs/training.md', check.resolve),
    ('docs/populations.md', check.resolve),
    ('docs/comparison.md', comparison_config.resolve),
  ],
)
def test_the_config_of_a_page_is_one(page, resolve):
  names = {}
  (block,) = (b for b in blocks(page, 'python') if 'def get_config' in b)
  exec(compile(block, page, 'exec'), names)
  resolve(names['get_config']().to_dict())


@pytest.mark.parametrize('page', PAGES)
def test_links_and_paths_lead_somewhere(page):
  text = (ROOT / page).read_text()
  folder = (ROOT / page).parent
  for link in re.findall(r'\]\(([^)#]*)', text):
    assert link.startswith('https://') or (folder / link).exists(), link
  named = r'\b((?:docs|tests|configs|benchmarks)/[\w./]+\.\w+)'
  for path in re.findall(named, text):
    assert (ROOT / path).exists(), path


def anchors(path):
  """The headings of a page as GitHub's links name them."""
  text = re.sub(r'^```.*?^```', '', path.read_text(), flags=re.S | re.M)
  headings = re.findall(r'^#+ (.*)', text, re.M)
  return {
    re.sub(r'[^\w\- ]', '', h).replace(' ', '-').lower() for h in headings
  }


@pytest.mark.parametrize('page', PAGES)
def test_links_into_a_page_lead_to_a_heading(page):
  path = ROOT / page
  for file, anchor in re.findall(
    r'\]\((?!https:)([^)#]*)#([^)]+)', path.read_text()
  ):
    target = path.parent / file if file else path
    assert anchor in anchors(target), f'{file}#{anchor}'


@pytest.mark.parametrize('page', PAGES)
def test_commands_name_programs_that_exist(page):
  text = (ROOT / page).read_text()
  for module in re.findall(r'-m (metalr_flax\.\w+)', text):
    assert callable(importlib.import_module(module).main)


@pytest.mark.parametrize('page', PAGES)
def test_commands_name_fields_and_flags_that_exist(page):
  lines = '\n'.join(blocks(page, 'sh')).replace('\\\n', ' ').splitlines()
  for line in lines:
    found = re.search(r'-m (metalr_flax\.(?:main|audit)) (.*)', line)
    if found and '--config=configs/' in line:
      words = [w for w in shlex.split(found[2], comments=True) if w != 'done']
      given = [re.sub(r'\$seed', '3', w).rstrip(';') for w in words]
      given = [re.sub(r'\$\w+', '1e-3', word) for word in given]
      flags.parse(found[1], given, '')


def test_the_jobs_for_clusters_can_be_read():
  for script in blocks('docs/clusters.md', 'sh'):
    subprocess.run(['bash', '-n'], input=script, text=True, check=True)
  (text,) = blocks('docs/clusters.md', 'yaml')
  (job,) = yaml.safe_load(text)['spec']['replicatedJobs']
  pod = job['template']['spec']['template']['spec']
  (command,) = pod['containers'][0]['args']
  words = shlex.split(command.replace('$JOB_COMPLETION_INDEX', '1'))
  found = flags.parse('metalr_flax.main', words[4:], '').cluster
  assert found.num_processes == job['template']['spec']['completions']
  assert found.coordinator == 'digits-train-0-0.digits:8476'


def test_the_journeys_stop_at_functions_that_exist():
  text = (ROOT / 'docs/journeys.md').read_text()
  for journey in text.split('\n## ')[1:]:
    lines = [line for line in journey.splitlines()[1:] if line]
    stops = [re.match(r'\d+\. `([\w/.]+)`, `(\w+)`: ', x) for x in lines]
    assert all(stops), journey
    assert len({stop.groups() for stop in stops}) == len(lines) <= 12
    for stop in stops:
      file, function = stop.groups()
      source = (ROOT / 'metalr_flax' / file).read_text()
      assert f'def {function}(' in source, stop[0]


def test_the_reference_has_every_public_name():
  found = re.findall(
    r'^::: metalr_flax\.(\w+)$', (ROOT / 'docs/api.md').read_text(), re.M
  )
  assert sorted({*found} - {'errors'}) == metalr_flax.__all__


def test_the_site_shows_every_page_once():
  nav = (ROOT / 'mkdocs.yml').read_text().partition('\nnav:\n')[2]
  shown = re.findall(r': (\S+\.md)$', nav, re.M)
  pages = {page.removeprefix('docs/') for page in PAGES if page != 'README.md'}
  assert pages <= {*shown}, 'name it below nav: of mkdocs.yml'
  assert len({*shown}) == len(shown)


def test_readme_can_be_read_in_one_go():
  assert len((ROOT / 'README.md').read_text().splitlines()) <= 100


def test_commands_of_the_readme_need_no_activated_environment():
  for line in ''.join(blocks('README.md', 'sh')).splitlines():
    for command in line.split('&&'):
      assert command.split()[0].startswith(('.venv/bin/', 'python3')), command


def test_the_linters_are_those_of_ci():
  ci = (ROOT / '.ci/run').read_text()
  hooks = (ROOT / '.pre-commit-config.yaml').read_text()
  entries = re.findall(r'entry: (.*)', hooks)
  assert len(entries) == 3
  for command in entries:
    assert f'\n{command}\n' in f'{ci}\n'
    assert command in (ROOT / 'CONTRIBUTING.md').read_text()


def test_the_version_is_one():
  version = metalr_flax.__version__
  for file, line in (
    ('CITATION.cff', f'version: {version}'),
    ('pyproject.toml', f'version = "{version}"'),
  ):
    assert line in (ROOT / file).read_text().splitlines()
