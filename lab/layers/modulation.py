"""Adaptive layer normalisation: a condition shifts, scales and gates the stream (DiT, arXiv 2212.09748)."""

import jax
import jax.numpy as jnp
from flax import nnx

from lab.axes import Dims, weight
from lab.layers.embed import project


def layer_norm(x: jax.Array, epsilon: float = 1e-6) -> jax.Array:
    """LayerNorm over the last axis without gain or bias, in float32."""
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    return (y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + epsilon)).astype(x.dtype)


class AdaLN(nnx.Module):
    """`n` vectors of modulation, each [B, 1, embed], from a condition [B, embed]; they start at zero with init=0."""

    def __init__(self, n: int, dims: Dims, init: float):
        self.kernel = weight(f"{n} | embed -> embed", dims, init=init)
        self.bias = weight(f"{n} | -> embed", dims, fill=0.0)

    def __call__(self, c_BxD: jax.Array) -> list[jax.Array]:
        x = jax.nn.silu(c_BxD)
        # one product for each: fused, the kernel would be copied into another layout at every step
        return [project(x, k, b)[:, None, :] for k, b in zip(self.kernel.get_value(), self.bias.get_value(), strict=True)]


def modulate(x: jax.Array, shift: jax.Array, gain: jax.Array) -> jax.Array:
    """LayerNorm, then x (1 + gain) + shift."""
    return layer_norm(x) * (1 + gain) + shift
