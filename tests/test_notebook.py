"""The notebook kept as text runs, as a script and as a notebook."""

import os
import pathlib
import re
import subprocess
import sys

from PIL import Image
import pytest

pytestmark = pytest.mark.thorough
ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOK = ROOT / 'docs/notebooks/learning_rates_that_learn.py'
PICTURES = 'line.png', 'digits.png', 'drop_in.png'


def check(printed):
  """The reference run's own numbers; digits read as well as elsewhere."""
  assert 'theta 9.92, learned rate 0.0628' in printed
  trainer, drop_in = map(float, re.findall(r'accuracy ([\d.]+)%', printed))
  assert trainer > 96
  assert drop_in > 96


def test_as_a_script(tmp_path):
  done = subprocess.run(
    [sys.executable, '-W', 'error', NOTEBOOK],
    env={**os.environ, 'MPLBACKEND': 'Agg', 'PYTHONPATH': str(ROOT)},
    cwd=tmp_path,
    check=True,
    capture_output=True,
    text=True,
  )
  check(done.stdout)
  assert {path.name for path in tmp_path.iterdir()} == {*PICTURES}
  for picture in PICTURES:
    with Image.open(tmp_path / picture) as image:
      assert image.width >= 1000
      # Both halves are drawn on: more colours than paper and axes have.
      for left in (0, image.width // 2):
        half = image.crop((left, 0, left + image.width // 2, image.height))
        assert len(half.convert('RGB').getcolors(10**6)) > 50


# Of Jupyter's own: it opens sockets and event loops that it leaves to others.
@pytest.mark.filterwarnings('ignore')
@pytest.mark.full
def test_as_a_notebook(tmp_path, monkeypatch):
  jupytext = pytest.importorskip('jupytext')
  nbclient = pytest.importorskip('nbclient')
  monkeypatch.setenv('PYTHONPATH', str(ROOT))
  notebook = jupytext.read(NOTEBOOK)
  client = nbclient.NotebookClient(
    notebook, resources={'metadata': {'path': tmp_path}}
  )
  client.execute()
  outputs = [out for cell in notebook.cells for out in cell.get('outputs', [])]
  check(''.join(out.get('text', '') for out in outputs))
  drawn = [out for out in outputs if 'image/png' in out.get('data', {})]
  assert len(drawn) == len(PICTURES)
  assert not [out for out in outputs if out.get('name') == 'stderr']
