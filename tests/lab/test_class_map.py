"""Every weight of every model has the class that the literature gives it, and the exceptions have reasons that hold."""

import dataclasses
import functools

import families
import pytest

from lab import audit, axes, find, models, parametrization
from lab.models import dit
from lab.population import build

# What a weight's class would not be by its place in the network, with what its arrow says in such a case. By place, a matrix is input
# where it reads pixels, output where it writes pixels or logits, else hidden; all that contracts nothing is a vector.
EXCEPTIONS = {
    # tables of labels, tokens, positions and of shift and scale. They read data, for which the literature calls them input; they contract
    # nothing, for which they are vectors here; the scales of the two are the same. Unlike biases and gains they start random
    "look-up": ("vector", lambda a: a.index and not a.ins and a.inf_out and a.init > 0),
    # the time's first layer reads a sinusoid of fixed size. U-ViT's is as wide as the model, so there it is hidden
    "sinusoid": ("input", lambda a: a.ins == ("frequencies",)),
    # what reads the features of a frozen encoder
    "frozen": ("input", lambda a: a.ins in (("text_features",), ("pooled_features",))),
    # gains of queries and keys, one number a feature of a head, which all heads share
    "shared by heads": ("scalar", lambda a: a.outs == ("head_dim",) and "heads" not in a.names),
    # no side moves with width: the readout's bias, U-ViT's convolution of pixels after the readout, PixArt's null caption among features
    "finite": ("scalar", lambda a: not (a.inf_in or a.inf_out or "head_dim" in a.names)),
}


def under(at, *parts):
    """Parts of a map, their weights' names behind `at`."""
    return {f"{at}.{n}": role for part in parts for n, role in part.items()}


def linear(role):
    return {"kernel": role, "bias": "vector"}


QKV = {"qkv": "hidden", "qkv_bias": "vector"}
OUT = {"out": "hidden", "out_bias": "vector"}
GAIN, LOGITS = {"gain": "shared by heads"}, {"logits": "fixed"}
MLP = under("up", linear("hidden")) | under("down", linear("hidden"))
NORM = {"gain": "vector", "bias": "vector"}
PLAIN = under("attention", QKV, OUT, LOGITS) | under("mlp", MLP)  # a block without norms of queries and keys
BLOCK = PLAIN | under("attention", GAIN)
ADALN = under("modulation", linear("hidden"))
PATCHES, HEAD = under("patch_in", linear("input")), {"readout": "output", "readout_bias": "finite"}
TIME = under("time.up", linear("sinusoid")) | under("time.out", linear("hidden"))
LABEL = {"table": "look-up"}
WORDS = {"table": "look-up", "positions": "look-up"} | under("blocks", PLAIN)
FEATURES = under("features", linear("frozen")) | {"positions": "look-up"}

SKIPPED = PATCHES | HEAD | {"positions": "look-up"} | under("norm", NORM) | under("skips", linear("hidden"))
for at in ("blocks_in", "middle", "blocks_out"):
    SKIPPED |= under(at, BLOCK, under("norm", NORM), under("mlp_norm", NORM))
LONG_SKIPS = SKIPPED | under("time.up", linear("hidden")) | under("time.out", linear("hidden"))
LONG_SKIPS |= {"conv.kernel": "finite", "conv.bias": "finite"}
# noisy words are read as patches are, and written by a head of their own
UNIDIFFUSER = SKIPPED | under("text_in", linear("input")) | {"text_readout": "output", "text_bias": "finite"}

CROSS = {"q": "hidden", "q_bias": "vector", "kv": "hidden", "kv_bias": "vector"} | OUT | GAIN | LOGITS
SHARED = BLOCK | under("cross", CROSS) | {"table": "look-up"}
# averages over squares of tokens contract places, which are no dim of the taps, and no feature
AVERAGES = dict.fromkeys(("taps", "taps_bias", "norm_gain", "norm_bias"), "vector")
PIXART = PATCHES | HEAD | TIME | ADALN | {"table": "look-up"} | under("blocks", SHARED) | under("compressed", SHARED)
PIXART |= under("compressed.attention", AVERAGES)
REFINER = under("attention", {n: role for n, role in CROSS.items() if n not in GAIN}) | under("mlp", MLP) | ADALN
CAPTION = {"null": "finite"} | under("up", linear("frozen")) | under("out", linear("hidden"))

STREAM = under("mlp", MLP) | ADALN
DUAL = under("attention.text", QKV, OUT, GAIN) | under("attention.image", QKV, OUT, GAIN) | under("attention", LOGITS)
DUAL |= under("text", STREAM) | under("image", STREAM)
LAST = {n: role for n, role in DUAL.items() if not n.startswith(("text.mlp", "attention.text.out"))}  # which carries no text on
TWO_STREAMS = TIME | ADALN | HEAD | under("blocks", DUAL)
MMDIT = TWO_STREAMS | PATCHES
SINGLE = under("single", BLOCK | ADALN)


