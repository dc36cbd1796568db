"""Masked tokens by dual and single stream blocks, with fewer tokens inside than outside (Meissonic, arXiv 2410.08261)."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lab.axes import Dims, split, stack, weight
from lab.layers import embed, modulation, rope, text
from lab.layers.attention import rms_norm
from lab.models.mmdit import Dual, PooledEmbed, Single
from lab.models.shared import need, through, trunk


class Model(nnx.Module):
    """Inputs tokens int [B, side, side] (negative: masked), t [B] (share masked) and text [B, length] -> logits [B, side^2, vocabulary].

    `depth` dual blocks come first, then `single` blocks of one weight set over text and image. A convolution makes one token of
    `compress` x `compress` before them, and a transposed one undoes it. The share of masked tokens and the mean of the text's words
    modulate every block; image tokens have rotary positions on the square that is left, and words stand at its origin.
    """

    takes = ("tokens", "t", "text")

    @staticmethod
    def axes(
        width,
        depth,
        single,
        head_dim,
        mlp_ratio,
        side,
        vocabulary,
        compress=1,
        words=0,
        length=0,
        features=0,
        text_depth=1,
    ) -> dict[str, int]:
        """Sizes of every axis; one width knob moves embed, heads and mlp together at a fixed head_dim."""
        split("model.head_dim", head_dim, "4 (rotary positions on a square)", 4)
        return {
            **trunk(width, depth + single, head_dim, mlp_ratio),  # one residual stream runs through both kinds of block
            "single_layers": single,
            "side": split("side", side, "model.compress", compress) * compress,
            "compress": compress,
            "cells": compress * compress,
            "vocabulary": vocabulary,
            "symbols": vocabulary + 1,
            "frequencies": 256,
            **text.axes(words, length, features, text_depth),
        }

    def __init__(self, dims: Dims, qk_norm: bool, zero_gates: bool):
        self.mask, self.side, self.compress, self.head_dim = (dims[k] for k in ("vocabulary", "side", "compress", "head_dim"))
        self.singles, self.duals = dims["single_layers"], dims["layers"] - dims["single_layers"]
        self.table = weight("symbols | -> embed", dims)
        self.down = weight("cells embed -> embed", dims)
        self.down_bias = weight("-> embed", dims, fill=0.0)
        self.time = embed.TimeEmbed(dims)
        self.text = text.Encoder(dims)
        self.pooled = PooledEmbed("embed", dims)
        self.blocks = stack(Dual(dims, qk_norm, zero_gates), self.duals, dims)
        self.single = stack(Single(dims, qk_norm, zero_gates), self.singles, dims)
        self.modulation = modulation.AdaLN(2, dims, init=0.0 if zero_gates else 1.0)
        self.up = weight("embed -> cells embed", dims)
        self.up_bias = weight("-> embed", dims, fill=0.0)
        self.readout = weight("embed -> vocabulary", dims, init=0.0)
        self.readout_bias = weight("-> vocabulary", dims, fill=0.0)

    def __call__(self, inputs: dict[str, jax.Array], cache: None = None) -> jax.Array:
        need("meissonic", self.takes, inputs, cache)
        tokens, words = inputs["tokens"], self.text(inputs["text"])
        image = rms_norm(self.table.get_value()[jnp.where(tokens < 0, self.mask, tokens)])
        # a convolution whose stride is its size is a product over the features of its cells
        image = embed.patchify(image, self.compress).reshape(*self._inner(tokens), self.compress**2, -1)
        image = embed.project(image, self.down.get_value(), self.down_bias.get_value(), 2)
        c = self.time(inputs["t"]) + self.pooled(text.pooled(words, inputs["text"]))
        grid = rope.grid(self.side // self.compress, self.head_dim)
        angles = jnp.asarray(np.concatenate([np.zeros((words.shape[1], self.head_dim // 2), np.float32), grid]))
        words, image = through(self.blocks, (words, image), lambda block, x: block(*x, c, angles), self.duals)
        both = jnp.concatenate([words, image], axis=1)
        image = through(self.single, both, lambda block, x: block(x, c, angles), self.singles)[:, words.shape[1] :]
        shift, gain = self.modulation(c)
        image = embed.project(modulation.modulate(image, shift, gain), self.up.get_value(), self.up_bias.get_value())
        image = embed.unpatchify(image.reshape(*self._inner(tokens), -1), self.compress, self.side)
        image = modulation.layer_norm(image.reshape(len(tokens), self.side**2, -1))
        return embed.project(image, self.readout.get_value(), self.readout_bias.get_value())

    def _inner(self, tokens: jax.Array) -> tuple[int, int]:
        """Examples, and tokens of each within the blocks."""
        return len(tokens), (self.side // self.compress) ** 2
