"""A small residual model of images for planted faults: a step compiles in a second, and many faults of it are numbers of a table."""

from pathlib import Path
from typing import NamedTuple

import jax
import small
from flax import nnx

from lab.axes import Dims, scale, split, stack, weight
from lab.layers import embed
from lab.layers.attention import attend, rms_norm
from lab.models.shared import through
from lab.parametrization import Table, mup

HERE = Path(__file__).resolve().parent


class Lie(NamedTuple):
    """An arrow that lies, or a block that is not what its arrow says: what is declared in place of what, and what must be said of it."""

    declared: dict[str, str]
    weight: str
    kind: str
    said: str


LIES = {
    "fan-in of a fused qkv": Lie(
        {"qkv": "3 embed -> heads head_dim"}, "blocks.qkv", "fan-in", "contracts embed, but the arrow contracts 3, embed"
    ),
    "logits scaled by all heads": Lie({"logits": "heads head_dim ->"}, "blocks.logits", "logits", "a product over 8 numbers"),
    "a table filed as hidden": Lie({"table": "labels embed ->"}, "table", "filed as hidden", "contracts nothing"),
    "a bias filed as hidden": Lie({"bias": "mlp ->"}, "blocks.bias", "filed as hidden", "contracts nothing"),
    "a branch without its multiplier": Lie({"down": "mlp -> embed"}, "blocks.down", "branch", "it gets no depth multiplier"),
    "half of a joined fan-in": Lie({"skip": "2 | embed -> embed"}, "skip", "fan-in", "contracts 2, embed, but the arrow contracts embed"),
    "a norm that undoes the multiplier": Lie({}, "blocks.down", "branch", "undoes its depth multiplier"),
}


class Block(nnx.Module):
    """x + attention(norm x), then x + mlp(norm x); with a `lie`, something in it is not what its arrow says."""

    def __init__(self, dims: Dims, lie: str):
        said = LIES[lie].declared if lie else {}
        self.sandwich = lie == "a norm that undoes the multiplier"
        self.qkv = weight(said.get("qkv", "3 | embed -> heads head_dim"), dims)
        # the same for every head; an index changes nothing of it, and gives a planted table a ratio to work with
        self.logits = scale(said.get("logits", "heads | head_dim ->"), dims)
        self.out = weight("heads head_dim => embed", dims)
        self.up = weight("embed -> mlp", dims)
        self.bias = weight(said.get("bias", "-> mlp"), dims, fill=0.0)
        self.down = weight(said.get("down", "mlp => embed"), dims)

    def __call__(self, x: jax.Array) -> jax.Array:
        q, k, v = (embed.project(rms_norm(x), w, 0.0) for w in self.qkv.get_value())
        x = x + embed.project(attend(rms_norm(q) * self.logits.get_value(), rms_norm(k), v), self.out.get_value(), 0.0, 2)
        y = jax.nn.gelu(embed.project(rms_norm(x), self.up.get_value(), self.bias.get_value())) @ self.down.get_value()
        return x + (rms_norm(y) if self.sandwich else y)


