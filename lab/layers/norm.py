"""Layer normalisation that owns a gain and a bias."""

import jax
from flax import nnx

from lab.axes import Dims, weight
from lab.layers.modulation import layer_norm


class LayerNorm(nnx.Module):
    """LayerNorm over the last axis, then x gain + bias: [..., embed] -> [..., embed] (arXiv 1607.06450)."""

    def __init__(self, dims: Dims):
        self.gain = weight("-> embed", dims, fill=1.0)
        self.bias = weight("-> embed", dims, fill=0.0)

    def __call__(self, x: jax.Array) -> jax.Array:
        return layer_norm(x) * self.gain.get_value() + self.bias.get_value()
