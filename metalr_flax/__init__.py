r"""Learns an optimizer's hyperparameters while it trains.

    eta <- eta - meta_tx(dF/deta),
    F(eta) = meta_loss(theta_K),
    theta_{k+1} = theta_k - tx(phi(eta))(dL/dtheta)   for k = 0 .. K - 1

```
train loop (host)        trainer/loop.py           chunks of outer steps
└─ outer step (jit)      engine/outer.py           eta <- eta - meta_tx(dF/deta)
   └─ meta-gradient      engine/meta_gradient.py   dF/deta through the window
      └─ window (scan)   engine/inner.py           theta_0 -> ... -> theta_K
         └─ inner step   engine/inner.py           theta <- theta - tx(phi)(g)
            └─ maths     engine/bijections.py      lambda = phi(eta)
```

The names below are the public ones. They are resolved on first use, so that
importing the package imports nothing heavy.
"""

import importlib
from typing import Any

_PUBLIC = {
  'Estimator': 'engine.meta_gradient',
  'InnerState': 'engine.records',
  'MetaTrainState': 'engine.records',
  'Problem': 'engine.records',
  'Task': 'tasks',
  'constrain': 'engine.bijections',
  'counts_of': 'tuning.self_tuning',
  'hyperparams_of': 'tuning.self_tuning',
  'init_state': 'engine.outer',
  'inner_step': 'engine.inner',
  'label_leaves': 'engine.optimizers',
  'load': 'trainer.loading',
  'load_schedule': 'workdir.schedule',
  'load_task': 'trainer.loading',
  'make_grouped': 'engine.optimizers',
  'make_injected': 'engine.optimizers',
  'make_loss_fn': 'models.functional',
  'outer_step': 'engine.outer',
  'outer_steps': 'engine.outer',
  'save_schedule': 'workdir.schedule',
  'self_tuning': 'tuning.self_tuning',
  'split': 'models.functional',
  'unconstrain': 'engine.bijections',
  'unroll': 'engine.inner',
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
