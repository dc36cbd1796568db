"""The peer of lab/models/mmdit.py: a plain eager PyTorch MMDiT of dual blocks, then single ones, with the same flow loss.

Text is tokens, read by the learned encoder that the lab's has, of one block (`text_depth`) as in the experiment.
"""

import torch
import torch.nn.functional as F
from peers import _parts as parts
from torch import nn

from lab.layers.embed import sincos_2d

EXPERIMENT = "mmdit_transfer"
SOURCE = dict(image=16, channels=3, words=48, length=16)
SHAPES = {16: (dict(patch=4), SOURCE), 64: (dict(patch=2), SOURCE)}  # tokens: what changes in the model, and what the source tells
inputs, loss = parts.flow_inputs, parts.flow_loss


class Stream(nn.Module):
    """What a dual block owns of one stream: its modulation, its way into attention and out of it, its MLP."""

    def __init__(self, width: int, head_dim: int, mlp_ratio: int, qk_norm: bool):
        super().__init__()
        self.modulation = nn.Linear(width, 6 * width)
        self.attention, self.mlp = parts.Attention(width, head_dim, qk_norm), parts.Mlp(width, mlp_ratio)

    def enter(self, x: torch.Tensor, c: torch.Tensor) -> tuple[list[torch.Tensor], tuple[torch.Tensor, ...]]:
        shift, gain, *rest = self.modulation(c)[:, None].chunk(6, dim=-1)
        return self.attention.enter(parts.modulate(x, shift, gain)), rest

    def leave(self, x: torch.Tensor, seen: torch.Tensor, rest: tuple[torch.Tensor, ...]) -> torch.Tensor:
        gate, shift, gain, gate_mlp = rest
        x = x + gate * self.attention.leave(seen)
        return x + gate_mlp * self.mlp(parts.modulate(x, shift, gain))


class Dual(nn.Module):
    """A stream of text and one of image, joined by attention."""

    def __init__(self, *sizes):
        super().__init__()
        self.text, self.image = Stream(*sizes), Stream(*sizes)

    def forward(self, text: torch.Tensor, image: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        (said, text_rest), (shown, image_rest) = self.text.enter(text, c), self.image.enter(image, c)
        seen = F.scaled_dot_product_attention(*(torch.cat(pair, dim=2) for pair in zip(said, shown, strict=True)))
        words, tokens = seen.split([text.shape[1], image.shape[1]], dim=2)
        return self.text.leave(text, words, text_rest), self.image.leave(image, tokens, image_rest)


class Single(nn.Module):
    """x + gate (attention(y) + mlp(y)) with y = adaLN x, over text and image in one sequence."""

    def __init__(self, width: int, head_dim: int, mlp_ratio: int, qk_norm: bool):
        super().__init__()
        self.modulation = nn.Linear(width, 3 * width)
        self.attention, self.mlp = parts.Attention(width, head_dim, qk_norm), parts.Mlp(width, mlp_ratio)

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        shift, gain, gate = self.modulation(c)[:, None].chunk(3, dim=-1)
        y = parts.modulate(x, shift, gain)
        return x + gate * (self.attention(y) + self.mlp(y))


class Model(nn.Module):
    """Images x [B, C, H, W], times t [B], text [B, length] (0 where nothing is said) -> velocity [B, C, H, W]."""

    def __init__(self, width, depth, single, head_dim, mlp_ratio, patch, image, channels, words, length, text_depth, qk_norm):
        super().__init__()
        self.patch, pixels, sizes = patch, patch * patch * channels, (width, head_dim, mlp_ratio, qk_norm)
        self.patch_in, self.time = nn.Linear(pixels, width), parts.Time(width, 256)
        self.words = parts.Text(words, length, width, text_depth, head_dim, mlp_ratio)
        self.pooled = parts.Vector(width, width)
        self.blocks = nn.ModuleList(Dual(*sizes) for _ in range(depth))
        self.single = nn.ModuleList(Single(*sizes) for _ in range(single))
        self.modulation, self.readout = nn.Linear(width, 2 * width), nn.Linear(width, pixels)
        self.register_buffer("position", torch.from_numpy(sincos_2d(image // patch, width)))
        streams = [s for b in self.blocks for s in (b.text, b.image)]
        parts.zero(self.readout, self.modulation, *(s.modulation for s in [*streams, *self.single]))

    def forward(self, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        image, words, said = self.patch_in(parts.patchify(x, self.patch)) + self.position, self.words(text), (text != 0)[..., None]
        mean = (words * said).sum(1) / said.sum(1).clamp(min=1)
        c = F.silu(self.time(t) + self.pooled(mean))
        for block in self.blocks:
            words, image = block(words, image, c)
        both = torch.cat([words, image], dim=1)
        for block in self.single:
            both = block(both, c)
        image = parts.modulate(both[:, words.shape[1] :], *self.modulation(c)[:, None].chunk(2, dim=-1))
        return parts.unpatchify(self.readout(image), self.patch)


def copy_weights(model: Model, given: parts.Arrays) -> None:
    """Load the lab's weights (lab.axes.weights names) into the peer."""
    parts.put(model.patch_in, given["patch_in.kernel"], given["patch_in.bias"])
    for name in ("time", "pooled"):
        parts.put_pair(getattr(model, name), parts.under(given, name), ("up", "out"))
    parts.put(model.modulation, parts.fused(given["modulation.kernel"]), given["modulation.bias"])
    parts.put(model.readout, given["readout"], given["readout_bias"])
    parts.put_text(model.words, parts.under(given, "words"))
    for block, own in parts.each(model.blocks, parts.under(given, "blocks")):
        for name in ("text", "image"):
            attention = parts.under(own, f"attention.{name}")
            _put(getattr(block, name), parts.under(own, name), attention)
    for block, own in parts.each(model.single, parts.under(given, "single")):
        _put(block, own, parts.under(own, "attention"))


def _put(block: Stream | Single, own: parts.Arrays, attention: parts.Arrays) -> None:
    parts.put(block.modulation, parts.fused(own["modulation.kernel"]), own["modulation.bias"])
    parts.put_attention(block.attention, attention)
    parts.put_pair(block.mlp, parts.under(own, "mlp"), ("up", "down"))