def pooled(reads):
    """The MLP of a text's one vector."""
    return under("pooled.up", linear(reads)) | under("pooled.out", linear("hidden"))


def nextdit(source, gain):
    """Next-DiT; `source` is the role of what reads words, `gain` that of what scales their features."""
    looks = dict.fromkeys(("query", "key_value", "out"), "hidden") | {"words": source, "gate": "vector"} | LOGITS
    looks |= dict.fromkeys(f"{side}_norm.{w}" for side in ("query", "key") for w in ("gains", "biases"))
    block = {
        "modulation": "hidden",
        "up": "hidden",
        "down": "hidden",
        "modulation_bias": "vector",
        "gains": "vector",
        "closer": "vector",
        "mlp_closer": "vector",
    }
    block |= {"word_gain": gain} | under("attention", {n: role or "vector" for n, role in looks.items()})
    condition = (
        under("up", linear("sinusoid")) | under("out", linear("hidden")) | {"gain": gain, "bias": gain} | under("text", linear(source))
    )
    return PATCHES | HEAD | under("condition", condition) | under("blocks", block) | under("modulation", linear("hidden"))


CAUSAL = under("attention", dict.fromkeys(("query", "key_value", "out"), "hidden"), GAIN, LOGITS)
CAUSAL |= {"mlp.up": "hidden", "mlp.down": "hidden", "gains": "vector"}
DECODER = {"table": "look-up", "gain": "vector", "readout": "output"} | under("blocks", CAUSAL)
READS = dict.fromkeys(("query", "key_value", "out"), "hidden") | GAIN | LOGITS
HALF = {"gains": "vector", "mlp.up": "hidden", "mlp.down": "hidden"}
PARTI = {"start": "look-up", "table": "look-up", "gain": "vector", "readout": "output"} | under("encoder", {"gain": "vector"})
PARTI |= under("encoder.blocks", HALF, under("attention", READS)) | under("blocks", CAUSAL, HALF, under("cross", READS))
RANGES = under("bias", {"table": "vector"}) | under("encoder.bias", {"table": "vector"})  # they start at zero
MASKED = {"table": "look-up", "positions": "look-up"} | under("blocks", BLOCK) | under("transform", linear("hidden")) | HEAD
MEISSONIC = TWO_STREAMS | SINGLE | pooled("hidden") | {"table": "look-up"}
MEISSONIC |= {"down": "hidden", "down_bias": "vector", "up": "hidden", "up_bias": "vector"}
TOWER = under("tower", PATCHES, under("blocks", BLOCK))
TOWERS = TOWER | under("image_out", linear("hidden")) | under("text_out", linear("hidden")) | {"sharpness": "finite"}

# model: kind: what is changed in its model, what its source tells, the map
SAID, FROZEN = {"words": 12, "length": 6}, {"features": 5, "length": 6}
ENCODED = {"text_depth": 1}
MAPS = {
    "dit": {"label": ({}, {}, PATCHES | HEAD | TIME | ADALN | under("blocks", BLOCK | ADALN) | under("label", LABEL))},
    "uvit": {
        "label": ({}, {}, LONG_SKIPS | under("condition", LABEL)),
        "words": (ENCODED, SAID, LONG_SKIPS | under("condition", WORDS)),
        "features": ({}, FROZEN, LONG_SKIPS | under("condition", FEATURES)),
    },
    "pixart": {
        "words": (ENCODED | {"kv_compress": 2}, SAID, PIXART | under("words", WORDS)),
        "features": ({"kv_compress": 2}, FROZEN, PIXART | under("words", CAPTION)),
        "refined": ({"refiner": 2, "kv_compress": 2}, FROZEN, PIXART | under("words", CAPTION) | under("refiner.blocks", REFINER)),
    },
    "mmdit": {
        "words": (ENCODED | {"single": 0}, SAID, MMDIT | under("last", LAST) | under("words", WORDS) | pooled("hidden")),
        "features": ({}, FROZEN, MMDIT | SINGLE | under("words", linear("frozen")) | pooled("frozen")),
        "pooled": ({}, FROZEN | {"pooled_features": 7}, MMDIT | SINGLE | under("words", linear("frozen")) | pooled("frozen")),
    },
    "nextdit": {
        "words": (ENCODED, SAID, nextdit("hidden", "vector") | under("words", WORDS)),
        "features": ({}, FROZEN, nextdit("frozen", "finite")),
    },
    "decoder": {
        "label": ({"kv_group": 2}, {}, DECODER | under("label", LABEL)),
        "words": (ENCODED, SAID, DECODER | under("text", WORDS)),
        "features": ({}, FROZEN, DECODER | under("text", FEATURES)),
    },
    "unidiffuser": {"pair": ({}, SAID, UNIDIFFUSER)},
    "encoder_decoder": {
        "words": ({"kv_group": 2}, SAID, PARTI | under("encoder", {"table": "look-up"})),
        "relative": ({"positions": "relative"}, SAID, PARTI | RANGES | under("encoder", {"table": "look-up"})),
        "features": ({}, FROZEN, PARTI | under("encoder.features", linear("frozen"))),
    },
    "masked": {
        "label": ({}, {}, MASKED | under("label", LABEL)),
        "words": (ENCODED, SAID, MASKED | under("text", WORDS)),
        "features": ({}, FROZEN, MASKED | under("text", FEATURES)),
    },
    "classifier": {"label": ({}, {}, TOWER | HEAD)},
    "two_tower": {
        "words": ({}, SAID, TOWERS | under("words", WORDS)),
        "features": ({"text_depth": 0}, FROZEN, TOWERS | under("words", FEATURES)),
    },
    "meissonic": {
        "words": ({}, SAID, MEISSONIC | under("text", WORDS)),
        "features": ({}, FROZEN, MEISSONIC | under("text", FEATURES)),
    },
}
CASES = pytest.mark.parametrize("model, kind", [(m, k) for m, kinds in MAPS.items() for k in kinds])


