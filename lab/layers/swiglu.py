"""Channel mixer with a gate: down(silu(gate x) * up x), without biases (arXiv 2002.05202)."""

import jax
from flax import nnx

from lab.axes import Dims, weight


class Mixer(nnx.Module):
    """[B, T, embed] -> [B, T, embed] through an axis `mlp` for gate and value each."""

    def __init__(self, dims: Dims):
        self.up = weight("2 | embed -> mlp", dims)
        self.down = weight("mlp => embed", dims)

    def __call__(self, x: jax.Array) -> jax.Array:
        gate, value = (x @ w for w in self.up.get_value())
        return (jax.nn.silu(gate) * value) @ self.down.get_value()
