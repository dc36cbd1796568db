"""Next-DiT as diffusers publishes it (LuminaNextDiT2DModel, such as Lumina-Next-SFT-diffusers; arXiv 2406.18583).

Their time is 1 at the data, and their velocity is data less noise: the readout has the other sign here. Both turn queries and keys by
rotary positions, they neighbouring pairs of features with rows and columns in turn, we the halves, rows first: the features of all heads
are put in another order, those of values too, which leaves every product as it is.
"""

from fractions import Fraction

import numpy as np

from lab.axes import split
from lab.errors import UserError
from lab.formats.rules import Constant, Rule, expect

LENGTH = 256  # words that their pipeline cuts at; no weight of theirs depends on it
OBJECTIVE = {"name": "flow", "time": "logit_normal", "label_drop": 0.1}
MULTIPLE = 256
BLOCK = "layers.{i}."
CONDITION = "time_caption_embed."


def inner(width: int, multiple: int, factor: float | None) -> int:
    """The width of their MLP."""
    size = int(4 * 2 * width / 3)
    size = size if factor is None else int(factor * size)
    return multiple * -(-size // multiple)


class Format:
    """Reads and writes LuminaNextDiT2DModel; images are square, text is features of a frozen encoder."""

    classes = ("LuminaNextDiT2DModel",)
    model = "nextdit"
    file = "diffusion_pytorch_model.safetensors"

    @staticmethod
    def config(theirs: dict) -> dict:
        """Our model, base, objective and sizes of the data from their config.json; the objective, which it does not tell, is the paper's."""
        expect(theirs, {"norm_eps": 1e-5, "scaling_factor": 1.0}, "config.json")
        width, heads = theirs["hidden_size"], theirs["num_attention_heads"]
        ratio = Fraction(inner(width, theirs.get("multiple_of") or MULTIPLE, theirs.get("ffn_dim_multiplier")), width)
        return {
            "model": {
                **{"name": "nextdit", "width": width, "depth": theirs["num_layers"], "patch": theirs["patch_size"]},
                "head_dim": split("config.json key hidden_size", width, "num_attention_heads", heads),
                "kv_group": split("config.json key num_attention_heads", heads, "num_kv_heads", theirs.get("num_kv_heads") or heads),
                **{"mlp_ratio": ratio.numerator, "mlp_divisor": ratio.denominator, "condition": min(width, 1024)},
                **{"qk_norm": theirs.get("qk_norm", True), "zero_gates": True, "clock": "data"},
                **{"outputs": 1 + theirs.get("learn_sigma", True), "mean_only": theirs.get("learn_sigma", True)},
            },
            "base": {"width": width},
            "objective": dict(OBJECTIVE),
            "data": {
                **{"image": theirs["sample_size"], "channels": theirs["in_channels"]},
                **{"features": theirs["cross_attention_dim"], "length": LENGTH},
            },
        }

    @staticmethod
    def theirs(config: dict) -> dict:
        """Their config.json of our model and data; UserError for an option that they have not."""
        m, d = config["model"], config["data"]
        width, outputs = m["width"], m["outputs"]
        wants = {"clock": "data", "mean_only": outputs == 2, "outputs": min(outputs, 2)}
        expect(m, wants, "config section model,")
        expect({"condition": m["condition"] or width}, {"condition": min(width, 1024)}, "config section model,")
        if not d.get("features"):
            raise UserError("LuminaNextDiT2DModel reads features of text, and the model was trained on tokens; --format native")
        mlp, heads = m["mlp_ratio"] * width // m["mlp_divisor"], width // m["head_dim"]
        own = inner(width, MULTIPLE, None) == mlp
        return {
            **{"_class_name": "LuminaNextDiT2DModel", "hidden_size": width, "num_layers": m["depth"], "patch_size": m["patch"]},
            **{"num_attention_heads": heads, "num_kv_heads": heads // m["kv_group"], "qk_norm": m["qk_norm"], "norm_eps": 1e-5},
            # any other width is a multiple of itself
            **{"multiple_of": MULTIPLE if own else mlp, "ffn_dim_multiplier": None if own else mlp / int(4 * 2 * width / 3)},
            **{"in_channels": d["channels"], "learn_sigma": outputs == 2, "sample_size": d["image"]},
            **{"cross_attention_dim": d["features"], "scaling_factor": 1.0},
        }

    @staticmethod
    def rules(config: dict) -> tuple[Rule | Constant, ...]:
        """Their linear layers keep [out, in]."""
        m, d = config["model"], config["data"]
        p, width = m["patch"], m["width"]
        places = {"freq": m["head_dim"] // 4, "way": 2, "two": 2}
        square = {"out": m["condition"] or width}
        feature, theirs = "(two way freq)", "(heads freq way two)"

        def heads(name: str, source: str = "embed") -> str:
            return f"{theirs.replace('heads', name)} {source} -> {source} {name} {feature}"

        def norms(name: str, part: str) -> Rule:
            pattern = f"{theirs.replace('heads', name)} -> {name} {feature}"
            at, side = ("query_norm", "norm_q") if name == "heads" else ("key_norm", "norm_k")
            tensors = tuple(f"{BLOCK}{a}.{side}.{part}" for a in ("attn1", "attn2"))
            return Rule(f"blocks.attention.{at}.{'gains' if part == 'weight' else 'biases'}", tensors, pattern, sizes=places)

        normed = [norms(name, part) for name in ("heads", "kv_heads") for part in ("weight", "bias")] if m["qk_norm"] else []
        c = d["channels"]
        return (
            Rule("patch_in.kernel", "patch_embedder.proj.weight", "embed (c p q) -> (p q c) embed", sizes={"p": p, "q": p, "c": c}),
            Rule("patch_in.bias", "patch_embedder.proj.bias"),
            Constant("pad_token", np.zeros(width, np.float32), free=True),
            # our features of time are sqrt(2) as large
            Rule(
                "condition.up.kernel",
                f"{CONDITION}timestep_embedder.linear_1.weight",
                "condition frequencies -> frequencies condition",
                0.5**0.5,
            ),
            Rule("condition.up.bias", f"{CONDITION}timestep_embedder.linear_1.bias"),
            Rule("condition.out.kernel", f"{CONDITION}timestep_embedder.linear_2.weight", "out condition -> condition out", sizes=square),
            Rule("condition.out.bias", f"{CONDITION}timestep_embedder.linear_2.bias"),
            Rule("condition.gain", f"{CONDITION}caption_embedder.0.weight"),
            Rule("condition.bias", f"{CONDITION}caption_embedder.0.bias"),
            Rule("condition.text.kernel", f"{CONDITION}caption_embedder.1.weight", "condition text_features -> text_features condition"),
            Rule("condition.text.bias", f"{CONDITION}caption_embedder.1.bias"),
            Rule("blocks.modulation", f"{BLOCK}norm1.linear.weight", "(n embed) condition -> n condition embed", sizes={"n": 4}),
            Rule("blocks.modulation_bias", f"{BLOCK}norm1.linear.bias", "(n embed) -> n embed", sizes={"n": 4}),
            Rule("blocks.gains", (f"{BLOCK}norm1.norm.weight", f"{BLOCK}ffn_norm1.weight")),
            Rule("blocks.closer", f"{BLOCK}norm2.weight"),
            Rule("blocks.mlp_closer", f"{BLOCK}ffn_norm2.weight"),
            Rule("blocks.word_gain", f"{BLOCK}norm1_context.weight"),
            Rule("blocks.attention.query", tuple(f"{BLOCK}{a}.to_q.weight" for a in ("attn1", "attn2")), heads("heads"), sizes=places),
            Rule("blocks.attention.key_value", tuple(f"{BLOCK}attn1.to_{x}.weight" for x in "kv"), heads("kv_heads"), sizes=places),
            Rule(
                "blocks.attention.words",
                tuple(f"{BLOCK}attn2.to_{x}.weight" for x in "kv"),
                heads("kv_heads", "text_features"),
                sizes=places,
            ),
            Rule("blocks.attention.gate", f"{BLOCK}gate"),
            Rule("blocks.attention.out", f"{BLOCK}attn2.to_out.0.weight", f"embed {theirs} -> heads {feature} embed", sizes=places),
            *normed,
            Rule("blocks.up", tuple(f"{BLOCK}feed_forward.linear_{k}.weight" for k in (1, 3)), "mlp embed -> embed mlp"),
            Rule("blocks.down", f"{BLOCK}feed_forward.linear_2.weight", "embed mlp -> mlp embed"),
            Rule("modulation.kernel", "norm_out.linear_1.weight", "embed condition -> condition embed"),
            Rule("modulation.bias", "norm_out.linear_1.bias"),
            Rule("readout", "norm_out.linear_2.weight", "patch_out embed -> embed patch_out", -1.0),
            Rule("readout_bias", "norm_out.linear_2.bias", factor=-1.0),
        )
