"""The problems in two halves, one of each kind in both.

Candidates are chosen on CHOOSE. CONFIRM is run when a candidate is frozen, and
nothing is ever chosen by it.
"""

from collections.abc import Callable
import functools

import attention
import convex
import drifting
import lightbench
import lightbench_noisy as noisy
import networks
from problem import Problem
import recurrent
import tables

Make = Callable[[], Problem]

# By kind, a problem of each half. Of these nobody here made one:
PUBLISHED: dict[str, tuple[Make, Make]] = {
  'moving target': (
    noisy.dynamic_landscape, noisy.adversarial_gradient
  ),
  'scales': (lightbench.quadratic_varying_scale, lightbench.layer_wise_scale),
  'steep walls': (
    lightbench.powers_varying_target, lightbench.exploding_gradient
  ),
  'heavy tails': (noisy.heavy_tails, noisy.quadratic_outliers),
  'plateau': (lightbench.plateau_navigation, lightbench.scale_invariant),
  'sparse gradient': (noisy.sparse_gradient, lightbench.quadratic_sparse),
  'valley': (lightbench.rosenbrock, lightbench.beale),
  'matrices': (lightbench.ill_conditioned, noisy.noisy_matmul),
  'step-back': (convex.matrix_factorisation, convex.ridge),
  'logistic': (convex.logistic_digits, convex.logistic_made),
  'raw features': (convex.logistic_wine_raw, convex.logistic_cancer_raw),
}  # fmt: skip
NETWORKS: dict[str, tuple[Make, Make]] = {
  'perceptron': (networks.mlp_digits, networks.mlp_friedman),
  'conv net': (networks.conv_digits, networks.conv_photos),
  'vision transformer': (attention.vit_digits, attention.vit_photos),
  'transformer': (attention.transformer_manual, attention.transformer_code),
  'recurrent': (recurrent.gru_adding, recurrent.gru_manual),
  'autoencoder': (networks.autoencoder_digits, networks.autoencoder_photos),
  'embedding': (tables.skipgram, noisy.summod),
  'factors': (tables.recommender, tables.saddle_factorisation),
  'moving function': (drifting.drifting_network, drifting.drifting_regression),
}
KINDS = {
  make.__name__: kind
  for group in (PUBLISHED, NETWORKS)
  for kind, pair in group.items()
  for make in pair
}
GROUPS = {
  name: 'published' if kind in PUBLISHED else 'networks'
  for name, kind in KINDS.items()
}
_PAIRS = (*PUBLISHED.values(), *NETWORKS.values())
CHOOSE = {make.__name__: make for make, _ in _PAIRS}
CONFIRM = {make.__name__: make for _, make in _PAIRS}
HALVES = {'choose': CHOOSE, 'confirm': CONFIRM}


@functools.cache
def build(name: str) -> Problem:
  """Makes a problem of either half, with its data."""
  return {**CHOOSE, **CONFIRM}[name]()
