"""Attention of each token to itself and those before it, with a cache for decoding one token at a time."""

import jax
import jax.numpy as jnp
from flax import nnx

from lab.axes import Dims, scale, weight
from lab.layers.attention import attend, normalised
from lab.layers.embed import project
from lab.layers.rope import rotate

Past = tuple[jax.Array, jax.Array]


class Attention(nnx.Module):
    """Causal self-attention without biases: [B, T, embed] -> [B, T, embed], and the keys and values [B, S, kv_heads, head_dim].

    With fewer `kv_heads` than heads, neighbouring heads share keys and values (grouped-query attention, arXiv 2305.13245). `qk_norm`
    normalises queries and keys and gives each a gain over head_dim (arXiv 2302.05442).
    """

    def __init__(self, dims: Dims, qk_norm: bool):
        self.query = weight("embed -> heads head_dim", dims)
        self.key_value = weight("2 | embed -> kv_heads head_dim", dims)
        self.out = weight("heads head_dim => embed", dims)
        self.logits = scale("head_dim ->", dims)
        self.gain = weight("2 | -> head_dim", dims, fill=1.0) if qk_norm else None

    def __call__(
        self,
        x: jax.Array,
        angles: jax.Array | None,
        past: Past | None = None,
        position: jax.Array | int = 0,
        bias: jax.Array | None = None,
    ) -> tuple[jax.Array, Past]:
        """Tokens x stand at `position` and after it, turned by angles [T, head_dim / 2], or told apart by a bias of scores [heads, T, S].

        Without a `past` they are all there is (S = T, position 0). With one, of room for S tokens, they are written into it at
        `position`: every call costs the same, wherever it stands.
        """
        q, k, v = (project(x, w, 0.0) for w in (self.query.get_value(), *self.key_value.get_value()))
        q, k = normalised(self.gain, q, k)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        if past is not None:
            k, v = (jax.lax.dynamic_update_slice(old, new, (0, position, 0, 0)) for old, new in zip(past, (k, v), strict=True))
        seen = jnp.arange(k.shape[1]) <= position + jnp.arange(x.shape[1])[:, None]
        y = attend(q * self.logits.get_value(), k, v, seen, causal=past is None, bias=bias)
        return project(y, self.out.get_value(), 0.0, 2), (k, v)
