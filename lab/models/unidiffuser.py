"""UniDiffuser: one U-ViT over the noisy tokens of an image and of a text, each with a time of its own (arXiv 2303.06555)."""

import jax
import jax.numpy as jnp

from lab.axes import Dims, split, weight
from lab.errors import UserError
from lab.layers import embed
from lab.models.shared import need, patches, trunk
from lab.models.uvit import LongSkips


class Model(LongSkips):
    """Inputs x [B, side, side, channels] at times t [B] in [0, 1], text [B, length, text_channels] at times t_text [B] -> two like them.

    Tokens are the two times, as sinusoids as wide as the model, the words, and the patches. Blocks and long skips are U-ViT's, with norms
    before the branches, where the published model has them behind.
    """

    takes = ("x", "t", "text", "t_text")

    @staticmethod
    def axes(width, depth, head_dim, mlp_ratio, patch, image, channels, text_channels, length=0) -> dict[str, int]:
        """Sizes of every axis; one width knob moves embed, skip, heads and mlp together at a fixed head_dim."""
        split("model.width", width, "2 (sine and cosine of time)", 2)
        if not length:
            raise UserError("config key data: this model draws text, and the source gives none; ask shapes for data.extras=('text',)")
        return {
            **trunk(width, depth, head_dim, mlp_ratio),
            "skip": 2 * width,
            **patches(image, channels, patch, 1),
            "text_channels": text_channels,
            "length": length,
            "tokens": 2 + length + (image // patch) ** 2,
        }

    def __init__(self, dims: Dims, qk_norm: bool):
        super().__init__(dims, qk_norm)
        self.patch, self.side, self.length = dims["patch_side"], dims["side"], dims["length"]
        self.patch_in = embed.Linear("patch -> embed", dims)
        self.text_in = embed.Linear("text_channels -> embed", dims)
        self.positions = weight("tokens | -> embed", dims)
        self.readout = weight("embed -> patch_out", dims, init=0.0)
        self.readout_bias = weight("-> patch_out", dims, fill=0.0)
        self.text_readout = weight("embed -> text_channels", dims, init=0.0)
        self.text_bias = weight("-> text_channels", dims, fill=0.0)

    def __call__(self, inputs: dict[str, jax.Array], cache: None = None) -> tuple[jax.Array, jax.Array]:
        need("unidiffuser", self.takes, inputs, cache)
        dtype, width = self.readout.get_value().dtype, self.positions.get_value().shape[-1]
        if inputs["text"].shape[1] != self.length:
            raise UserError(f"model 'unidiffuser' is of texts of {self.length} words; given: {inputs['text'].shape[1]}")
        times = [embed.sinusoid(inputs[k], width).astype(dtype)[:, None] for k in ("t", "t_text")]
        words, image = self.text_in(inputs["text"].astype(dtype)), self.patch_in(embed.patchify(inputs["x"].astype(dtype), self.patch))
        y = self.norm(self.run(jnp.concatenate([*times, words, image], axis=1) + self.positions.get_value())[:, 2:])
        words, image = y[:, : self.length], y[:, self.length :]
        image = embed.project(image, self.readout.get_value(), self.readout_bias.get_value())
        words = embed.project(words, self.text_readout.get_value(), self.text_bias.get_value())
        return embed.unpatchify(image, self.patch, self.side), words
