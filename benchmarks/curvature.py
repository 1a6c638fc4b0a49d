"""How close the cheap meta-gradients come to the exact one along a run.

  python benchmarks/curvature.py [--steps=300]

The digits MLP with a learning rate for each parameter (four of them), trained
by exact forward mode. At every tenth window the meta-gradient of the same
window is computed with the Hessian-vector product on a quarter of the batch
and with none, each from its own Z (discount 0.99), and compared with the exact
one: the cosine between the vectors of the four slopes. Writes
benchmarks/results/curvature.{json,png}.
"""

import argparse
import json
import pathlib
import statistics

import jax
import jax.numpy as jnp
from matplotlib import figure

import metalr_flax
from metalr_flax.config import flags
from metalr_flax.trainer import build

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / 'benchmarks/results'
KINDS = ('exact', 'subsample', 'none')
DISCOUNT = 0.99


def cosine(one: dict, other: dict) -> float:
  """The cosine between two meta-gradients, over all their etas."""
  a, b = (jnp.stack(jax.tree.leaves(g)) for g in (one, other))
  return float(jnp.vdot(a, b) / (jnp.linalg.norm(a) * jnp.linalg.norm(b)))


def measure(steps: int) -> dict[str, list[float]]:
  """Cosines with the exact meta-gradient, by inner step and curvature."""
  arguments = [
    f'--config={ROOT}/configs/digits_mlp.py',
    '--config.meta.groups=per_leaf',
    f'--config.meta.discount={DISCOUNT}',
  ]
  experiment = build.build(flags.parse('benchmark', arguments, '').config)
  problem, state = experiment.problem, experiment.init_state()
  estimators = {
    kind: metalr_flax.Estimator(
      kind='forward', curvature=kind, subsample=0.25, discount=DISCOUNT
    )
    for kind in KINDS
  }
  steppers = {
    kind: jax.jit(lambda eta, carry, e=e: e(eta, carry, problem))
    for kind, e in estimators.items()
  }
  tangents = {
    kind: e.init_tangents(state.eta, state.inner, state.data_state, problem)
    for kind, e in estimators.items()
  }
  advance = jax.jit(experiment.step_fn)
  found: dict[str, list[float]] = {
    'inner_step': [],
    'subsample': [],
    'none': [],
  }
  for step in range(steps):
    results = {
      kind: run(state.eta, state.carry.replace(tangents=tangents[kind]))
      for kind, run in steppers.items()
    }
    tangents = {kind: carry.tangents for kind, (_, carry, _) in results.items()}
    if step % 10 == 0:
      found['inner_step'].append(step * problem.unroll_length)
      for kind in ('subsample', 'none'):
        found[kind].append(cosine(results[kind][0], results['exact'][0]))
    state, _ = advance(state)
  return found


def main() -> None:
  """Measures, prints medians, writes the JSON and the plot."""
  parser = argparse.ArgumentParser()
  parser.add_argument('--steps', type=int, default=300)
  found = measure(parser.parse_args().steps)
  fig = figure.Figure(figsize=(8, 4), layout='constrained')
  axes = fig.subplots()
  for kind, label in (
    ('subsample', 'Hessian on a quarter of the batch'),
    ('none', 'no Hessian'),
  ):
    values = found[kind]
    print(
      f'{label}: median cosine {statistics.median(values):.3f}, '
      f'least {min(values):.3f}, {sum(v > 0 for v in values)} of '
      f'{len(values)} positive'
    )
    axes.plot(found['inner_step'], values, marker='.', label=label)
  axes.axhline(0, color='gray', linewidth=0.8)
  axes.set_ylim(-1.05, 1.05)
  axes.set_xlabel('inner updates')
  axes.set_ylabel('cosine with the exact meta-gradient')
  axes.set_title('Digits MLP, a learning rate for each parameter')
  fig.legend(loc='outside lower center', ncols=2)
  axes.grid(True, alpha=0.3)
  fig.savefig(RESULTS / 'curvature.png', dpi=120)
  text = json.dumps(found, indent=2)
  (RESULTS / 'curvature.json').write_text(text + '\n')


if __name__ == '__main__':
  main()
