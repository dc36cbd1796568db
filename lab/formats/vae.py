"""The autoencoder of latent diffusion as diffusers publishes it (AutoencoderKL: the VAEs of SD, SDXL, SD3 and Flux)."""

import inspect
import math
from typing import ClassVar

from lab import find
from lab.axes import Dims, weights
from lab.errors import UserError
from lab.formats.rules import Constant, Rule, expect

THEIRS = {"act_fn": "silu", "latents_mean": None, "latents_std": None}
PLACES = (  # of our names, in order, and theirs
    (".levels.", ".LEVELS."),
    (".blocks.", ".resnets."),
    (".middle.first", ".mid_block.resnets.0"),
    (".middle.last", ".mid_block.resnets.1"),
    (".middle.attention.", ".mid_block.attentions.0."),
    (".query", ".to_q"),
    (".key.", ".to_k."),
    (".value", ".to_v"),
    ("attentions.0.out", "attentions.0.to_out.0"),
    ("attentions.0.norm", "attentions.0.group_norm"),
    (".shortcut", ".conv_shortcut"),
    (".kernel", ".weight"),
    (".gain", ".weight"),
)


class Format:
    """Reads and writes AutoencoderKL; latents are scaled and shifted by what config.json says."""

    classes = ("AutoencoderKL",)
    model = "vae"
    file = "diffusion_pytorch_model.safetensors"
    # attention's layers have other names in older files
    older: ClassVar[dict] = {
        f"attentions.0.{a}.": f"attentions.0.{b}."
        for a, b in zip(("query", "key", "value", "proj_attn"), ("to_q", "to_k", "to_v", "to_out.0"), strict=True)
    }

    @staticmethod
    def config(theirs: dict) -> dict:
        """Our model, base, objective and sizes of the data from their config.json; the weight of the KL, which it does not tell, is the paper's."""
        widths, channels = theirs["block_out_channels"], theirs["in_channels"]
        kinds = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
        expect(theirs, {**THEIRS, "out_channels": channels}, "config.json")
        for key, kind in kinds.items():
            if list(theirs.get(key, ())) != [kind] * len(widths):
                raise UserError(f"config.json key {key}={theirs.get(key)} has no counterpart; expected {[kind] * len(widths)}")
        width = math.gcd(*widths)
        model = {"name": "vae", "width": width, "multiples": [w // width for w in widths], "blocks": theirs.get("layers_per_block", 1)}
        model |= {"code": theirs.get("latent_channels", 4), "groups": theirs.get("norm_num_groups", 32)}
        model |= {"attention": theirs.get("mid_block_add_attention", True), "quant": theirs.get("use_quant_conv", True)}
        model |= {"post_quant": theirs.get("use_post_quant_conv", True), "scale": float(theirs.get("scaling_factor", 0.18215))}
        return {
            "model": {**model, "shift": float(theirs.get("shift_factor") or 0.0)},
            "base": {"width": width},
            "objective": {"name": "reconstruct", "error": "l1", "weight": 1e-6},
            "data": {"image": theirs.get("sample_size", 32), "channels": channels},
        }

    @staticmethod
    def theirs(config: dict) -> dict:
        """Their config.json of our model and data; a scale of 0, which is none yet, is written as 1."""
        m, d = config["model"], config["data"]
        n = len(m["multiples"])
        return {
            **{"_class_name": "AutoencoderKL", **THEIRS, "in_channels": d["channels"], "out_channels": d["channels"]},
            **{"down_block_types": ["DownEncoderBlock2D"] * n, "up_block_types": ["UpDecoderBlock2D"] * n},
            **{"block_out_channels": [m["width"] * k for k in m["multiples"]], "layers_per_block": m["blocks"]},
            **{"latent_channels": m["code"], "norm_num_groups": m["groups"], "mid_block_add_attention": m["attention"]},
            **{"use_quant_conv": m["quant"], "use_post_quant_conv": m["post_quant"], "sample_size": d["image"]},
            **{"scaling_factor": m["scale"] or 1.0, "shift_factor": m["shift"] or None, "force_upcast": True},
        }

    @staticmethod
    def rules(config: dict) -> tuple[Rule | Constant, ...]:
        """A rule a weight, by its name and place in the model: their convolutions keep [out, into, h, w], their linear layers [out, into]."""
        made = find.module("lab.models", "vae").Model
        knobs = {k: v for k, v in {**config["model"], **config["data"]}.items() if k in find.arguments(made.axes)}
        options = {k: v for k, v in config["model"].items() if k in inspect.signature(made.__init__).parameters}
        found = weights(made(Dims(made.axes(**knobs)), **options))
        return tuple(_rule(name, w.get_value().shape) for name, w in found.items() if not w.arrow.fixed)


def _rule(name: str, shape: tuple[int, ...]) -> Rule:
    theirs = f".{name}"
    for mine, other in PLACES:
        theirs = theirs.replace(mine, other)
    theirs = theirs.removeprefix(".").replace("LEVELS", "down_blocks" if name.startswith("encoder") else "up_blocks")
    theirs = theirs.replace(".resize.", ".downsamplers.0.conv." if name.startswith("encoder") else ".upsamplers.0.conv.")
    theirs = theirs.replace("coder.norm.", "coder.conv_norm_out.")
    theirs = theirs.replace("post_quant.", "post_quant_conv.") if name.startswith("post") else theirs
    theirs = theirs.replace("quant.", "quant_conv.", 1) if name.startswith("quant") else theirs
    if len(shape) == 4:
        return Rule(name, theirs, "o i h w -> h w i o", sizes=dict(zip("hwio", shape, strict=True)))
    if len(shape) == 2:
        return Rule(name, theirs, "o i -> i o", sizes=dict(zip("io", shape, strict=True)))
    return Rule(name, theirs)
