"""Cross-attention: image tokens read words."""

import jax
from flax import nnx

from lab.axes import Dims, scale, weight
from lab.layers.attention import attend, normalised
from lab.layers.embed import project


class Attention(nnx.Module):
    """Multi-head attention of tokens [B, T, embed] to words [B, S, embed] -> [B, T, embed].

    `seen` [B, S] is True for the words that may be read. `qk_norm` is as in self-attention; `init` is that of the last weight: 0
    starts the branch at zero.
    """

    def __init__(self, dims: Dims, qk_norm: bool = False, init: float = 1.0):
        self.q = weight("embed -> heads head_dim", dims)
        self.q_bias = weight("-> heads head_dim", dims, fill=0.0)
        self.kv = weight("2 | embed -> heads head_dim", dims)
        self.kv_bias = weight("2 | -> heads head_dim", dims, fill=0.0)
        self.out = weight("heads head_dim => embed", dims, init=init)
        self.out_bias = weight("=> embed", dims, fill=0.0)
        self.logits = scale("head_dim ->", dims)
        self.gain = weight("2 | -> head_dim", dims, fill=1.0) if qk_norm else None

    def __call__(self, x: jax.Array, words: jax.Array, seen: jax.Array) -> jax.Array:
        q = project(x, self.q.get_value(), self.q_bias.get_value())
        k, v = (project(words, w, b) for w, b in zip(self.kv.get_value(), self.kv_bias.get_value(), strict=True))
        q, k = normalised(self.gain, q, k)
        y = attend(q * self.logits.get_value(), k, v, seen[:, None, None, :])
        return project(y, self.out.get_value(), self.out_bias.get_value(), 2)
