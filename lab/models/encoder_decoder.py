"""Encoder-decoder transformer: a bidirectional encoder of text, a causal decoder of image tokens that reads it (Parti, arXiv 2206.10789).

Each half has a width and a depth of its own. The encoder's weights have the names of axes that the decoder's have, and its own sizes.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lab.axes import Dims, scale, split, stack, weight
from lab.errors import UserError, unknown
from lab.layers import causal, relative, rope, text
from lab.layers.attention import attend, rms_norm
from lab.layers.embed import Linear, project
from lab.models.shared import collect, need, part, through, trunk

POSITIONS = ("line", "grid", "relative")
HALF = {"embed": "text_embed", "heads": "text_heads", "mlp": "text_mlp"}


def encoder(dims: Dims) -> Dims:
    """The encoder's sizes under the names that layers know: its `embed` is the axis text_embed, and moves with the knobs that this does."""
    sizes = {**dims, **{ours: dims[own] for ours, own in HALF.items()}}
    base = {a: n for a, n in dims.base.items() if a not in HALF}
    return Dims(sizes, base | {ours: dims.base[own] for ours, own in HALF.items() if own in dims.base})


class Read(nnx.Module):
    """Attention of [B, T, embed] to what is read, [B, S, source], without biases -> [B, T, embed]; `qk_norm` as in self-attention."""

    def __init__(self, source: str, dims: Dims, qk_norm: bool):
        self.query = weight("embed -> heads head_dim", dims)
        self.key_value = weight(f"2 | {source} -> heads head_dim", dims)
        self.out = weight("heads head_dim => embed", dims)
        self.logits = scale("head_dim ->", dims)
        self.gain = weight("2 | -> head_dim", dims, fill=1.0) if qk_norm else None

    def keys(self, words: jax.Array, angles: jax.Array | None = None) -> causal.Past:
        """Keys and values of what is read, each [B, S, heads, head_dim]."""
        k, v = (project(words, w, 0.0) for w in self.key_value.get_value())
        return self._look(1, k, angles), v

    def __call__(
        self,
        x: jax.Array,
        past: causal.Past,
        seen: jax.Array,
        angles: jax.Array | None = None,
        bias: jax.Array | None = None,
    ) -> jax.Array:
        q = self._look(0, project(x, self.query.get_value(), 0.0), angles)
        y = attend(q * self.logits.get_value(), *past, seen[:, None, None, :], bias=bias)
        return project(y, self.out.get_value(), 0.0, 2)

    def _look(self, row: int, y: jax.Array, angles: jax.Array | None) -> jax.Array:
        y = y if self.gain is None else rms_norm(y) * self.gain.get_value()[row]
        return y if angles is None else rope.rotate(y, angles)


class EncoderBlock(nnx.Module):
    """x + attention(gain norm x) over all words that are said, then x + mlp(gain norm x), with RMSNorm and without biases."""

    def __init__(self, dims: Dims, qk_norm: bool, channel_mixer: str):
        self.attention = Read("embed", dims, qk_norm)
        self.mlp = part(channel_mixer, dims)
        self.gains = weight("2 | -> embed", dims, fill=1.0)

    def __call__(self, x: jax.Array, seen: jax.Array, angles: jax.Array | None, bias: jax.Array | None) -> jax.Array:
        gain, gain_mlp = self.gains.get_value()
        y = rms_norm(x) * gain
        x = x + self.attention(y, self.attention.keys(y, angles), seen, angles, bias)
        return x + self.mlp(rms_norm(x) * gain_mlp)


class DecoderBlock(nnx.Module):
    """x + attention(gain norm x) to earlier tokens, x + cross(gain norm x, words), then x + mlp(gain norm x)."""

    def __init__(self, dims: Dims, qk_norm: bool, channel_mixer: str):
        self.attention = causal.Attention(dims, qk_norm)
        self.cross = Read("text_embed", dims, qk_norm)
        self.mlp = part(channel_mixer, dims)
        self.gains = weight("3 | -> embed", dims, fill=1.0)

    def __call__(
        self,
        x: jax.Array,
        words: causal.Past,
        seen: jax.Array,
        angles: jax.Array | None,
        bias: jax.Array | None,
        past: causal.Past | None = None,
        position: jax.Array | int = 0,
    ) -> tuple[jax.Array, causal.Past]:
        gain, gain_cross, gain_mlp = self.gains.get_value()
        y, past = self.attention(rms_norm(x) * gain, angles, past, position, bias)
        x = x + y
        x = x + self.cross(rms_norm(x) * gain_cross, words, seen)
        return x + self.mlp(rms_norm(x) * gain_mlp), past


