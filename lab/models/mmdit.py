"""MMDiT: text and image as two streams with weights of their own that attend to both (Stable Diffusion 3, arXiv 2403.03206)."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lab.axes import Dims, inside, split, stack, weight
from lab.errors import UserError, unknown
from lab.layers import attention, embed, joint, mlp, modulation, rope
from lab.layers import text as texts
from lab.models.shared import need, patches, through, trunk

POSITIONS = ("sincos", "rope")


def centre(side: int, crop: int, width: int, own: int = 0) -> np.ndarray:
    """Sine-cosine positions [side * side, width]: the centre of a table of crop x crop ones that span 0 .. side."""
    table, start = embed.sincos_2d(crop, width, crop / side, own).reshape(crop, crop, width), (crop - side) // 2
    return table[start : start + side, start : start + side].reshape(side * side, width)


class Stream(nnx.Module):
    """What a dual block does to one stream beside attention: its modulation and its MLP.

    A stream that is not `carried` on is only made ready for attention.
    """

    def __init__(self, dims: Dims, zero_gates: bool, carried: bool = True):
        self.modulation = modulation.AdaLN(6 if carried else 2, dims, init=0.0 if zero_gates else 1.0)
        self.mlp = mlp.Mixer(dims) if carried else None

    def enter(self, x: jax.Array, c_BxD: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        """What attention reads of the stream, and the modulation of all that comes after it."""
        shift, gain, *rest = self.modulation(c_BxD)
        return modulation.modulate(x, shift, gain), rest

    def leave(self, x: jax.Array, seen: jax.Array, rest: list[jax.Array]) -> jax.Array:
        """x + gate seen, then x + gate mlp(adaLN x)."""
        gate, shift, gain, gate_mlp = rest
        x = x + gate * seen
        return x + gate_mlp * self.mlp(modulation.modulate(x, shift, gain))


class Dual(nnx.Module):
    """A DiT block for each stream, joined by attention; in the `last` one the text is only looked at, as nobody reads it afterwards."""

    def __init__(self, dims: Dims, qk_norm: bool, zero_gates: bool, last: bool = False):
        self.text = Stream(dims, zero_gates, carried=not last)
        self.image = Stream(dims, zero_gates)
        self.attention = joint.Attention(dims, qk_norm, text_asks=not last)

    def __call__(self, text: jax.Array, image: jax.Array, c_BxD: jax.Array, angles: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        (words, text_rest), (tokens, image_rest) = self.text.enter(text, c_BxD), self.image.enter(image, c_BxD)
        words, tokens = self.attention(words, tokens, angles)
        return text if words is None else self.text.leave(text, words, text_rest), self.image.leave(image, tokens, image_rest)


class Single(nnx.Module):
    """x + gate (attention(y) + mlp(y)) with y = adaLN x over text and image in one sequence: both branches in parallel, as in Flux."""

    def __init__(self, dims: Dims, qk_norm: bool, zero_gates: bool):
        self.modulation = modulation.AdaLN(3, dims, init=0.0 if zero_gates else 1.0)
        self.attention = attention.Mixer(dims, qk_norm)
        self.mlp = mlp.Mixer(dims)

    def __call__(self, x: jax.Array, c_BxD: jax.Array, angles: jax.Array | None) -> jax.Array:
        shift, gain, gate = self.modulation(c_BxD)
        y = modulation.modulate(x, shift, gain)
        return x + gate * (self.attention(y, angles) + self.mlp(y))


class PooledEmbed(nnx.Module):
    """Two-layer MLP of a text's one vector: [B, source] -> [B, embed]."""

    def __init__(self, source: str, dims: Dims):
        self.up = embed.Linear(f"{source} -> embed", dims)
        self.out = embed.Linear("embed -> embed", dims)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(jax.nn.silu(self.up(x)))


