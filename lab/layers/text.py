"""Text as a model reads it: tokens through a small learned encoder, or features that the data brings."""

import jax
import jax.numpy as jnp
from flax import nnx

from lab.axes import Dims, stack, weight
from lab.errors import UserError
from lab.layers import attention, mlp
from lab.layers.attention import rms_norm
from lab.layers.embed import Linear


def axes(words: int, length: int, features: int, text_depth: int) -> dict[str, int]:
    """Sizes of the axes of text; UserError where the data has neither tokens (words, length) nor features (features, length)."""
    if not length or not (words or features):
        raise UserError(
            "config key data: this model reads text, and the source gives none; ask shapes for data.extras=('text',), wrap a source with "
            "captions in data.name='text', or store features of them by `lab data encode`"
        )
    return {"length": length, **({"text_features": features} if features else {"words": words, "text_layers": text_depth})}


class Block(nnx.Module):
    """x + attention(norm x), then x + mlp(norm x), over all words."""

    def __init__(self, dims: Dims):
        self.attention = attention.Mixer(dims)
        self.mlp = mlp.Mixer(dims)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(rms_norm(x))
        return x + self.mlp(rms_norm(x))


class Encoder(nnx.Module):
    """Text [B, length], or features [B, length, text_features], -> [B, length, embed], a vector a word, each of unit size.

    Tokens go through a table, learned positions and `text_layers` blocks. PAD (0) is a word like others, so a hidden text, PAD alone, is
    one more thing to be conditioned on. Features, such as a frozen encoder's, of any size but zero, go through one linear layer.
    """

    def __init__(self, dims: Dims):
        self.features = Linear("text_features -> embed", dims) if "text_features" in dims else None
        self.table = weight("words | -> embed", dims) if self.features is None else None
        self.positions = weight("length | -> embed", dims)
        self.blocks = stack(Block(dims), dims["text_layers"], dims, "text_layers") if dims.get("text_layers") else None

    def __call__(self, text: jax.Array) -> jax.Array:
        positions = self.positions.get_value()
        if text.shape[1] > len(positions):
            raise UserError(f"text of {text.shape[1]} words is longer than the model was made for: length={len(positions)}")
        x = self.table.get_value()[text] if self.features is None else self.features(rms_norm(text.astype(positions.dtype)))
        x = x + positions[: text.shape[1]]
        if self.blocks is not None:
            x, _ = jax.lax.scan(lambda x, block: (block(x), None), x, self.blocks, unroll=True)
        return rms_norm(x)


def said(text: jax.Array) -> jax.Array:
    """Which words [B, length] of a text are said: not PAD (0), or not all features zero."""
    return (text != 0) if text.ndim == 2 else jnp.any(text != 0, axis=-1)


def pooled(words: jax.Array, text: jax.Array) -> jax.Array:
    """Mean [B, embed] of encoded words [B, length, embed] over those that are said; zero where none is."""
    share = said(text).astype(words.dtype)[..., None]
    return jnp.sum(words * share, axis=1) / jnp.maximum(jnp.sum(share, axis=1), 1)