class Encoder(nnx.Module):
    """Text, tokens [B, length] or features [B, length, text_features], -> words [B, length, text_embed], `text_layers` blocks later."""

    def __init__(self, dims: Dims, qk_norm: bool, positions: str, channel_mixer: str):
        dims = encoder(dims)
        self.head_dim, self.layers = dims["head_dim"], dims["text_layers"]
        self.features = Linear("text_features -> embed", dims) if "text_features" in dims else None
        self.table = weight("words | -> embed", dims) if self.features is None else None
        self.bias = relative.Bias(dims, both=True) if positions == "relative" else None
        self.blocks = stack(EncoderBlock(dims, qk_norm, channel_mixer), self.layers, dims, "text_layers")
        self.gain = weight("-> embed", dims, fill=1.0)

    def __call__(self, given: jax.Array, seen: jax.Array) -> jax.Array:
        dtype, at = self.gain.get_value().dtype, jnp.arange(given.shape[1])
        x = self.table.get_value()[given] if self.features is None else self.features(rms_norm(given.astype(dtype)))
        bias = None if self.bias is None else self.bias(at, at)
        angles = jnp.asarray(rope.line(given.shape[1], self.head_dim)) if self.bias is None else None
        x = through(self.blocks, x, lambda block, x: block(x, seen, angles, bias), self.layers)
        return rms_norm(x) * self.gain.get_value()


