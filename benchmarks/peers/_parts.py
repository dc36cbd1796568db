"""What the peers are made of: plain eager PyTorch parts, the flow objective, and how the lab's weights come into them."""

import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

Arrays = dict[str, np.ndarray]


class Attention(nn.Module):
    """Self-attention of [B, T, width] with one projection for queries, keys and values."""

    def __init__(self, width: int, head_dim: int, qk_norm: bool = False):
        super().__init__()
        self.head_dim = head_dim
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norms = nn.ModuleList(nn.RMSNorm(head_dim, eps=1e-6) for _ in range(2 * qk_norm))

    def enter(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Queries, keys and values, each [B, heads, T, head_dim]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, -1, self.head_dim)).permute(2, 0, 3, 1, 4)
        return [*(norm(y) for norm, y in zip(self.norms, (q, k), strict=True)), v] if self.norms else [q, k, v]

    def leave(self, y: torch.Tensor) -> torch.Tensor:
        return self.out(y.transpose(1, 2).flatten(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.leave(F.scaled_dot_product_attention(*self.enter(x)))


class Mlp(nn.Module):
    """Two layers with tanh-approximate GELU."""

    def __init__(self, width: int, ratio: int):
        super().__init__()
        self.up, self.down = nn.Linear(width, ratio * width), nn.Linear(ratio * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class Vector(nn.Module):
    """Two layers with SiLU: one vector of conditions."""

    def __init__(self, source: int, width: int):
        super().__init__()
        self.up, self.out = nn.Linear(source, width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(F.silu(self.up(x)))


class Time(Vector):
    """Times [B] in [0, 1] -> [B, width] through sines and cosines of unit size."""

    def __init__(self, width: int, frequencies: int):
        super().__init__(frequencies, width)
        half = frequencies // 2
        self.register_buffer("rates", torch.exp(-math.log(10_000.0) * torch.arange(half) / half))

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        angles = 1000.0 * t[:, None] * self.rates
        return super().forward(math.sqrt(2) * torch.cat([angles.cos(), angles.sin()], dim=-1))


class Reader(nn.Module):
    """x + attention(norm x), then x + mlp(norm x)."""

    def __init__(self, width: int, head_dim: int, ratio: int):
        super().__init__()
        self.attention, self.mlp = Attention(width, head_dim), Mlp(width, ratio)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(F.rms_norm(x, x.shape[-1:], eps=1e-6))
        return x + self.mlp(F.rms_norm(x, x.shape[-1:], eps=1e-6))


class Text(nn.Module):
    """Tokens [B, length] -> [B, length, width], each of unit size: a table, learned positions and `depth` blocks."""

    def __init__(self, words: int, length: int, width: int, depth: int, head_dim: int, ratio: int):
        super().__init__()
        self.table, self.positions = nn.Embedding(words, width), nn.Parameter(torch.randn(length, width))
        self.blocks = nn.ModuleList(Reader(width, head_dim, ratio) for _ in range(depth))

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        x = self.table(text) + self.positions
        for block in self.blocks:
            x = block(x)
        return F.rms_norm(x, x.shape[-1:], eps=1e-6)


def modulate(x: torch.Tensor, shift: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """LayerNorm, then x (1 + gain) + shift."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + gain) + shift


def patchify(x: torch.Tensor, patch: int) -> torch.Tensor:
    """Images [B, C, H, W] as tokens [B, T, patch * patch * C]."""
    b, c, h, w = x.shape
    x = x.view(b, c, h // patch, patch, w // patch, patch)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(b, h * w // patch**2, patch * patch * c)


def unpatchify(x: torch.Tensor, patch: int) -> torch.Tensor:
    """Tokens [B, T, patch * patch * C] as square images [B, C, H, W]."""
    b, t, d = x.shape
    side, c = math.isqrt(t), d // patch**2
    return x.view(b, side, side, patch, patch, c).permute(0, 5, 1, 3, 2, 4).reshape(b, c, side * patch, side * patch)


def zero(*linears: nn.Linear) -> None:
    """Start these layers at zero."""
    for linear in linears:
        nn.init.zeros_(linear.weight)
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)


def hide(batch: dict[str, torch.Tensor], share: float = 0.1) -> dict[str, torch.Tensor]:
    """The label and text of a batch, those that there are, hidden in a random `share` of its examples."""
    given = {k: batch[k] for k in ("label", "text") if k in batch}
    gone = torch.rand(len(next(iter(given.values())))) < share
    return {k: torch.where(gone if v.ndim == 1 else gone[:, None], {"label": -1, "text": 0}[k], v) for k, v in given.items()}


def flow_inputs(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """x, t, conditions and target of a rectified flow with logit-normal times, from uint8 images [B, C, H, W]."""
    image = batch["image"].float() / 127.5 - 1.0
    t, noise = torch.sigmoid(torch.randn(len(image))), torch.randn_like(image)
    return {"x": torch.lerp(image, noise, t[:, None, None, None]), "t": t, **hide(batch), "target": noise - image}


def flow_loss(model: nn.Module, given: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean squared error of the velocity."""
    return F.mse_loss(model(**{k: v for k, v in given.items() if k != "target"}), given["target"])


def put(linear: nn.Linear, kernel: np.ndarray, bias: np.ndarray | None = None) -> None:
    """A kernel [*ins, *outs] and its bias into a linear layer."""
    linear.weight.data = torch.tensor(kernel).reshape(linear.in_features, linear.out_features).T.contiguous()
    if bias is not None:
        linear.bias.data = torch.tensor(bias).reshape(-1)


def fused(kernel: np.ndarray) -> np.ndarray:
    """[n, in, ...] -> [in, n, ...], as one layer makes all n."""
    return np.moveaxis(kernel, 0, 1)


def under(given: Arrays, name: str) -> Arrays:
    """The weights below `name`, without it."""
    return {k.removeprefix(name + "."): v for k, v in given.items() if k.startswith(name + ".")}


def each(blocks: nn.ModuleList, given: Arrays) -> Iterator[tuple[nn.Module, Arrays]]:
    """Every block with its own of the stacked weights."""
    return ((block, {k: v[i] for k, v in given.items()}) for i, block in enumerate(blocks))


def put_attention(attention: Attention, given: Arrays) -> None:
    put(attention.qkv, fused(given["qkv"]), given["qkv_bias"])
    put(attention.out, given["out"], given["out_bias"])
    put_norms(attention.norms, given)


def put_norms(norms: nn.ModuleList, given: Arrays) -> None:
    for norm, gain in zip(norms, given["gain"] if norms else (), strict=True):
        norm.weight.data = torch.tensor(gain)


def put_pair(pair: nn.Module, given: Arrays, names: tuple[str, str]) -> None:
    """The two layers of an Mlp ('up', 'down') or a Vector ('up', 'out')."""
    for name in names:
        put(getattr(pair, name), given[f"{name}.kernel"], given[f"{name}.bias"])


def put_text(text: Text, given: Arrays) -> None:
    text.table.weight.data, text.positions.data = torch.tensor(given["table"]), torch.tensor(given["positions"])
    for block, own in each(text.blocks, under(given, "blocks")):
        put_attention(block.attention, under(own, "attention"))
        put_pair(block.mlp, under(own, "mlp"), ("up", "down"))