class Model(nnx.Module):
    """Inputs x [B, side, side, channels], t [B] in [0, 1], text -> [B, side, side, channels * outputs].

    Text is tokens [B, length], read by a learned encoder, or features [B, length, features], read by one linear layer. It speaks twice:
    each word in attention, and through the mean of the words that are said, or `pooled` [B, pooled_features], in the modulation.

    `depth` dual blocks come first, then `single` blocks of one weight set over both. `positions` of image tokens are 'sincos', added to
    them as in SD3, or 'rope', turning queries and keys as in Flux; with 'rope', words stand at the origin. With `crop`, 'sincos' is the
    centre of a table of crop x crop positions, which span as much as the image's own would, as in published weights. `zero_gates`
    starts every block as the identity. `position_width` is that of the model that this one was grown from.
    """

    @staticmethod
    def axes(
        depth,
        head_dim,
        mlp_ratio,
        patch,
        image,
        channels,
        width=0,
        words=0,
        length=0,
        features=0,
        pooled_features=0,
        text_depth=1,
        single=0,
        outputs=1,
    ) -> dict[str, int]:
        """Sizes of every axis. A width left out is SD3's, depth * head_dim: then base.depth moves width and depth together."""
        width = width or depth * head_dim
        split("model.width", width, "4 (sine-cosine positions)", 4)
        return {
            **trunk(width, depth + single, head_dim, mlp_ratio),  # one residual stream runs through both kinds of block
            "single_layers": single,
            **patches(image, channels, patch, outputs),
            "frequencies": 256,
            **texts.axes(words, length, features, text_depth),
            **({"pooled_features": pooled_features} if pooled_features else {}),
        }

    def __init__(self, dims: Dims, qk_norm: bool, zero_gates: bool, positions: str = "sincos", crop: int = 0, position_width: int = 0):
        if positions not in POSITIONS:
            raise unknown("model.positions", positions, POSITIONS)
        self.patch, self.side, self.rotary = dims["patch_side"], dims["side"], positions == "rope"
        if self.rotary:
            split("model.head_dim", dims["head_dim"], "4 (rotary positions on a square)", 4)
        self.crop, self.own = crop or self.side // self.patch, position_width
        if self.crop < self.side // self.patch:
            raise UserError(f"model.crop={crop} is a table smaller than the image; expected {self.side // self.patch} or more patches")
        self.head_dim, self.singles = dims["head_dim"], dims["single_layers"]
        duals = dims["layers"] - self.singles
        self.same = duals if self.singles else duals - 1  # dual blocks that are alike
        self.patch_in = embed.Linear("patch -> embed", dims)
        self.time = embed.TimeEmbed(dims)
        self.words = embed.Linear("text_features -> embed", dims) if "text_features" in dims else texts.Encoder(dims)
        source = next((a for a in ("pooled_features", "text_features") if a in dims), "embed")
        self.source, self.takes = source, ("x", "t", "text", *["pooled"] * (source == "pooled_features"))
        self.pooled = PooledEmbed(source, dims)
        self.blocks = stack(Dual(dims, qk_norm, zero_gates), self.same, dims) if self.same else None
        self.last = None if self.singles else inside(Dual(dims, qk_norm, zero_gates, last=True), dims)
        self.single = stack(Single(dims, qk_norm, zero_gates), self.singles, dims) if self.singles else None
        self.modulation = modulation.AdaLN(2, dims, init=0.0 if zero_gates else 1.0)
        self.readout = weight("embed -> patch_out", dims, init=0.0)
        self.readout_bias = weight("-> patch_out", dims, fill=0.0)

    def __call__(self, inputs: dict[str, jax.Array], cache: None = None) -> jax.Array:
        need("mmdit", self.takes, inputs, cache)
        dtype = self.readout.get_value().dtype
        image = self.patch_in(embed.patchify(inputs["x"].astype(dtype), self.patch))
        text, said = self._read(inputs, dtype)
        c = self.time(inputs["t"]) + self.pooled(said)
        angles = self._angles(text.shape[1]) if self.rotary else None
        if not self.rotary:
            image = image + jnp.asarray(centre(self.side // self.patch, self.crop, image.shape[-1], self.own), dtype)
        if self.blocks is not None:
            text, image = through(self.blocks, (text, image), lambda block, x: block(*x, c, angles), self.same)
        if self.single is None:
            _, image = self.last(text, image, c, angles)
        else:
            both = jnp.concatenate([text, image], axis=1)
            image = through(self.single, both, lambda block, x: block(x, c, angles), self.singles)[:, text.shape[1] :]
        shift, gain = self.modulation(c)
        image = modulation.modulate(image, shift, gain)
        return embed.unpatchify(embed.project(image, self.readout.get_value(), self.readout_bias.get_value()), self.patch, self.side)

    def _read(self, inputs: dict[str, jax.Array], dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
        """Words [B, length, embed], and the one vector of each text that modulation reads."""
        text = inputs["text"]
        given = text if text.ndim == 2 else text.astype(dtype)
        words = self.words(given)
        if self.source == "pooled_features":
            return words, inputs["pooled"].astype(dtype)
        return words, texts.pooled(words if self.source == "embed" else given, text)

    def _angles(self, words: int) -> jax.Array:
        """Angles [words + tokens, head_dim / 2], zero for words."""
        image = rope.grid(self.side // self.patch, self.head_dim)
        return jnp.asarray(np.concatenate([np.zeros((words, self.head_dim // 2), np.float32), image]))