class Model(nnx.Module):
    """Inputs tokens int [B, side, side] or [B, tokens], and text -> logits [B, tokens, vocabulary]: those at i see the text and tokens before i.

    Text is tokens [B, length] or features [B, length, text_features]; padding (token 0, features all zero) is not read, but where it is
    all there is. `positions` turn queries and keys by their place on a 'line' or the image's 'grid' (words: on a line), or are
    'relative', T5's learned biases; words have none for the decoder. `channel_mixer` names a part of lab/layers, or a file, that
    exports Mixer. Decoding: `logits, cache = model({'text': text}, model.init_cache(B))`, which encodes the text and keeps keys and
    values of its words, then {'tokens': [B, 1]} at a time gives the logits [B, 1, vocabulary] of the next token.
    """

    takes = ("tokens", "text")

    @staticmethod
    def axes(
        width,
        depth,
        head_dim,
        mlp_ratio,
        vocabulary,
        tokens,
        text_width=0,
        text_depth=1,
        kv_group=1,
        side=0,
        words=0,
        length=0,
        features=0,
    ) -> dict[str, int]:
        """Sizes of every axis: `width` and `depth` are the decoder's, and the encoder's width too where it has none of its own."""
        split("model.head_dim", head_dim, "2 (rotary pairs)", 2)
        sizes = trunk(width, depth, head_dim, mlp_ratio)
        split("model.text_width", text_width or width, "model.head_dim", head_dim)
        half = trunk(text_width or width, text_depth, head_dim, mlp_ratio)
        return {
            **sizes,
            "kv_heads": split("heads (model.width / model.head_dim)", sizes["heads"], "model.kv_group", kv_group),
            **{own: half[ours] for ours, own in HALF.items()},
            **{"vocabulary": vocabulary, "tokens": tokens, "side": side, "buckets": relative.BUCKETS},
            **text.axes(words, length, features, text_depth),
            "text_layers": text_depth,
        }

    def __init__(self, dims: Dims, qk_norm: bool, positions: str, channel_mixer: str = "swiglu"):
        if positions not in POSITIONS:
            raise unknown("model.positions", positions, POSITIONS)
        self.tokens, self.layers, self.side = dims["tokens"], dims["layers"], dims["side"] if positions == "grid" else 0
        if positions == "grid":
            split("model.head_dim", dims["head_dim"], "4 (rotary pairs by row and column)", 4)
            if self.side**2 != self.tokens:
                raise UserError(
                    f"model.positions='grid' needs tokens on a square grid; tokens={self.tokens}, side={self.side}; expected 'line'"
                )
        self.groups, self.head_dim = dims["kv_heads"], dims["head_dim"]
        self.encoder = Encoder(dims, qk_norm, positions, channel_mixer)
        self.start = weight("1 | -> embed", dims)  # what stands before the first token: a table of one row
        self.table = weight("vocabulary | -> embed", dims)
        self.bias = relative.Bias(dims, both=False) if positions == "relative" else None
        self.blocks = stack(DecoderBlock(dims, qk_norm, channel_mixer), self.layers, dims)
        self.gain = weight("-> embed", dims, fill=1.0)
        self.readout = weight("embed -> vocabulary", dims, init=0.0)

    def init_cache(self, batch: int) -> dict[str, jax.Array]:
        """The cache of `batch` sequences of which nothing is known yet: `position`, and keys and values of every layer and place."""
        shape = (self.layers, batch, self.tokens, self.groups, self.head_dim)
        return {"position": jnp.int32(0), **{k: jnp.zeros(shape, self.readout.get_value().dtype) for k in ("keys", "values")}}

    def __call__(self, inputs: dict[str, jax.Array], cache: dict[str, jax.Array] | None = None) -> Any:
        if cache is not None:
            return self._next(inputs, cache)
        need("encoder_decoder", self.takes, inputs)
        tokens = inputs["tokens"].reshape(len(inputs["tokens"]), -1)
        if tokens.shape[1] != self.tokens:
            raise UserError(f"model 'encoder_decoder' is of {self.tokens} tokens; given: {tokens.shape[1]}")
        words, seen = self._words(inputs["text"])
        x = jnp.concatenate([self._start(len(tokens)), self.table.get_value()[tokens[:, :-1]]], axis=1)
        angles, bias = self._places(jnp.arange(self.tokens))
        x = through(self.blocks, x, lambda block, x: block(x, block.cross.keys(words), seen, angles, bias)[0], self.layers)
        return self._logits(x)

    def _next(self, inputs: dict[str, jax.Array], cache: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The logits after what is new, and the cache that knows it."""
        if "tokens" in inputs:
            x = self.table.get_value()[inputs["tokens"]]
        else:
            need("encoder_decoder", self.takes[1:], inputs)
            words, seen = self._words(inputs["text"])
            cache = cache | {"words": jax.lax.map(lambda block: block.cross.keys(words), self.blocks), "seen": seen}
            x = self._start(len(words))
        position = cache["position"]
        angles, bias = self._places(position + jnp.arange(x.shape[1]))
        rows = self.blocks, cache["words"], (cache["keys"], cache["values"])
        call = lambda row, x: row[0](x, row[1], cache["seen"], angles, bias, row[2], position)  # noqa: E731
        x, (keys, values) = collect(rows, x, call, self.layers)
        return self._logits(x[:, -1:]), cache | {"position": position + x.shape[1], "keys": keys, "values": values}

    def _words(self, given: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Words [B, length, text_embed], and which may be read."""
        said = text.said(given)
        seen = said | ~jnp.any(said, axis=1, keepdims=True)
        return self.encoder(given, seen), seen

    def _start(self, batch: int) -> jax.Array:
        return self.start.get_value()[jnp.zeros((batch, 1), int)]

    def _places(self, at: jax.Array) -> tuple[jax.Array | None, jax.Array | None]:
        """Rotary angles of places [T], or the bias of their scores to all places."""
        if self.bias is not None:
            return None, self.bias(at, jnp.arange(self.tokens))
        if not self.side:
            return jnp.asarray(rope.line(self.tokens, self.head_dim))[at], None
        still = np.zeros((1, self.head_dim // 2), np.float32)  # what stands before the image
        return jnp.asarray(np.concatenate([still, rope.grid(self.side, self.head_dim)[:-1]]))[at], None

    def _logits(self, x: jax.Array) -> jax.Array:
        return project(rms_norm(x) * self.gain.get_value(), self.readout.get_value(), 0.0)
