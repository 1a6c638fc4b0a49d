"""Runs every training config and says whether it reaches its header's numbers.

  python benchmarks/results.py [--only=digits_mlp,digits_cnn] [--quick]

Each config of `configs/` says in its header what it ends at. This runs them as
a person does, by `python -m metalr_flax.main`, each seed in its own folder, and
compares the mean over the seeds. It takes about 15 minutes on two cores.
Writes benchmarks/results/configs.json and .md, where those that are not in
`--only` keep their last numbers; `--quick` takes a few outer steps of each, to
see that it runs, and writes nothing. The exit status is 1 where a number is
missed. The two comparisons' numbers are in benchmarks/results/comparison and
their commands in their configs.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / 'benchmarks/results'


class Claim(NamedTuple):
  """A number in a config's header.

  Attributes:
    key: of `results.json`.
    value: the number, in the units of `results.json`.
    words: the number as the header has it.
    miss: how far on the bad side a mean may be and still round to it; another
      processor's last bits make another run.
    better: which side is the good one: 'less', 'more', or 'equal' for neither.
  """

  key: str
  value: float
  words: str
  miss: float
  better: str


CLAIMS: dict[str, list[Claim]] = {
  'default': [
    Claim('hyperparams/learning_rate', 0.0628, '0.0628', 5e-5, 'equal'),
    Claim('params/theta', 9.92, '9.92', 5e-3, 'equal'),
    Claim('eval/loss', 0.62, '0.62', 5e-3, 'equal'),
  ],
  'digits_mlp': [Claim('eval/accuracy', 0.977, '97.7 %', 2e-3, 'more')],
  'digits_cnn': [Claim('eval/accuracy', 0.992, '99.2 %', 2e-3, 'more')],
  'digits_regularized': [
    Claim('eval/loss', 0.055, '0.055', 2e-3, 'less'),
    Claim('eval/accuracy', 0.987, '98.7 %', 2e-3, 'more'),
  ],
  'text_transformer': [Claim('eval/loss', 1.37, '1.37 nats', 0.01, 'less')],
  'table': [Claim('eval/rmse', 55.7, '55.7', 0.5, 'less')],
  'images': [Claim('eval/accuracy', 0.992, '99.2 %', 2e-3, 'more')],
  'text_file': [
    Claim('eval/loss', 1.38, '1.38 nats', 0.01, 'less'),
    Claim('eval/bits_per_character', 1.99, '1.99', 0.015, 'less'),
  ],
  'stream': [Claim('eval/accuracy', 0.994, '99.4 %', 2e-3, 'more')],
}
# Seeds 0, 1, ...: as many as the header is a mean of.
SEEDS = {
  'default': 1, 'images': 2, 'stream': 1, 'text_file': 1, 'text_transformer': 1
}  # fmt: skip
MOST_SEEDS = 5


def run(name: str, seed: int, steps: int | None) -> dict[str, Any]:
  """Trains a config by its command; returns its results."""
  with tempfile.TemporaryDirectory() as folder:
    workdir = pathlib.Path(folder) / 'run'
    command = [
      sys.executable, '-m', 'metalr_flax.main',
      f'--config=configs/{name}.py', f'--config.seed={seed}',
      f'--workdir={workdir}',
    ]  # fmt: skip
    if steps is not None:
      command.append(f'--config.num_outer_steps={steps}')
    subprocess.run(command, cwd=ROOT, env=_env(), check=True,
                   stdout=subprocess.DEVNULL)  # fmt: skip
    return json.loads((workdir / 'results.json').read_text())


def _env() -> dict[str, str]:
  paths = [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
  return {**os.environ, 'PYTHONPATH': os.pathsep.join(paths)}


def judge(claim: Claim, runs: list[dict[str, Any]]) -> dict[str, Any]:
  """A claim beside what the runs ended at."""
  values = [found[claim.key] for found in runs]
  mean = statistics.mean(values)
  above = mean - claim.value
  off = {'less': above, 'more': -above, 'equal': abs(above)}[claim.better]
  return {
    'key': claim.key,
    'header': claim.words,
    'mean': mean,
    'values': values,
    'reached': off <= claim.miss,
  }


def to_markdown(results: dict[str, Any]) -> str:
  """The table that a person reads."""
  lines = [
    '| config | number | header | mean | seeds: least to most | reached |',
    '|---|---|---|---|---|---|',
  ]
  for name, result in results.items():
    for claim in result['claims']:
      values = claim['values']
      lines.append(
        f'| {name} | {claim["key"]} | {claim["header"]} | {claim["mean"]:.4g} '
        f'| {len(values)}: {min(values):.4g} to {max(values):.4g} '
        f'| {"yes" if claim["reached"] else "NO"} |'
      )
  return '\n'.join(lines) + '\n'


def main() -> int:
  """Runs the command line; returns its exit status."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--quick', action='store_true')
  parser.add_argument('--only', default=','.join(CLAIMS))
  given = parser.parse_args()
  written = RESULTS / 'configs.json'
  results = json.loads(written.read_text()) if written.exists() else {}
  for name in given.only.split(','):
    seeds = range(1 if given.quick else SEEDS.get(name, MOST_SEEDS))
    runs = [run(name, seed, 3 if given.quick else None) for seed in seeds]
    results[name] = {'claims': [judge(claim, runs) for claim in CLAIMS[name]]}
    print(to_markdown({name: results[name]}), end='', flush=True)
    if not given.quick:
      write(results)
  claims = [claim for found in results.values() for claim in found['claims']]
  return int(not given.quick and not all(c['reached'] for c in claims))


def write(results: dict[str, Any]) -> None:
  """Writes the results files, in the order of `CLAIMS`."""
  ordered = {name: results[name] for name in CLAIMS if name in results}
  (RESULTS / 'configs.json').write_text(json.dumps(ordered, indent=1) + '\n')
  (RESULTS / 'configs.md').write_text(to_markdown(ordered))


if __name__ == '__main__':
  sys.exit(main())
