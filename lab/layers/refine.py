"""Refiner of words: what a frozen encoder said is read once more, by words that see all others and by the time (LI-DiT, arXiv 2406.11831).

A causal language model's words know nothing of what follows them, which attention among them all makes good (section 3.2).
"""

import jax
from flax import nnx

from lab.axes import Dims, stack
from lab.layers import cross, mlp, modulation
from lab.layers.attention import rms_norm


class Block(nnx.Module):
    """x + gate attention(norm x), then x + gate mlp(norm x); gates begin at zero, so that words begin as they came."""

    def __init__(self, dims: Dims, init: float):
        self.modulation = modulation.AdaLN(2, dims, init=init)
        self.attention = cross.Attention(dims)
        self.mlp = mlp.Mixer(dims)

    def __call__(self, x: jax.Array, c_BxD: jax.Array, seen: jax.Array) -> jax.Array:
        gate, gate_mlp = self.modulation(c_BxD)
        y = rms_norm(x)
        x = x + gate * self.attention(y, y, seen)
        return x + gate_mlp * self.mlp(rms_norm(x))


class Refiner(nnx.Module):
    """Words [B, S, embed], their condition [B, embed] (time and mean word) and which are `seen` [B, S] -> [B, S, embed].

    `refiner_layers` blocks; `init` is that of the gates.
    """

    def __init__(self, dims: Dims, init: float = 0.0):
        self.blocks = stack(Block(dims, init), dims["refiner_layers"], dims, "refiner_layers")

    def __call__(self, x: jax.Array, c_BxD: jax.Array, seen: jax.Array) -> jax.Array:
        x, _ = jax.lax.scan(lambda x, block: (block(x, c_BxD, seen), None), x, self.blocks, unroll=True)
        return x
