"""Channel mixers."""

import jax
from flax import nnx

from lab.axes import Dims
from lab.layers.embed import Linear


class Mixer(nnx.Module):
    """Two-layer MLP with tanh-approximate GELU: [B, T, embed] -> [B, T, embed]."""

    def __init__(self, dims: Dims):
        self.up = Linear("embed -> mlp", dims)
        self.down = Linear("mlp => embed", dims)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(jax.nn.gelu(self.up(x), approximate=True))
