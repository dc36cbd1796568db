"""Token mixers; the key of a config names one by module or path."""

import jax
import jax.numpy as jnp
from flax import nnx

from lab.axes import Dims, scale, weight
from lab.layers.embed import project


def rms_norm(x: jax.Array, epsilon: float = 1e-6) -> jax.Array:
    """x / rms(x) over the last axis, in float32."""
    y = x.astype(jnp.float32)
    return (y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + epsilon)).astype(x.dtype)


class Mixer(nnx.Module):
    """Multi-head self-attention over all tokens: [B, T, embed] -> [B, T, embed].

    `qk_norm` normalises queries and keys and gives each a gain over head_dim (arXiv 2302.05442).
    """

    def __init__(self, dims: Dims, qk_norm: bool = False):
        self.qkv = weight("3 | embed -> heads head_dim", dims)
        self.qkv_bias = weight("3 | -> heads head_dim", dims, fill=0.0)
        self.out = weight("heads head_dim => embed", dims)
        self.out_bias = weight("=> embed", dims, fill=0.0)
        self.logits = scale("head_dim ->", dims)
        self.gain = weight("2 | -> head_dim", dims, fill=1.0) if qk_norm else None

    def __call__(self, x: jax.Array) -> jax.Array:
        q, k, v = (project(x, w, b) for w, b in zip(self.qkv.get_value(), self.qkv_bias.get_value(), strict=True))
        if self.gain is not None:
            q, k = (rms_norm(y) * g for y, g in zip((q, k), self.gain.get_value(), strict=True))
        scores = jnp.einsum("bthe,bshe->bhts", q * self.logits.get_value(), k)
        shares = jax.nn.softmax(scores.astype(jnp.float32), axis=-1).astype(x.dtype)
        return project(jnp.einsum("bhts,bshe->bthe", shares, v), self.out.get_value(), self.out_bias.get_value(), 2)
