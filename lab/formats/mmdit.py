"""MMDiT as diffusers publishes it (SD3Transformer2DModel, such as Stable Diffusion 3 medium and 3.5 large; arXiv 2403.03206).

Blocks with a second attention, which Stable Diffusion 3.5 medium has, are not read. In their last block the text's queries are
computed and what they see is thrown away: we have no such queries, and write zeros in their place.
"""

import numpy as np

from lab.errors import UserError
from lab.formats.rules import Constant, Rule, expect
from lab.layers.embed import sincos_2d

LENGTH = 154  # words of CLIP and T5 in one sequence; their config.json tells no length, and no weight of theirs depends on it
OURS = {"mlp_ratio": 4, "single": 0, "positions": "sincos", "position_width": 0}
STREAMS = {  # their names of a stream's norm, q k v, way out, gains of q k, and MLP
    "image": ("norm1", "attn.to_*", "attn.to_out.0", "attn.norm_*", "ff"),
    "text": ("norm1_context", "attn.add_*_proj", "attn.to_add_out", "attn.norm_added_*", "ff_context"),
}


class Format:
    """Reads and writes SD3Transformer2DModel; images are square, text is features of frozen encoders, and a pooled vector beside them."""

    classes = ("SD3Transformer2DModel",)
    model = "mmdit"
    file = "diffusion_pytorch_model.safetensors"

    @staticmethod
    def config(theirs: dict) -> dict:
        """Our model, base, objective and sizes of the data from their config.json; the objective is not told by it."""
        heads, head_dim, channels = theirs["num_attention_heads"], theirs["attention_head_dim"], theirs["in_channels"]
        width, out = heads * head_dim, theirs.get("out_channels") or channels
        asked = {**theirs, "dual_attention_layers": list(theirs.get("dual_attention_layers") or [])}
        expect(asked, {"caption_projection_dim": width, "dual_attention_layers": []}, "config.json")
        if theirs.get("qk_norm") not in (None, "rms_norm"):
            raise UserError(f"config.json key qk_norm={theirs['qk_norm']!r} has no counterpart; expected None or 'rms_norm'")
        if out % channels:
            raise UserError(f"config.json key out_channels={out} must be a multiple of in_channels={channels}")
        return {
            "model": {
                **{"name": "mmdit", "width": width, "depth": theirs["num_layers"], "head_dim": head_dim, "patch": theirs["patch_size"]},
                **{"mlp_ratio": 4, "outputs": out // channels, "qk_norm": theirs.get("qk_norm") is not None, "zero_gates": True},
                "crop": theirs["pos_embed_max_size"],
            },
            "base": {"width": width},
            "objective": {"name": "flow", "time": "logit_normal", "label_drop": 0.1},
            "data": {
                **{"image": theirs["sample_size"], "channels": channels, "length": LENGTH},
                **{"features": theirs["joint_attention_dim"], "pooled_features": theirs["pooled_projection_dim"]},
            },
        }

    @staticmethod
    def theirs(config: dict) -> dict:
        """Their config.json of our model and data; UserError for an option that they have not."""
        m, d = config["model"], config["data"]
        expect(m, OURS, "config section model,")
        if not (d.get("features") and d.get("pooled_features")):
            raise UserError("SD3Transformer2DModel reads features of text and a pooled vector, and the model was trained on other text")
        width = _width(m)
        return {
            **{"_class_name": "SD3Transformer2DModel", "sample_size": d["image"], "patch_size": m["patch"], "in_channels": d["channels"]},
            **{"out_channels": d["channels"] * m["outputs"], "num_layers": m["depth"], "attention_head_dim": m["head_dim"]},
            **{"num_attention_heads": width // m["head_dim"], "joint_attention_dim": d["features"], "caption_projection_dim": width},
            **{"pooled_projection_dim": d["pooled_features"], "pos_embed_max_size": _crop(config), "dual_attention_layers": []},
            "qk_norm": "rms_norm" if m["qk_norm"] else None,
        }

    @staticmethod
    def rules(config: dict) -> tuple[Rule | Constant, ...]:
        """Their linear layers keep [out, in]; the patch's convolution keeps [embed, channels, p, q]."""
        m, crop = config["model"], _crop(config)
        p, width, last = m["patch"], _width(m), f"transformer_blocks.{m['depth'] - 1}."
        square = {"out": width}
        table = sincos_2d(crop, width, crop / (config["data"]["image"] // p))[None]
        dead = {"add_q_proj.weight": (width, width), "add_q_proj.bias": (width,)}
        dead |= {"norm_added_q.weight": (m["head_dim"],)} if m["qk_norm"] else {}
        embedders = (("time", "timestep_embedder", "frequencies", 0.5**0.5), ("pooled", "text_embedder", "pooled_features", 1.0))
        return (
            Rule(
                "patch_in.kernel",
                "pos_embed.proj.weight",
                "embed c p q -> (p q c) embed",
                sizes=dict(p=p, q=p, c=config["data"]["channels"]),
            ),
            Rule("patch_in.bias", "pos_embed.proj.bias"),
            Constant("pos_embed.pos_embed", table),
            *(
                rule
                for ours, theirs, n, factor in embedders  # our features of time are sqrt(2) as large
                for rule in (
                    Rule(f"{ours}.up.kernel", f"time_text_embed.{theirs}.linear_1.weight", f"embed {n} -> {n} embed", factor),
                    Rule(f"{ours}.up.bias", f"time_text_embed.{theirs}.linear_1.bias"),
                    Rule(f"{ours}.out.kernel", f"time_text_embed.{theirs}.linear_2.weight", "out embed -> embed out", sizes=square),
                    Rule(f"{ours}.out.bias", f"time_text_embed.{theirs}.linear_2.bias"),
                )
            ),
            Rule("words.kernel", "context_embedder.weight", "embed text_features -> text_features embed"),
            Rule("words.bias", "context_embedder.bias"),
            *(rule for name in STREAMS for rule in _stream("blocks.", "transformer_blocks.{i}.", name, m) if m["depth"] > 1),
            *(rule for name in STREAMS for rule in _stream("last.", last, name, m)),
            *(Constant(f"{last}attn.{n}", np.zeros(shape, np.float32), free=True) for n, shape in dead.items()),
            *_modulation("", "norm_out", 2, width),
            Rule("readout", "proj_out.weight", "patch_out embed -> embed patch_out"),
            Rule("readout_bias", "proj_out.bias"),
        )


def _width(model: dict) -> int:
    return model.get("width") or model["depth"] * model["head_dim"]


def _crop(config: dict) -> int:
    """Side of their table of positions."""
    return config["model"].get("crop") or config["data"]["image"] // config["model"]["patch"]


def _modulation(ours: str, theirs: str, n: int, width: int) -> tuple[Rule, Rule]:
    """Where there is no gate they have the gain before the shift."""
    order = (1, 0) if n == 2 else ()
    return (
        Rule(
            f"{ours}modulation.kernel", f"{theirs}.linear.weight", "(n out) embed -> n embed out", sizes=dict(n=n, out=width), order=order
        ),
        Rule(f"{ours}modulation.bias", f"{theirs}.linear.bias", "(n embed) -> n embed", sizes=dict(n=n), order=order),
    )


def _stream(ours: str, block: str, name: str, model: dict) -> tuple[Rule, ...]:
    """One stream of a dual block; the text of the last one is only looked at."""
    quiet = ours == "last." and name == "text"
    norm, project, out, gain, ff = (f"{block}{x}" for x in STREAMS[name])
    at, kept = f"{ours}attention.{name}.", "qkv"[quiet:]
    found = (
        *_modulation(f"{ours}{name}.", norm, 2 if quiet else 6, _width(model)),
        Rule(f"{at}qkv", tuple(f"{project.replace('*', x)}.weight" for x in kept), "(heads head_dim) embed -> embed heads head_dim"),
        Rule(f"{at}qkv_bias", tuple(f"{project.replace('*', x)}.bias" for x in kept), "(heads head_dim) -> heads head_dim"),
    )
    if model["qk_norm"]:
        found += (Rule(f"{at}gain", tuple(f"{gain.replace('*', x)}.weight" for x in kept[:-1])),)
    if quiet:
        return found
    return (
        *found,
        Rule(f"{at}out", f"{out}.weight", "embed (heads head_dim) -> heads head_dim embed"),
        Rule(f"{at}out_bias", f"{out}.bias"),
        Rule(f"{ours}{name}.mlp.up.kernel", f"{ff}.net.0.proj.weight", "mlp embed -> embed mlp"),
        Rule(f"{ours}{name}.mlp.up.bias", f"{ff}.net.0.proj.bias"),
        Rule(f"{ours}{name}.mlp.down.kernel", f"{ff}.net.2.weight", "embed mlp -> mlp embed"),
        Rule(f"{ours}{name}.mlp.down.bias", f"{ff}.net.2.bias"),
    )
