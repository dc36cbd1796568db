"""Channel mixer with a gate: down(gelu(gate x) * up x), without biases (arXiv 2002.05202), as in T5 1.1."""

import jax

from lab.layers import swiglu
from lab.layers.embed import project


class Mixer(swiglu.Mixer):
    """[B, T, embed] -> [B, T, embed] through an axis `mlp` for gate and value each; GELU by its tanh approximation."""

    def __call__(self, x: jax.Array) -> jax.Array:
        gate, value = (project(x, w, 0.0) for w in self.up.get_value())
        return project(jax.nn.gelu(gate, approximate=True) * value, self.down.get_value(), 0.0)
