"""Any optax optimizer by name, with its hyperparameters injected.

`optax.inject_hyperparams` moves the chosen arguments of an optimizer from its
closure into its state, where the outer loop can write them at each window.
Arguments that are not learned stay static: with all of them injected, Adam
drifts from plain Adam by rounding (optax computes `1 - b2` in float32 then).
"""

from collections.abc import Iterable, Mapping
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import optax


def signature_of(name: str) -> inspect.Signature:
  """The arguments of the optax optimizer called `name`."""
  return inspect.signature(getattr(optax, name))


def make_injected(
  name: str, arguments: Mapping[str, Any], learned: Iterable[str]
) -> optax.GradientTransformationExtraArgs:
  """An optax optimizer whose learned arguments live in its state.

  Args:
    name: an optimizer of optax, e.g. 'rmsprop'.
    arguments: its keyword arguments, `learning_rate` among them.
    learned: which arguments to inject. They are held in float32 (float64 under
      x64) whatever the parameters' dtype: in bfloat16 a `b2` of 0.999 is 1.

  Returns:
    An optax transformation whose state has the learned arguments in
    `.hyperparams`.
  """
  learned = {'learning_rate', *learned}
  fixed = [a for a in signature_of(name).parameters if a not in learned]
  inject = optax.inject_hyperparams(
    getattr(optax, name),
    static_args=fixed,
    hyperparam_dtype=jnp.zeros(()).dtype,
  )
  return inject(**arguments)


def with_hyperparams(
  opt_state: optax.OptState, hyperparams: Mapping[str, jax.Array]
) -> optax.OptState:
  """`opt_state` with some of its hyperparameters replaced.

  The state given is left as it was. (Assigning into `opt_state.hyperparams`
  would put a tracer into the caller's own dictionary.)
  """
  merged = {**opt_state.hyperparams, **hyperparams}
  return opt_state._replace(hyperparams=merged)
