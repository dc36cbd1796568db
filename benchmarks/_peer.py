"""The peer: a plain eager PyTorch DiT of the same shape as lab/models/dit.py, with the same flow loss."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from lab.layers.embed import sincos_2d


class Block(nn.Module):
    """adaLN block with fused scaled-dot-product attention."""

    def __init__(self, width: int, heads: int, ratio: int, qk_norm: bool):
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Linear(width, 6 * width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, ratio * width), nn.Linear(ratio * width, width)
        self.gain = nn.Parameter(torch.ones(2, width // heads)) if qk_norm else None

    def forward(self, x, c):
        b, t, d = x.shape
        shift, gain, gate, shift_mlp, gain_mlp, gate_mlp = self.modulation(F.silu(c))[:, None].chunk(6, dim=-1)
        y = self.norm(x) * (1 + gain) + shift
        q, k, v = self.qkv(y).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        if self.gain is not None:
            q, k = (F.rms_norm(z, z.shape[-1:], eps=1e-6) * g for z, g in zip((q, k), self.gain, strict=True))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, d)
        x = x + gate * self.out(y)
        y = self.norm(x) * (1 + gain_mlp) + shift_mlp
        return x + gate_mlp * self.down(F.gelu(self.up(y), approximate="tanh"))


class DiT(nn.Module):
    """Images [B, C, H, W], times [B], labels [B] -> velocity [B, C, H, W]."""

    def __init__(self, width, depth, head_dim, mlp_ratio, patch, image, channels, classes, qk_norm=False):
        super().__init__()
        self.patch, self.side, self.channels = patch, image // patch, channels
        self.patch_in = nn.Linear(patch * patch * channels, width)
        self.up, self.out = nn.Linear(128, width), nn.Linear(width, width)
        self.label = nn.Embedding(classes + 1, width)
        self.blocks = nn.ModuleList(Block(width, width // head_dim, mlp_ratio, qk_norm) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation, self.readout = nn.Linear(width, 2 * width), nn.Linear(width, patch * patch * channels)
        self.register_buffer("position", torch.from_numpy(sincos_2d(self.side, width)))
        for zero in [self.readout, self.modulation, *(b.modulation for b in self.blocks)]:
            nn.init.zeros_(zero.weight)
            nn.init.zeros_(zero.bias)

    def forward(self, x, t, label):
        b, p, s = x.shape[0], self.patch, self.side
        x = x.view(b, self.channels, s, p, s, p).permute(0, 2, 4, 3, 5, 1).reshape(b, s * s, -1)
        x = self.patch_in(x) + self.position
        angles = 1000.0 * t[:, None] * torch.exp(-math.log(10_000.0) * torch.arange(64) / 64)
        time = math.sqrt(2) * torch.cat([angles.cos(), angles.sin()], dim=-1)
        c = self.out(F.silu(self.up(time))) + self.label(torch.where(label < 0, self.label.num_embeddings - 1, label))
        for block in self.blocks:
            x = block(x, c)
        shift, gain = self.modulation(F.silu(c))[:, None].chunk(2, dim=-1)
        x = self.readout(self.norm(x) * (1 + gain) + shift)
        return x.view(b, s, s, p, p, self.channels).permute(0, 5, 1, 3, 2, 4).reshape(b, self.channels, s * p, s * p)


def loss(model: DiT, image: torch.Tensor, label: torch.Tensor, drop: float = 0.1) -> torch.Tensor:
    """Rectified-flow loss with logit-normal times and label drop on images [B, C, H, W] in [-1, 1]."""
    t, noise = torch.sigmoid(torch.randn(len(image))), torch.randn_like(image)
    s = t[:, None, None, None]
    label = torch.where(torch.rand(len(image)) < drop, -1, label)
    return (model((1 - s) * image + s * noise, t, label) - (noise - image)).square().mean()


def copy_weights(model: DiT, given: dict[str, np.ndarray]) -> None:
    """Load the lab's weights (lab.axes.weights names) into the peer."""

    def put(linear: nn.Linear, kernel: np.ndarray, bias: np.ndarray) -> None:
        linear.weight.data = torch.tensor(kernel).reshape(linear.in_features, linear.out_features).T.contiguous()
        linear.bias.data = torch.tensor(bias).reshape(-1)

    def fused(kernel: np.ndarray) -> np.ndarray:
        return np.moveaxis(kernel, 0, 1)  # [n, in, ...] -> [in, n, ...]

    put(model.patch_in, given["patch_in.kernel"], given["patch_in.bias"])
    put(model.up, given["time.up.kernel"], given["time.up.bias"])
    put(model.out, given["time.out.kernel"], given["time.out.bias"])
    put(model.modulation, fused(given["modulation.kernel"]), given["modulation.bias"])
    put(model.readout, given["readout"], given["readout_bias"])
    model.label.weight.data = torch.tensor(given["label.table"])
    for i, block in enumerate(model.blocks):
        layer = {k.removeprefix("blocks."): v[i] for k, v in given.items() if k.startswith("blocks.") and v.ndim}
        put(block.modulation, fused(layer["modulation.kernel"]), layer["modulation.bias"])
        put(block.qkv, fused(layer["attention.qkv"]), layer["attention.qkv_bias"])
        put(block.out, layer["attention.out"], layer["attention.out_bias"])
        put(block.up, layer["mlp.up.kernel"], layer["mlp.up.bias"])
        put(block.down, layer["mlp.down.kernel"], layer["mlp.down.bias"])
        if block.gain is not None:
            block.gain.data = torch.tensor(layer["attention.gain"])
