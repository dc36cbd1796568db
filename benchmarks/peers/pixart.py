"""The peer of lab/models/pixart.py: a plain eager PyTorch PixArt of the same shape, with the same flow loss.

Text is tokens, read by the learned encoder that the lab's has, of one block (`text_depth`) as in the experiment.
"""

import torch
import torch.nn.functional as F
from peers import _parts as parts
from torch import nn

from lab.layers.embed import sincos_2d

EXPERIMENT = "pixart_transfer"
SOURCE = dict(image=16, channels=3, words=48, length=16)
SHAPES = {16: (dict(patch=4), SOURCE), 64: (dict(patch=2), SOURCE)}  # tokens: what changes in the model, and what the source tells
inputs, loss = parts.flow_inputs, parts.flow_loss


class Cross(nn.Module):
    """Attention of image tokens [B, T, width] to the words [B, S, width] that may be read (`seen` [B, 1, 1, S])."""

    def __init__(self, width: int, head_dim: int, qk_norm: bool):
        super().__init__()
        self.head_dim = head_dim
        self.q, self.kv, self.out = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.norms = nn.ModuleList(nn.RMSNorm(head_dim, eps=1e-6) for _ in range(2 * qk_norm))

    def forward(self, x: torch.Tensor, words: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        q = self.q(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        k, v = self.kv(words).unflatten(-1, (2, -1, self.head_dim)).permute(2, 0, 3, 1, 4)
        if self.norms:
            q, k = (norm(y) for norm, y in zip(self.norms, (q, k), strict=True))
        return self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """x + gate attention(adaLN x), then x + cross(x, words), then x + gate mlp(adaLN x)."""

    def __init__(self, width: int, head_dim: int, mlp_ratio: int, qk_norm: bool):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(6, width))
        self.attention, self.cross = parts.Attention(width, head_dim, qk_norm), Cross(width, head_dim, qk_norm)
        self.mlp = parts.Mlp(width, mlp_ratio)

    def forward(self, x: torch.Tensor, time: torch.Tensor, words: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        shift, gain, gate, shift_mlp, gain_mlp, gate_mlp = (time + self.table).chunk(6, dim=1)
        x = x + gate * self.attention(parts.modulate(x, shift, gain))
        x = x + self.cross(x, words, seen)
        return x + gate_mlp * self.mlp(parts.modulate(x, shift_mlp, gain_mlp))


class Model(nn.Module):
    """Images x [B, C, H, W], times t [B], text [B, length] (0 where nothing is said) -> velocity [B, C, H, W]."""

    def __init__(self, width, depth, head_dim, mlp_ratio, patch, image, channels, words, length, text_depth, qk_norm):
        super().__init__()
        self.patch, pixels = patch, patch * patch * channels
        self.patch_in, self.time = nn.Linear(pixels, width), parts.Time(width, 256)
        self.words = parts.Text(words, length, width, text_depth, head_dim, mlp_ratio)
        self.modulation, self.table = nn.Linear(width, 6 * width), nn.Parameter(torch.zeros(2, width))
        self.blocks = nn.ModuleList(Block(width, head_dim, mlp_ratio, qk_norm) for _ in range(depth))
        self.readout = nn.Linear(width, pixels)
        self.register_buffer("position", torch.from_numpy(sincos_2d(image // patch, width)))
        parts.zero(self.readout, self.modulation, *(b.cross.out for b in self.blocks))

    def forward(self, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        x = self.patch_in(parts.patchify(x, self.patch)) + self.position
        c, words, said = self.time(t), self.words(text), text != 0
        time, seen = self.modulation(F.silu(c)).unflatten(-1, (6, -1)), (said | ~said.any(1, keepdim=True))[:, None, None]
        for block in self.blocks:
            x = block(x, time, words, seen)
        x = parts.modulate(x, *(self.table + c[:, None]).chunk(2, dim=1))
        return parts.unpatchify(self.readout(x), self.patch)


def copy_weights(model: Model, given: parts.Arrays) -> None:
    """Load the lab's weights (lab.axes.weights names) into the peer."""
    parts.put(model.patch_in, given["patch_in.kernel"], given["patch_in.bias"])
    parts.put_pair(model.time, parts.under(given, "time"), ("up", "out"))
    parts.put(model.modulation, parts.fused(given["modulation.kernel"]), given["modulation.bias"])
    parts.put(model.readout, given["readout"], given["readout_bias"])
    parts.put_text(model.words, parts.under(given, "words"))
    model.table.data = torch.tensor(given["table"])
    for block, own in parts.each(model.blocks, parts.under(given, "blocks")):
        block.table.data, cross = torch.tensor(own["table"]), parts.under(own, "cross")
        parts.put_attention(block.attention, parts.under(own, "attention"))
        parts.put(block.cross.q, cross["q"], cross["q_bias"])
        parts.put(block.cross.kv, parts.fused(cross["kv"]), cross["kv_bias"])
        parts.put(block.cross.out, cross["out"], cross["out_bias"])
        parts.put_norms(block.cross.norms, cross)
        parts.put_pair(block.mlp, parts.under(own, "mlp"), ("up", "down"))
