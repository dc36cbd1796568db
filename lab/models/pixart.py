"""PixArt: a text-conditioned DiT whose blocks share one modulation of time (Chen et al., arXiv 2310.00426).

Each block adds a table of its own to that modulation (adaLN-single, section 2.3) and reads the words by cross-attention.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from lab.axes import Dims, split, stack, weight
from lab.layers import attention, compress, cross, embed, mlp, modulation, refine, text
from lab.models.shared import need, patches, through, trunk

TABLE = 0.02  # std of the tables of modulation at every width; with the released 1/sqrt(width) a learning rate does not transfer


class Caption(nnx.Module):
    """Features [B, length, text_features] of a frozen encoder -> words [B, length, embed], by a two-layer MLP.

    Where the features of an example are all zero (hidden), a learned null caption takes their place if there is one.
    """

    def __init__(self, dims: Dims, null_caption: bool):
        self.null = weight("length | -> text_features", dims, init=dims["text_features"] ** -0.5) if null_caption else None
        self.up = embed.Linear("text_features -> embed", dims)
        self.out = embed.Linear("embed -> embed", dims)

    def __call__(self, features: jax.Array) -> jax.Array:
        x = features.astype(self.out.kernel.get_value().dtype)
        if self.null is not None:
            hidden = ~jnp.any(text.said(features), axis=1)
            x = x + hidden[:, None, None].astype(x.dtype) * self.null.get_value()[: x.shape[1]]
        return self.out(jax.nn.gelu(self.up(x), approximate=True))


class Block(nnx.Module):
    """x + gate attention(adaLN x), then x + cross(x, words), neither gated nor normalised, then x + gate mlp(adaLN x)."""

    def __init__(self, dims: Dims, qk_norm: bool, zero_gates: bool, compressed: bool):
        self.table = weight("6 | -> embed", dims, init=0.0 if zero_gates else TABLE)
        self.attention = compress.Attention(dims, qk_norm) if compressed else attention.Mixer(dims, qk_norm)
        self.cross = cross.Attention(dims, qk_norm, init=0.0 if zero_gates else 1.0)
        self.mlp = mlp.Mixer(dims)

    def __call__(self, x: jax.Array, time: list[jax.Array], words: jax.Array, seen: jax.Array) -> jax.Array:
        parts = (row + shared for row, shared in zip(self.table.get_value(), time, strict=True))
        shift, gain, gate, shift_mlp, gain_mlp, gate_mlp = parts
        x = x + gate * self.attention(modulation.modulate(x, shift, gain))
        x = x + self.cross(x, words, seen)
        return x + gate_mlp * self.mlp(modulation.modulate(x, shift_mlp, gain_mlp))


class Model(nnx.Module):
    """Inputs x [B, side, side, channels], t [B] in [0, 1], text -> [B, side, side, channels * outputs].

    `text` holds tokens [B, length], read by an encoder that is learned with the model and ends at the width of words, so that no MLP
    follows it, or the features [B, length, text_features] of a frozen one. Padding (token 0, features all zero) is not read, but
    where it is all there is, as in a hidden text. `zero_gates` starts every block as the identity; `qk_norm` is for both
    attentions. `kv_compress` above 1 averages keys and values over squares of tokens in the deeper half of the blocks
    (PixArt-Sigma, arXiv 2403.04692). `refiner` blocks let the words read each other once more, by the time (LI-DiT, arXiv
    2406.11831). `interpolation` divides positions; published weights have no `null_caption`, which is for
    features alone. `position_width` is that of the model that this one was grown from.
    """

    takes = ("x", "t", "text")

    @staticmethod
    def axes(
        width,
        depth,
        head_dim,
        mlp_ratio,
        patch,
        image,
        channels,
        words=0,
        length=0,
        features=0,
        text_depth=1,
        kv_compress=1,
        outputs=1,
        refiner=0,
    ) -> dict[str, int]:
        """Sizes of every axis; one width knob moves embed, heads and mlp together at a fixed head_dim."""
        split("model.width", width, "4 (sine-cosine positions)", 4)
        sides = patches(image, channels, patch, outputs)
        split("image size / model.patch", image // patch, "model.kv_compress", kv_compress)
        return {
            **trunk(width, depth, head_dim, mlp_ratio),
            **sides,
            "frequencies": 256,
            "kv_compress": kv_compress,
            **({"refiner_layers": refiner} if refiner else {}),
            **text.axes(words, length, features, text_depth),
        }

    def __init__(
        self, dims: Dims, qk_norm: bool, zero_gates: bool, null_caption: bool = True, interpolation: float = 1.0, position_width: int = 0
    ):
        self.interpolation, self.own = interpolation, position_width
        self.patch, self.side = dims["patch_side"], dims["side"]
        self.deep = (dims["layers"] + 1) // 2 if dims["kv_compress"] > 1 else 0
        self.shallow = dims["layers"] - self.deep
        self.patch_in = embed.Linear("patch -> embed", dims)
        self.time = embed.TimeEmbed(dims)
        self.words = Caption(dims, null_caption) if "text_features" in dims else text.Encoder(dims)
        self.refiner = refine.Refiner(dims, init=0.0 if zero_gates else 1.0) if "refiner_layers" in dims else None
        self.modulation = modulation.AdaLN(6, dims, init=0.0 if zero_gates else 1.0)
        self.blocks = stack(Block(dims, qk_norm, zero_gates, False), self.shallow, dims) if self.shallow else None
        self.compressed = stack(Block(dims, qk_norm, zero_gates, True), self.deep, dims) if self.deep else None
        self.table = weight("2 | -> embed", dims, init=0.0 if zero_gates else TABLE)
        self.readout = weight("embed -> patch_out", dims, init=0.0)
        self.readout_bias = weight("-> patch_out", dims, fill=0.0)

    def __call__(self, inputs: dict[str, jax.Array], cache: None = None) -> jax.Array:
        need("pixart", self.takes, inputs, cache)
        dtype = self.readout.get_value().dtype
        x = self.patch_in(embed.patchify(inputs["x"].astype(dtype), self.patch))
        x = x + jnp.asarray(embed.sincos_2d(self.side // self.patch, x.shape[-1], self.interpolation, self.own), dtype)
        c = self.time(inputs["t"])
        time, words, said = self.modulation(c), self.words(inputs["text"]), text.said(inputs["text"])
        seen = said | ~jnp.any(said, axis=1, keepdims=True)
        if self.refiner is not None:
            words = self.refiner(words, c + text.pooled(words, inputs["text"]), seen)
        for blocks, n in ((self.blocks, self.shallow), (self.compressed, self.deep)):
            if n:
                x = through(blocks, x, lambda block, x: block(x, time, words, seen), n)
        shift, gain = (row + c[:, None, :] for row in self.table.get_value())
        x = modulation.modulate(x, shift, gain)
        x = embed.project(x, self.readout.get_value(), self.readout_bias.get_value())
        return embed.unpatchify(x, self.patch, self.side)
