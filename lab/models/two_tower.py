"""A two-tower model of pictures and captions: each has a vector, and those that belong together have a small angle (CLIP, arXiv 2103.00020).

The space that both are laid in is as wide as the model. In one of fixed size the vectors would vanish with width before they are brought
to unit length, which would undo what muP makes of a readout; a cosine over an infinite axis has no size of its own.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from lab.axes import Dims, weight
from lab.layers import embed, text
from lab.models.classifier import Tower, sizes
from lab.models.shared import need

MOST = 100.0  # what cosines are multiplied by at most. They start with 1: CLIP's 14 makes much of angles that are chance, as width^-1/2


def unit(x: jax.Array) -> jax.Array:
    """Vectors [B, n] brought to unit length, in float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)


class Model(nnx.Module):
    """Inputs x [B, side, side, channels] in [-1, 1] and text [B, length, ...] -> logits [B, B] of every picture (rows) with every text."""

    takes = ("x", "text")

    @staticmethod
    def axes(width, depth, head_dim, mlp_ratio, patch, image, channels, words=0, length=0, features=0, text_depth=0) -> dict[str, int]:
        """Sizes of every axis."""
        return {**sizes(width, depth, head_dim, mlp_ratio, patch, image, channels), **text.axes(words, length, features, text_depth)}

    def __init__(self, dims: Dims, qk_norm: bool):
        self.tower, self.words = Tower(dims, qk_norm), text.Encoder(dims)
        self.image_out, self.text_out = embed.Linear("embed -> embed", dims), embed.Linear("embed -> embed", dims)
        self.sharpness = weight("->", dims, fill=0.0)

    def features(self, x: jax.Array) -> jax.Array:
        """Unit vectors [B, embed] of pictures."""
        return unit(self.image_out(self.tower(x)))

    def said(self, words: jax.Array) -> jax.Array:
        """Unit vectors [B, embed] of texts."""
        return unit(self.text_out(text.pooled(self.words(words), words)))

    def __call__(self, inputs: dict[str, jax.Array], cache: None = None) -> jax.Array:
        need("two_tower", self.takes, inputs, cache)
        sharpness = jnp.minimum(jnp.exp(self.sharpness.get_value().astype(jnp.float32)), MOST)
        return sharpness * self.features(inputs["x"]) @ self.said(inputs["text"]).T
