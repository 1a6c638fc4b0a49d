"""NNX modules. `MODELS` lists the ones a config can name.

A user's own model is any `nnx.Module` whose constructor takes the config's
`model.kwargs` and `rngs`; name it as `package.module:Class`.
"""

from flax import nnx

from metalr_flax.models.linear import Linear
from metalr_flax.models.mlp import MLP

MODELS: dict[str, type[nnx.Module]] = {'linear': Linear, 'mlp': MLP}
