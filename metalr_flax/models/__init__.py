"""NNX modules. `MODELS` lists the ones a config can name.

A user's own model is any `nnx.Module` whose constructor takes the config's
`model.kwargs` and `rngs`; name it as `package.module:Class`.
"""

from flax import nnx

from metalr_flax.models.cnn import CNN
from metalr_flax.models.linear import Linear
from metalr_flax.models.mlp import MLP
from metalr_flax.models.transformer import Transformer
from metalr_flax.models.vector import Vector

MODELS: dict[str, type[nnx.Module]] = {
  'cnn': CNN,
  'linear': Linear,
  'mlp': MLP,
  'transformer': Transformer,
  'vector': Vector,
}
