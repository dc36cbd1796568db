"""Self-attention to fewer keys and values: each is one of a square of tokens (PixArt-Sigma, arXiv 2403.04692, section 3.3)."""

import math

import jax
import jax.numpy as jnp
from einops import rearrange

from lab.axes import Dims, weight
from lab.layers import attention
from lab.layers.attention import attend, normalised
from lab.layers.embed import project
from lab.layers.modulation import layer_norm


class Attention(attention.Mixer):
    """Multi-head self-attention over a square grid of tokens, [B, T, embed] -> [B, T, embed], to T / kv_compress^2 keys and values.

    A depth-wise convolution with stride and size `kv_compress`, at first the average, and a LayerNorm reduce keys and values alike.
    """

    def __init__(self, dims: Dims, qk_norm: bool = False):
        super().__init__(dims, qk_norm)
        self.factor = dims["kv_compress"]
        # a channel meets no other: one vector of channels for each place in the square
        self.taps = weight(f"{self.factor**2} | -> heads head_dim", dims, fill=self.factor**-2)
        self.taps_bias = weight("-> heads head_dim", dims, fill=0.0)
        self.norm_gain = weight("-> heads head_dim", dims, fill=1.0)
        self.norm_bias = weight("-> heads head_dim", dims, fill=0.0)

    def reduce(self, y: jax.Array) -> jax.Array:
        """Keys or values [B, T, heads, head_dim] -> [B, T / kv_compress^2, heads, head_dim]."""
        grid = dict(h=math.isqrt(y.shape[1]) // self.factor, p=self.factor, q=self.factor)
        y = rearrange(y, "b (h p w q) n e -> b (h w) (p q) n e", **grid)
        y = jnp.sum(y * self.taps.get_value(), axis=2) + self.taps_bias.get_value()
        normed = layer_norm(y.reshape(*y.shape[:2], -1)).reshape(y.shape)
        return normed * self.norm_gain.get_value() + self.norm_bias.get_value()

    def __call__(self, x: jax.Array) -> jax.Array:
        q, k, v = (project(x, w, b) for w, b in zip(self.qkv.get_value(), self.qkv_bias.get_value(), strict=True))
        k, v = self.reduce(k), self.reduce(v)
        q, k = normalised(self.gain, q, k)
        return project(attend(q * self.logits.get_value(), k, v), self.out.get_value(), self.out_bias.get_value(), 2)
