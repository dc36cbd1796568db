"""Decoder-only transformer over image tokens in raster order, as LLaMA's (arXiv 2302.13971) for images (LlamaGen, arXiv 2406.06525).

Every token is predicted from a prefix, a class or a text, and from the tokens before it.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lab.axes import Dims, split, stack, weight
from lab.errors import UserError, unknown
from lab.layers import causal, rope, swiglu, text
from lab.layers.attention import rms_norm
from lab.layers.embed import LabelEmbed, project
from lab.models.shared import collect, condition, need, through, trunk

ROPES = ("line", "grid")


class Block(nnx.Module):
    """x + attention(gain norm x), then x + mlp(gain norm x), with RMSNorm and without biases."""

    def __init__(self, dims: Dims, qk_norm: bool):
        self.attention = causal.Attention(dims, qk_norm)
        self.mlp = swiglu.Mixer(dims)
        self.gains = weight("2 | -> embed", dims, fill=1.0)

    def __call__(
        self, x: jax.Array, angles: jax.Array, past: causal.Past | None = None, position: jax.Array | int = 0
    ) -> tuple[jax.Array, causal.Past]:
        gain, gain_mlp = self.gains.get_value()
        y, past = self.attention(rms_norm(x) * gain, angles, past, position)
        x = x + y
        return x + self.mlp(rms_norm(x) * gain_mlp), past


class Model(nnx.Module):
    """Inputs tokens int [B, side, side] or [B, tokens], and text [B, length] where the source has it, else label [B] (negative: none).

    -> logits [B, tokens, vocabulary]: those at i, of token i, see the prefix and the tokens before i. Options: `rope` turns queries
    and keys by their place on a 'line' (prefix and tokens) or on the image's 'grid', where the prefix stands still; `qk_norm`.
    Decoding: `logits, cache = model(inputs, model.init_cache(B))` for the label or text alone, then for {'tokens': [B, 1]} at a time,
    gives the logits [B, 1, vocabulary] of the next token.
    """

    @staticmethod
    def axes(
        width, depth, head_dim, mlp_ratio, vocabulary, tokens, classes, kv_group=1, side=0, words=0, length=0, features=0, text_depth=0
    ) -> dict[str, int]:
        """Sizes of every axis; one width knob moves embed, heads, kv_heads and mlp; `kv_group` query heads share a key head."""
        split("model.head_dim", head_dim, "2 (rotary pairs)", 2)
        sizes = trunk(width, depth, head_dim, mlp_ratio)
        return {
            **sizes,
            "kv_heads": split("heads (model.width / model.head_dim)", sizes["heads"], "model.kv_group", kv_group),
            "vocabulary": vocabulary,
            "tokens": tokens,
            "side": side,
            **condition(classes, words, length, features, text_depth),
        }

    def __init__(self, dims: Dims, qk_norm: bool, rope: str):
        if rope not in ROPES:
            raise unknown("model.rope", rope, ROPES)
        self.tokens, self.layers, self.side = dims["tokens"], dims["layers"], dims["side"] if rope == "grid" else 0
        if rope == "grid":
            split("model.head_dim", dims["head_dim"], "4 (rotary pairs by row and column)", 4)
            if self.side**2 != self.tokens:
                raise UserError(f"model.rope='grid' needs tokens on a square grid; tokens={self.tokens}, side={self.side}; expected 'line'")
        self.groups, self.head_dim = dims["kv_heads"], dims["head_dim"]
        self.label = LabelEmbed(dims) if "labels" in dims else None
        self.text = text.Encoder(dims) if self.label is None else None
        self.takes = ("tokens", "label" if self.text is None else "text")
        self.prefix = dims["length"] if self.label is None else 1
        self.table = weight("vocabulary | -> embed", dims)
        self.blocks = stack(Block(dims, qk_norm), self.layers, dims)
        self.gain = weight("-> embed", dims, fill=1.0)
        self.readout = weight("embed -> vocabulary", dims, init=0.0)

    def init_cache(self, batch: int) -> dict[str, jax.Array]:
        """The cache of `batch` sequences of which nothing is known yet: `position`, and keys and values of every layer and place."""
        shape = (self.layers, batch, self.prefix + self.tokens - 1, self.groups, self.head_dim)
        return {"position": jnp.int32(0), **{k: jnp.zeros(shape, self.readout.get_value().dtype) for k in ("keys", "values")}}

    def __call__(self, inputs: dict[str, jax.Array], cache: dict[str, jax.Array] | None = None) -> Any:
        if cache is not None:
            return self._next(inputs, cache)
        need("decoder", self.takes, inputs)
        tokens = inputs["tokens"].reshape(len(inputs["tokens"]), -1)
        if tokens.shape[1] != self.tokens:
            raise UserError(f"model 'decoder' is of {self.tokens} tokens; given: {tokens.shape[1]}")
        x = jnp.concatenate([self._conditions(inputs), self.table.get_value()[tokens[:, :-1]]], axis=1)
        angles = jnp.asarray(self._angles())
        x = through(self.blocks, x, lambda block, x: block(x, angles)[0], self.layers)
        return self._logits(x[:, self.prefix - 1 :])

    def _next(self, inputs: dict[str, jax.Array], cache: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The logits after what is new, and the cache that knows it."""
        if "tokens" in inputs:
            x = self.table.get_value()[inputs["tokens"]]
        else:
            need("decoder", self.takes[1:], inputs)
            x = self._conditions(inputs)
        n, position = x.shape[1], cache["position"]
        angles = jax.lax.dynamic_slice_in_dim(jnp.asarray(self._angles()), position, n)
        rows = self.blocks, (cache["keys"], cache["values"])
        x, (keys, values) = collect(rows, x, lambda row, x: row[0](x, angles, row[1], position), self.layers)
        return self._logits(x[:, -1:]), {"position": position + n, "keys": keys, "values": values}

    def _conditions(self, inputs: dict[str, jax.Array]) -> jax.Array:
        return self.text(inputs["text"]) if self.label is None else self.label(inputs["label"])[:, None]

    def _angles(self) -> np.ndarray:
        """Rotary angles of the prefix and all tokens but the last, which nothing follows."""
        if not self.side:
            return rope.line(self.prefix + self.tokens - 1, self.head_dim)
        still = np.zeros((self.prefix, self.head_dim // 2), np.float32)
        return np.concatenate([still, rope.grid(self.side, self.head_dim)[:-1]])

    def _logits(self, x: jax.Array) -> jax.Array:
        return project(rms_norm(x) * self.gain.get_value(), self.readout.get_value(), 0.0)