def told(model, kind):
    """(config, dims of its source) at twice the base width."""
    changes, says, _ = MAPS[model][kind]
    dims = {k: v for k, v in families.dims(model).items() if k not in SAID}
    return families.config(model, width=64, **changes), dims | says


def tree(model, kind):
    """The described weights of a model."""
    return axes.weights(build(*told(model, kind)).model)


def roles(found):
    """name -> role, as the audit prints them."""
    return {n: "fixed" if w.arrow.fixed else w.arrow.role for n, w in found.items()}


def wrong(found, model, kind):
    """name -> (role found, role of the map) where they differ; None where there is no such weight."""
    want = {n: EXCEPTIONS[said][0] if said in EXCEPTIONS else said for n, said in MAPS[model][kind][2].items()}
    return {n: (found.get(n), want.get(n)) for n in found | want if found.get(n) != want.get(n)}


def unmapped():
    """Models of the lab without a map."""
    return [n for n in find.names("lab.models") if n not in MAPS]


def test_every_model_has_a_map(tmp_path, monkeypatch):
    assert not unmapped(), f"{unmapped()} have no class map: say in MAPS of {__file__} what each of their weights is, and why"
    (tmp_path / "new.py").write_text('"""A new one."""\n\n\nclass Model:\n    pass\n')
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path)])
    assert unmapped() == ["new"]


@CASES
def test_every_weight_has_the_role_of_the_map(model, kind):
    found = {r["weight"]: r["role"] for r in audit.rows(*told(model, kind))}
    assert wrong(found, model, kind) == {}
    # readouts of its own: no head is tied to a table; where two towers meet there is none
    assert list(found.values()).count("output") == {"unidiffuser": 2, "two_tower": 0}.get(model, 1)


@CASES
def test_the_reason_of_an_exception_holds_of_those_weights_and_of_no_other(model, kind):
    found = {n: w.arrow for n, w in tree(model, kind).items() if not w.arrow.fixed}
    said = MAPS[model][kind][2]
    for reason, (_, holds) in EXCEPTIONS.items():
        assert {n for n, a in found.items() if holds(a)} == {n for n in found if said[n] == reason}, reason


@CASES
def test_look_ups_have_the_scales_of_input_weights_and_hidden_ones_have_not(model, kind):
    for name, w in tree(model, kind).items():
        said, scales = MAPS[model][kind][2][name], parametrization.mup(dataclasses.replace(w.arrow, inside=False))
        if said in ("look-up", "input", "sinusoid", "frozen"):
            assert scales[:3] == (1.0, 1.0, 0.5), name
        if said == "hidden":
            assert scales[:2] == pytest.approx((0.5**0.5, 0.5)), name


@CASES
def test_a_weight_filed_wrongly_is_named_and_no_other(model, kind):
    weights = tree(model, kind)
    for name, w in weights.items():
        a = w.arrow
        if not a.fixed:
            lie = dataclasses.replace(a, inf_in=not a.inf_in) if a.ins else dataclasses.replace(a, inf_out=not a.inf_out)
            assert list(wrong(roles(weights | {name: axes.Weight(w.get_value(), arrow=lie)}), model, kind)) == [name]
    less, more = dict(list(weights.items())[1:]), weights | {"extra": w}
    assert len(wrong(roles(less), model, kind)) == len(wrong(roles(more), model, kind)) == 1


def test_an_axis_that_was_forgotten_shows_in_every_weight_that_has_it(monkeypatch):
    sizes = dit.Model.axes
    monkeypatch.setattr(dit.Model, "axes", staticmethod(functools.wraps(sizes)(lambda **knobs: sizes(**knobs) | {"mlp": 64})))
    assert wrong(roles(tree("dit", "label")), "dit", "label") == {
        "blocks.mlp.up.kernel": ("output", "hidden"),
        "blocks.mlp.up.bias": ("scalar", "vector"),
        "blocks.mlp.down.kernel": ("input", "hidden"),
    }
