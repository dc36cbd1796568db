"""The peer of lab/models/decoder.py: a plain eager PyTorch decoder of the same shape, after a label, with the same cross-entropy."""

import numpy as np
import torch
import torch.nn.functional as F
from peers import _parts as parts
from torch import nn

from lab.layers import rope as angles

EXPERIMENT = "decoder_transfer"
SOURCE = dict(vocabulary=256, classes=4)
SHAPES = {n * n: ({}, {**SOURCE, "side": n, "tokens": n * n}) for n in (8, 16)}  # tokens: what changes in the model, what the source tells


class Attention(nn.Module):
    """Causal self-attention without biases; `group` query heads share keys and values, and `turn` is of rotary positions."""

    def __init__(self, width: int, head_dim: int, group: int, qk_norm: bool):
        super().__init__()
        self.head_dim, self.group, self.sizes = head_dim, group, [width, width // group, width // group]
        self.qkv, self.out = nn.Linear(width, sum(self.sizes), bias=False), nn.Linear(width, width, bias=False)
        self.norms = nn.ModuleList(nn.RMSNorm(head_dim, eps=1e-6) for _ in range(2 * qk_norm))

    def forward(self, x: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        q, k, v = (y.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for y in self.qkv(x).split(self.sizes, dim=-1))
        if self.norms:
            q, k = (norm(y) for norm, y in zip(self.norms, (q, k), strict=True))
        y = F.scaled_dot_product_attention(rotate(q, *turn), rotate(k, *turn), v, is_causal=True, enable_gqa=self.group > 1)
        return self.out(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """x + attention(norm x), then x + down(silu(gate) value) of norm x."""

    def __init__(self, width: int, head_dim: int, mlp_ratio: int, group: int, qk_norm: bool):
        super().__init__()
        self.norm, self.norm_mlp = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.attention = Attention(width, head_dim, group, qk_norm)
        self.up, self.down = nn.Linear(width, 2 * mlp_ratio * width, bias=False), nn.Linear(mlp_ratio * width, width, bias=False)

    def forward(self, x: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        x = x + self.attention(self.norm(x), turn)
        gate, value = self.up(self.norm_mlp(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * value)


class Model(nn.Module):
    """Tokens [B, side, side] and labels [B] (negative: none) -> logits [B, tokens, vocabulary], each from what comes before."""

    def __init__(self, width, depth, head_dim, mlp_ratio, kv_group, qk_norm, rope, vocabulary, side, tokens, classes):
        super().__init__()
        self.label, self.table = nn.Embedding(classes + 1, width), nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width, head_dim, mlp_ratio, kv_group, qk_norm) for _ in range(depth))
        self.norm, self.readout = nn.RMSNorm(width, eps=1e-6), nn.Linear(width, vocabulary, bias=False)
        still = np.zeros((1, head_dim // 2), np.float32)  # on a grid the label stands still
        places = {"line": angles.line(tokens, head_dim), "grid": np.concatenate([still, angles.grid(side, head_dim)[:-1]])}[rope]
        self.register_buffer("cos", torch.from_numpy(places).cos())
        self.register_buffer("sin", torch.from_numpy(places).sin())
        parts.zero(self.readout)

    def forward(self, tokens: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        first = self.label(torch.where(label < 0, self.label.num_embeddings - 1, label))[:, None]
        x = torch.cat([first, self.table(tokens.flatten(1)[:, :-1])], dim=1)
        for block in self.blocks:
            x = block(x, (self.cos, self.sin))
        return self.readout(self.norm(x))


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x [B, heads, T, head_dim] with the pair of features (i, i + head_dim / 2) turned."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def inputs(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tokens, and labels of which some are hidden."""
    return {"tokens": batch["tokens"], **parts.hide(batch)}


def loss(model: Model, given: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean cross-entropy in nats per token."""
    return F.cross_entropy(model(**given).flatten(0, 1), given["tokens"].flatten())


def copy_weights(model: Model, given: parts.Arrays) -> None:
    """Load the lab's weights (lab.axes.weights names) into the peer."""
    model.label.weight.data, model.table.weight.data = torch.tensor(given["label.table"]), torch.tensor(given["table"])
    model.norm.weight.data = torch.tensor(given["gain"])
    parts.put(model.readout, given["readout"])
    for block, own in parts.each(model.blocks, parts.under(given, "blocks")):
        block.norm.weight.data, block.norm_mlp.weight.data = torch.tensor(own["gains"])
        kernels = [own["attention.query"], *own["attention.key_value"]]
        flat = np.concatenate([x.reshape(len(x), -1) for x in kernels], axis=1)
        parts.put(block.attention.qkv, flat)
        parts.put(block.attention.out, own["attention.out"])
        parts.put_norms(block.attention.norms, parts.under(own, "attention"))
        parts.put(block.up, parts.fused(own["mlp.up"]))
        parts.put(block.down, own["mlp.down"])
