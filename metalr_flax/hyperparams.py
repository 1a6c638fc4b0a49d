r"""Bijections phi between unconstrained eta and an optimizer's hyperparameters.

    lambda = phi(eta),    eta = phi^{-1}(lambda)

The outer optimizer moves eta freely on the real line; the inner optimizer sees
lambda, which stays inside its open range whatever eta does. In float32 a
sigmoid is exactly 1 from eta = 16.64 and its slope exactly 0 there, so an eta
that wandered that far could never come back: `project` keeps eta where phi and
its slope are both representable.
"""

from collections.abc import Callable, Mapping
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

Eta = dict[str, jax.Array]


class Bijection(NamedTuple):
  """One bijection from the real line to an open interval.

  Attributes:
    constrain: phi, elementwise on arrays, differentiable.
    unconstrain: phi^{-1} of one Python float in (low, high), in float64.
    low: the interval's lower end, excluded.
    high: its upper end, excluded.
    eta_range: where float32 can represent phi and a slope that is not zero.
  """

  constrain: Callable[[jax.Array], jax.Array]
  unconstrain: Callable[[float], float]
  low: float
  high: float
  eta_range: tuple[float, float]


BIJECTIONS: dict[str, Bijection] = {
  # The notebook's: lambda = 1 / (1 + exp(-eta)).
  'sigmoid': Bijection(
    constrain=jax.nn.sigmoid,
    unconstrain=lambda value: -math.log(1 / value - 1),
    low=0.0,
    high=1.0,
    eta_range=(-80.0, 15.0),
  ),
  # lambda = exp(eta): equal steps of eta are equal factors of lambda.
  'log': Bijection(
    constrain=jnp.exp,
    unconstrain=math.log,
    low=0.0,
    high=math.inf,
    eta_range=(-80.0, 80.0),
  ),
}


def constrain(eta: Eta, bijections: Mapping[str, str]) -> Eta:
  """phi: the hyperparameters that belong to eta.

  Args:
    eta: unconstrained values by hyperparameter name, float arrays.
    bijections: the bijection's name for each hyperparameter, see `BIJECTIONS`.

  Returns:
    Hyperparameters by name, of eta's shapes and dtypes.
  """
  return {
    name: BIJECTIONS[bijections[name]].constrain(value)
    for name, value in eta.items()
  }


def unconstrain(
  hyperparams: Mapping[str, float], bijections: Mapping[str, str]
) -> Eta:
  """phi^{-1}: the eta of some initial hyperparameters.

  The inverse is computed in float64 on the host and rounded once.

  Args:
    hyperparams: Python floats by name, each inside its bijection's open range.
    bijections: the bijection's name for each of them.

  Returns:
    eta by name: strongly typed scalars of JAX's default float type. (A weakly
    typed eta would make a jitted step compile again.)
  """
  dtype = jnp.zeros(()).dtype
  return {
    name: jnp.asarray(BIJECTIONS[kind].unconstrain(hyperparams[name]), dtype)
    for name, kind in bijections.items()
  }


def project(eta: Eta, bijections: Mapping[str, str]) -> Eta:
  """The nearest eta at which phi still has a slope in float32."""
  return {
    name: jnp.clip(value, *BIJECTIONS[bijections[name]].eta_range)
    for name, value in eta.items()
  }
