"""Joint attention: text and image, each with weights of its own, look at both in one softmax (SD3, arXiv 2403.03206)."""

import jax
import jax.numpy as jnp
from flax import nnx

from lab.axes import Dims, scale, weight
from lab.layers.attention import attend, normalised
from lab.layers.embed import project
from lab.layers.rope import rotate


class Stream(nnx.Module):
    """One stream's way into joint attention and out of it; without `asks` it is only looked at, by keys and values.

    `qk_norm` normalises queries and keys and gives each a gain over head_dim.
    """

    def __init__(self, dims: Dims, qk_norm: bool, asks: bool = True):
        n = 3 if asks else 2
        self.qkv = weight(f"{n} | embed -> heads head_dim", dims)
        self.qkv_bias = weight(f"{n} | -> heads head_dim", dims, fill=0.0)
        self.gain = weight(f"{n - 1} | -> head_dim", dims, fill=1.0) if qk_norm else None
        self.out = weight("heads head_dim => embed", dims) if asks else None
        self.out_bias = weight("=> embed", dims, fill=0.0) if asks else None

    def enter(self, x: jax.Array) -> list[jax.Array]:
        """[B, T, embed] -> queries where the stream asks, keys and values, each [B, T, heads, head_dim]."""
        *looks, v = (project(x, w, b) for w, b in zip(self.qkv.get_value(), self.qkv_bias.get_value(), strict=True))
        return [*normalised(self.gain, *looks), v]

    def leave(self, x: jax.Array) -> jax.Array:
        """[B, T, heads, head_dim] -> [B, T, embed]."""
        return project(x, self.out.get_value(), self.out_bias.get_value(), 2)


class Attention(nnx.Module):
    """Text [B, L, embed] and image [B, T, embed] -> what each has seen of both, of the same shapes; text's is None where it asks nothing.

    `angles` [L + T, head_dim / 2] turn queries and keys, the text's first.
    """

    def __init__(self, dims: Dims, qk_norm: bool, text_asks: bool = True):
        self.text = Stream(dims, qk_norm, text_asks)
        self.image = Stream(dims, qk_norm)
        self.logits = scale("head_dim ->", dims)

    def __call__(self, text: jax.Array, image: jax.Array, angles: jax.Array | None = None) -> tuple[jax.Array | None, jax.Array]:
        *asked, text_k, text_v = self.text.enter(text)
        image_q, image_k, image_v = self.image.enter(image)
        q, k, v = (jnp.concatenate(x, axis=1) for x in ([*asked, image_q], [text_k, image_k], [text_v, image_v]))
        if angles is not None:
            q, k = rotate(q, angles[-q.shape[1] :]), rotate(k, angles)
        mixed = attend(q * self.logits.get_value(), k, v)
        if not asked:
            return None, self.image.leave(mixed)
        words = text.shape[1]
        return self.text.leave(mixed[:, :words]), self.image.leave(mixed[:, words:])
