"""A bidirectional transformer that tells hidden image tokens from those shown (MaskGIT, arXiv 2202.04200; MUSE, arXiv 2301.00704)."""

import jax
import jax.numpy as jnp
from flax import nnx

from lab.axes import Dims, stack, weight
from lab.layers import attention, embed, mlp, text
from lab.layers.modulation import layer_norm
from lab.models.shared import condition, need, through, trunk


class Block(nnx.Module):
    """x + attention(norm x), then x + mlp(norm x), over all tokens."""

    def __init__(self, dims: Dims, qk_norm: bool):
        self.attention = attention.Mixer(dims, qk_norm)
        self.mlp = mlp.Mixer(dims)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(layer_norm(x))
        return x + self.mlp(layer_norm(x))


class Model(nnx.Module):
    """Inputs tokens int [B, side, side] or [B, tokens] (negative: masked) and a condition -> logits [B, tokens, vocabulary].

    The condition stands in the sequence before the image: text [B, length] where the data has it, else one token for label [B]
    (negative: none). The share of masked tokens is no input, as it can be seen.
    """

    @staticmethod
    def axes(width, depth, head_dim, mlp_ratio, tokens, vocabulary, classes, words=0, length=0, features=0, text_depth=0) -> dict[str, int]:
        """Sizes of every axis; one width knob moves embed, heads and mlp together at a fixed head_dim."""
        return {
            **trunk(width, depth, head_dim, mlp_ratio),
            "tokens": tokens,
            "vocabulary": vocabulary,
            "symbols": vocabulary + 1,
            **condition(classes, words, length, features, text_depth),
        }

    def __init__(self, dims: Dims, qk_norm: bool):
        self.mask, self.layers, self.takes = dims["vocabulary"], dims["layers"], ("tokens", "text" if "length" in dims else "label")
        self.table = weight("symbols | -> embed", dims)
        self.positions = weight("tokens | -> embed", dims)
        self.label = None if "length" in dims else embed.LabelEmbed(dims)
        self.text = text.Encoder(dims) if "length" in dims else None
        self.blocks = stack(Block(dims, qk_norm), self.layers, dims)
        self.transform = embed.Linear("embed -> embed", dims)
        self.readout = weight("embed -> vocabulary", dims, init=0.0)
        self.readout_bias = weight("-> vocabulary", dims, fill=0.0)

    def __call__(self, inputs: dict[str, jax.Array], cache: None = None) -> jax.Array:
        need("masked", self.takes, inputs, cache)
        tokens = inputs["tokens"].reshape(inputs["tokens"].shape[0], -1)
        x = self.table.get_value()[jnp.where(tokens < 0, self.mask, tokens)] + self.positions.get_value()
        given = self.label(inputs["label"])[:, None] if self.text is None else self.text(inputs["text"])
        x = through(self.blocks, jnp.concatenate([given, x], axis=1), lambda block, x: block(x), self.layers)
        x = layer_norm(jax.nn.gelu(self.transform(layer_norm(x[:, given.shape[1] :])), approximate=True))
        return embed.project(x, self.readout.get_value(), self.readout_bias.get_value())
