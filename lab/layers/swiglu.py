"""Channel mixer with a gate: down(silu(gate x) * up x), without biases (arXiv 2002.05202)."""

import jax
from flax import nnx

from lab.axes import Dims, weight
from lab.layers.embed import project


class Mixer(nnx.Module):
    """[B, T, embed] -> [B, T, embed] through an axis `mlp` for gate and value each."""

    def __init__(self, dims: Dims):
        self.up = weight("2 | embed -> mlp", dims)
        self.down = weight("mlp => embed", dims)

    def __call__(self, x: jax.Array) -> jax.Array:
        gate, value = (project(x, w, 0.0) for w in self.up.get_value())
        return project(jax.nn.silu(gate) * value, self.down.get_value(), 0.0)
