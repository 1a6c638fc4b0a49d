r"""Learn an optimizer's hyperparameters while it trains.

    eta <- eta - meta_tx(dF/deta),
    F(eta) = meta_loss(theta_K),
    theta_{k+1} = theta_k - tx(phi(eta))(dL/dtheta)   for k = 0 .. K - 1

```
train loop (host)        train.py           for each chunk: state, rows = ...
└─ outer step (jit)      outer.py           eta <- eta - meta_tx(dF/deta)
   └─ meta-gradient      meta_gradient.py   dF/deta through the window
      └─ window (scan)   inner.py           theta_0 -> ... -> theta_K
         └─ inner step   inner.py           theta <- theta - tx(lambda)(grad)
            └─ maths     hyperparams.py     lambda = phi(eta)
```

The names below are the public ones. They are resolved on first use, so that
importing the package imports nothing heavy.
"""

import importlib
from typing import Any

_PUBLIC = {
  'Estimator': 'meta_gradient',
  'InnerState': 'state',
  'MetaTrainState': 'state',
  'Problem': 'problem',
  'Task': 'tasks',
  'constrain': 'hyperparams',
  'counts_of': 'tuning',
  'hyperparams_of': 'tuning',
  'init_state': 'outer',
  'inner_step': 'inner',
  'label_leaves': 'optimizers',
  'load': 'loading',
  'load_schedule': 'schedule',
  'make_grouped': 'optimizers',
  'make_injected': 'optimizers',
  'make_loss_fn': 'models.functional',
  'outer_step': 'outer',
  'outer_steps': 'outer',
  'save_schedule': 'schedule',
  'self_tuning': 'tuning',
  'split': 'models.functional',
  'unconstrain': 'hyperparams',
  'unroll': 'inner',
}
__all__ = sorted(_PUBLIC)
__version__ = '0.1.0'


def __getattr__(name: str) -> Any:
  if name not in _PUBLIC:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  module = importlib.import_module(f'{__name__}.{_PUBLIC[name]}')
  return getattr(module, name)


def __dir__() -> list[str]:
  return __all__
