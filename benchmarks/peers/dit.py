"""The peer of lab/models/dit.py: a plain eager PyTorch DiT of the same shape, with the same flow loss."""

import torch
import torch.nn.functional as F
from peers import _parts as parts
from torch import nn

from lab.layers.embed import sincos_2d

EXPERIMENT = "quickstart"
SOURCE = dict(image=16, channels=1, classes=4)
SHAPES = {16: (dict(patch=4), SOURCE), 64: (dict(patch=2), SOURCE)}  # tokens: what changes in the model, and what the source tells
inputs, loss = parts.flow_inputs, parts.flow_loss


class Block(nn.Module):
    """x + gate attention(adaLN x), then x + gate mlp(adaLN x)."""

    def __init__(self, width: int, head_dim: int, mlp_ratio: int, qk_norm: bool):
        super().__init__()
        self.modulation = nn.Linear(width, 6 * width)
        self.attention, self.mlp = parts.Attention(width, head_dim, qk_norm), parts.Mlp(width, mlp_ratio)

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        shift, gain, gate, shift_mlp, gain_mlp, gate_mlp = self.modulation(c)[:, None].chunk(6, dim=-1)
        x = x + gate * self.attention(parts.modulate(x, shift, gain))
        return x + gate_mlp * self.mlp(parts.modulate(x, shift_mlp, gain_mlp))


class Model(nn.Module):
    """Images x [B, C, H, W], times t [B], labels [B] (negative: none) -> velocity [B, C, H, W]."""

    def __init__(self, width, depth, head_dim, mlp_ratio, patch, image, channels, classes, qk_norm):
        super().__init__()
        self.patch, pixels = patch, patch * patch * channels
        self.patch_in, self.time = nn.Linear(pixels, width), parts.Time(width, 128)
        self.label = nn.Embedding(classes + 1, width)
        self.blocks = nn.ModuleList(Block(width, head_dim, mlp_ratio, qk_norm) for _ in range(depth))
        self.modulation, self.readout = nn.Linear(width, 2 * width), nn.Linear(width, pixels)
        self.register_buffer("position", torch.from_numpy(sincos_2d(image // patch, width)))
        parts.zero(self.readout, self.modulation, *(b.modulation for b in self.blocks))

    def forward(self, x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        x = self.patch_in(parts.patchify(x, self.patch)) + self.position
        c = F.silu(self.time(t) + self.label(torch.where(label < 0, self.label.num_embeddings - 1, label)))
        for block in self.blocks:
            x = block(x, c)
        x = parts.modulate(x, *self.modulation(c)[:, None].chunk(2, dim=-1))
        return parts.unpatchify(self.readout(x), self.patch)


def copy_weights(model: Model, given: parts.Arrays) -> None:
    """Load the lab's weights (lab.axes.weights names) into the peer."""
    parts.put(model.patch_in, given["patch_in.kernel"], given["patch_in.bias"])
    parts.put_pair(model.time, parts.under(given, "time"), ("up", "out"))
    parts.put(model.modulation, parts.fused(given["modulation.kernel"]), given["modulation.bias"])
    parts.put(model.readout, given["readout"], given["readout_bias"])
    model.label.weight.data = torch.tensor(given["label.table"])
    for block, own in parts.each(model.blocks, parts.under(given, "blocks")):
        parts.put(block.modulation, parts.fused(own["modulation.kernel"]), own["modulation.bias"])
        parts.put_attention(block.attention, parts.under(own, "attention"))
        parts.put_pair(block.mlp, parts.under(own, "mlp"), ("up", "down"))
