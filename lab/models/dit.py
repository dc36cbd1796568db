"""DiT: a transformer over image patches, conditioned by adaptive layer norm (Peebles & Xie, arXiv 2212.09748)."""

import jax
import jax.numpy as jnp
from flax import nnx

from lab.axes import Dims, split, stack, weight
from lab.layers import embed, modulation
from lab.models.shared import need, part, patches, through, trunk


class Block(nnx.Module):
    """x + gate attention(adaLN x), then x + gate mlp(adaLN x)."""

    def __init__(self, dims: Dims, qk_norm: bool, zero_gates: bool, mixer: str = "attention", channel_mixer: str = "mlp"):
        self.modulation = modulation.AdaLN(6, dims, init=0.0 if zero_gates else 1.0)
        self.attention = part(mixer, dims, qk_norm)
        self.mlp = part(channel_mixer, dims)

    def __call__(self, x: jax.Array, c_BxD: jax.Array) -> jax.Array:
        shift, gain, gate, shift_mlp, gain_mlp, gate_mlp = self.modulation(c_BxD)
        x = x + gate * self.attention(modulation.modulate(x, shift, gain))
        return x + gate_mlp * self.mlp(modulation.modulate(x, shift_mlp, gain_mlp))


class Model(nnx.Module):
    """Inputs x [B, side, side, channels], t [B] in [0, 1], label [B] (negative: none) -> [B, side, side, channels * outputs].

    `zero_gates` starts every block as the identity; the released muP-DiT drops it (arXiv 2505.15270), so it is an option. `mixer` and
    `channel_mixer` name parts of lab/layers, or files of one's own, that export Mixer. `period` is that of
    the time's slowest sine, of which published weights have another. `position_width` is that of the model that this one was grown from.
    """

    takes = ("x", "t", "label")

    @staticmethod
    def axes(width, depth, head_dim, mlp_ratio, patch, image, channels, classes, outputs=1, frequencies=128) -> dict[str, int]:
        """Sizes of every axis; one width knob moves embed, heads and mlp together at a fixed head_dim."""
        split("model.width", width, "4 (sine-cosine positions)", 4)
        return {
            **trunk(width, depth, head_dim, mlp_ratio),
            **patches(image, channels, patch, outputs),
            "frequencies": frequencies,
            "labels": classes + 1,
        }

    def __init__(
        self,
        dims: Dims,
        qk_norm: bool,
        zero_gates: bool,
        mixer: str = "attention",
        channel_mixer: str = "mlp",
        period: float = embed.PERIOD,
        position_width: int = 0,
    ):
        self.patch, self.side, self.layers, self.own = dims["patch_side"], dims["side"], dims["layers"], position_width
        self.patch_in = embed.Linear("patch -> embed", dims)
        self.time = embed.TimeEmbed(dims, period)
        self.label = embed.LabelEmbed(dims)
        self.blocks = stack(Block(dims, qk_norm, zero_gates, mixer, channel_mixer), self.layers, dims)
        self.modulation = modulation.AdaLN(2, dims, init=0.0 if zero_gates else 1.0)
        self.readout = weight("embed -> patch_out", dims, init=0.0)
        self.readout_bias = weight("-> patch_out", dims, fill=0.0)

    def __call__(self, inputs: dict[str, jax.Array], cache: None = None) -> jax.Array:
        need("dit", self.takes, inputs, cache)
        dtype = self.readout.get_value().dtype
        x = self.patch_in(embed.patchify(inputs["x"].astype(dtype), self.patch))
        x = x + jnp.asarray(embed.sincos_2d(self.side // self.patch, x.shape[-1], own=self.own), dtype)
        c = self.time(inputs["t"]) + self.label(inputs["label"])
        x = through(self.blocks, x, lambda block, x: block(x, c), self.layers)
        shift, gain = self.modulation(c)
        x = modulation.modulate(x, shift, gain)
        x = embed.project(x, self.readout.get_value(), self.readout_bias.get_value())
        return embed.unpatchify(x, self.patch, self.side)