class Model(nnx.Module):
    """Inputs x [B, side, side, channels] and label [B] -> the same shape; `lie` plants one of LIES."""

    takes = ("x", "label")

    @staticmethod
    def axes(width, depth, head_dim, patch, image, channels, classes) -> dict[str, int]:
        """Sizes of every axis."""
        side = split("image size", image, "model.patch", patch)
        return {
            **{"embed": width, "joined": 2 * width, "mlp": 2 * width, "heads": width // head_dim, "head_dim": head_dim, "layers": depth},
            **{"patch": patch * patch * channels, "patch_side": patch, "side": side * patch, "labels": classes + 1},
        }

    def __init__(self, dims: Dims, lie: str = ""):
        said = LIES[lie].declared if lie else {}
        self.patch, self.side, self.layers = dims["patch_side"], dims["side"], dims["layers"]
        self.patch_in = weight("patch -> embed", dims)
        self.table = weight(said.get("table", "labels | -> embed"), dims)
        self.skip = weight(said.get("skip", "joined -> embed"), dims)
        self.blocks = stack(Block(dims, lie), self.layers, dims)
        self.readout = weight("embed -> patch", dims, init=0.0)
        self.output = scale("embed | ->", dims)  # one, whatever the width

    def __call__(self, inputs: dict[str, jax.Array], cache: None = None) -> jax.Array:
        label, null = inputs["label"], self.table.get_value().shape[0] - 1
        first = embed.patchify(inputs["x"], self.patch) @ self.patch_in.get_value()
        first = first + self.table.get_value()[jax.numpy.where(label < 0, null, label)][:, None]
        x = through(self.blocks, first, lambda block, x: block(x), self.layers)
        skip = self.skip.get_value()
        x = rms_norm(jax.numpy.concatenate([x, first], -1) @ skip.reshape(-1, skip.shape[-1]))
        return embed.unpatchify(x @ self.readout.get_value() * self.output.get_value(), self.patch, self.side)


SOURCE = {"image": 16, "channels": 1, "classes": 4}


def config(**model):
    """A complete config of the toy."""
    model = {"name": str(HERE / "toy.py"), "width": 16, "depth": 2, "head_dim": 8, "patch": 4, **model}
    return small.config(model=model, objective={"name": "flow", "time": "logit_normal", "label_drop": 0.1}, base={"width": 16})


def batches(steps, n=16):
    """The same waves for every trial, [steps, n, ...]."""
    return small.stack([small.batch(n, seed) for seed in range(steps)])


def _only(spec, **factors):
    """muP, but for the weight of one arrow, whose scales are multiplied by what `factors` make of the arrow."""

    def table(a):
        s = mup(a)
        return s._replace(**{k: getattr(s, k) * f(a) for k, f in factors.items()}) if str(a) == spec else s

    return table


def _hidden(a):
    s = mup(a)
    return s._replace(step=s.step * a.r_in) if a.role == "hidden" else s


def _decay(a):
    s = mup(a)
    return s._replace(decay=s.decay * s.step)


def _epsilon(a):
    # an epsilon of 1e-4 is one of 1e-8 beside a gradient that is 1e4 times smaller
    s = mup(a)
    return s._replace(grad=1e4 * s.grad)


class Fault(NamedTuple):
    """A table with one fault, the kind that must be named, the weights it may be seen in, and those it must be."""

    table: Table
    kind: str
    weights: set[str]
    surely: set[str]


MATRICES = {"skip", "blocks.qkv", "blocks.out", "blocks.up", "blocks.down"}
LOGITS, TABLE, BIAS = "layers heads | head_dim ->", "labels | -> embed", "layers | -> mlp"
UP, DOWN, READOUT, OUTPUT = "layers | embed -> mlp", "layers | mlp => embed", "embed -> patch", "embed | ->"
FAULTS = {
    "hidden learning rates unscaled": Fault(_hidden, "learning rate", MATRICES, {"blocks.qkv", "blocks.up", "blocks.down"}),
    "one layer's learning rate unscaled": Fault(_only(UP, step=lambda a: a.r_in), "learning rate", {"blocks.up"}, {"blocks.up"}),
    "logits falling with width": Fault(
        _only(LOGITS, init=lambda a: 1 / a.r_index), "logits", {"blocks.logits", "blocks.qkv x qkv"}, {"blocks.logits"}
    ),
    "epsilon of 1e-4": Fault(_epsilon, "epsilon", MATRICES | {"blocks.bias", "table", "patch_in"}, {"blocks.qkv"}),
    "a table filed as hidden": Fault(_only(TABLE, step=lambda a: 1 / a.r_out), "filed as hidden", {"table"}, {"table"}),
    "a bias filed as hidden": Fault(_only(BIAS, step=lambda a: 1 / a.r_out), "filed as hidden", {"blocks.bias"}, {"blocks.bias"}),
    "readout counted twice in its step": Fault(_only(READOUT, step=lambda a: 1 / a.r_in), "counted twice", {"readout"}, {"readout"}),
    "readout counted twice behind it": Fault(_only(OUTPUT, init=lambda a: 1 / a.r_index), "counted twice", {"readout"}, {"readout"}),
    "decay not rescaled": Fault(_decay, "decay", MATRICES | {"readout"}, MATRICES | {"readout"}),
    "a table whose std falls with width": Fault(_only(TABLE, init=lambda a: a.r_out**-0.5), "init", {"table"}, {"table"}),
    "a branch without its depth multiplier": Fault(
        _only(DOWN, init=lambda a: a.depth, step=lambda a: a.depth), "depth", {"blocks.down"}, {"blocks.down"}
    ),
}
