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
import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metalr_flax.engine import ranges
from metalr_flax.engine.records import Eta


class Bijection(NamedTuple):
  """One bijection from the real line to an open interval.

  Attributes:
    constrain: phi, elementwise on arrays, differentiable.
    unconstrain: phi^{-1} of one Python float inside the interval, in float64.
    eta_range: where float32 can represent phi and a slope that is not zero.
  """

  constrain: Callable[[jax.Array], jax.Array]
  unconstrain: Callable[[float], float]
  eta_range: tuple[float, float]


def make_bijection(spec: str) -> Bijection:
  """The bijection that a spec of `ranges` stands for.

  - `sigmoid`: lambda = 1 / (1 + exp(-eta)), the notebook's.
  - `sigmoid(low, high)`: the same stretched over another open range.
  - `log`: lambda = exp(eta): equal steps of eta are equal factors of lambda.
  - `one_minus_log`: lambda = 1 - exp(eta): equal steps of eta are equal factors
    of 1 - lambda, which is what matters of a decay rate such as Adam's b2.
  """
  kind, low, high = ranges.parse(spec)
  if kind == 'log':
    return Bijection(jnp.exp, math.log, (-80.0, 80.0))
  if kind == 'one_minus_log':
    return Bijection(
      lambda eta: -jnp.expm1(eta), lambda v: math.log1p(-v), (-15.0, -1e-6)
    )
  if (low, high) == (0.0, 1.0):
    return Bijection(
      jax.nn.sigmoid, lambda v: -math.log(1 / v - 1), (-80.0, 15.0)
    )
  return Bijection(
    lambda eta: low + (high - low) * jax.nn.sigmoid(eta),
    lambda v: math.log((v - low) / (high - v)),
    # Wider and `low + ...` would round to an end of the range.
    (-12.0, 12.0),
  )


def find_bijection(name: str, bijections: Mapping[str, str]) -> Bijection:
  """The bijection of a hyperparameter.

  Args:
    name: the hyperparameter.
    bijections: the spec of each.

  Raises:
    ValueError: where it has none, or one that is unknown.
  """
  if name not in bijections:
    raise ValueError(
      f'{name}: has no bijection; add it to bijections, which has '
      f'{", ".join(bijections) or "none"}'
    )
  ranges.check(name, bijections[name])
  return make_bijection(bijections[name])


def constrain(eta: Eta, bijections: Mapping[str, str]) -> Eta:
  """Maps unconstrained numbers eta to the hyperparameters phi(eta).

  Args:
    eta: unconstrained values by hyperparameter name, and by group label where
      there are groups; float arrays.
    bijections: the bijection's spec for each hyperparameter.

  Returns:
    Hyperparameters of eta's structure, shapes and dtypes.

  Raises:
    ValueError: for a name without a bijection.
  """
  return {
    name: jax.tree.map(find_bijection(name, bijections).constrain, value)
    for name, value in eta.items()
  }


def unconstrain(
  hyperparams: Mapping[str, Any], bijections: Mapping[str, str]
) -> Eta:
  """Maps initial hyperparameters to the unconstrained numbers eta.

  It is the inverse of `constrain`, computed in float64 on the host and
  rounded once.

  Args:
    hyperparams: Python floats by name (and group label), each inside its
      bijection's open range.
    bijections: the bijection's spec for each name.

  Returns:
    eta of the same structure, strongly typed scalars of JAX's default float
    type. (A weakly typed eta would make a jitted step compile again.)

  Raises:
    ValueError: for a name without a bijection, or a value outside its range.
  """
  dtype = jnp.zeros(()).dtype

  def invert(name: str, value: Any) -> Any:
    inverse = find_bijection(name, bijections).unconstrain
    _, low, high = ranges.parse(bijections[name])

    def of_one(number: Any) -> jax.Array:
      if not _is_number(number) or not low < number < high:
        raise ValueError(
          f'hyperparams[{name!r}]={" ".join(repr(number).split())[:80]}: must '
          f'be a number inside the open range ({low:g}, {high:g}) of its '
          f'bijection {bijections[name]!r}'
        )
      return jnp.asarray(inverse(number), dtype)

    return jax.tree.map(of_one, value, is_leaf=lambda v: v is None)

  return {name: invert(name, value) for name, value in hyperparams.items()}


def _is_number(value: Any) -> bool:
  """Whether a value is a real number, or an array of one that is not traced."""
  if isinstance(value, numbers.Real):
    return not isinstance(value, bool)
  array = isinstance(value, (jax.Array, np.ndarray))
  return array and not isinstance(value, jax.core.Tracer) and not value.ndim


def project(eta: Eta, bijections: Mapping[str, str]) -> Eta:
  """Clips eta to the range in which phi has a slope in float32."""

  def clip(name: str, value: Any) -> Any:
    low, high = make_bijection(bijections[name]).eta_range
    return jax.tree.map(lambda v: clip_finite(v, low, high), value)

  return {name: clip(name, value) for name, value in eta.items()}


def clip_finite(value: jax.Array, low: float, high: float) -> jax.Array:
  """Clips finite values; NaN and infinities stay, so that they are noticed."""
  return jnp.where(jnp.isfinite(value), jnp.clip(value, low, high), value)


def flatten(tree: Eta, prefix: str) -> dict[str, Any]:
  """Values by `<prefix>/<name>`, or `<prefix>/<name>/<label>` with groups."""
  flat: dict[str, Any] = {}
  for name, value in tree.items():
    if isinstance(value, dict):
      flat |= {f'{prefix}/{name}/{label}': v for label, v in value.items()}
    else:
      flat[f'{prefix}/{name}'] = value
  return flat
