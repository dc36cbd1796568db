"""Every family in small, with data that all of them can read: waves as pictures, as tokens and in words."""

import jax.numpy as jnp
import numpy as np
import small

SIDE, VOCABULARY, LENGTH, WORDS = 8, 4, 6, 12
PICTURES = {"image": 16, "channels": 1, "classes": 4}
TOKENS = {"side": SIDE, "tokens": SIDE * SIDE, "vocabulary": VOCABULARY}
TEXT = {"words": WORDS, "length": LENGTH}
FLOW = {"name": "flow", "time": "logit_normal", "label_drop": 0.1}
JOINT = {"name": "joint", "time": "uniform", "words": WORDS, "text_channels": 4}
UNMASK = {"name": "unmask", "schedule": "cosine", "weighting": "plain", "label_drop": 0.1}
# queries and keys are normalised, as the bias of plain keys has no gradient, which Adam turns into steps of rounding; no gate is zero,
# as blocks behind zero gates learn from the third step on
CALM = {"qk_norm": True, "zero_gates": False}
TRUNK = {"width": 32, "depth": 2, "head_dim": 16, "mlp_ratio": 2}

# family: its model, its objective, and what the source tells of its sizes
FAMILIES = {
    "dit": ({**TRUNK, "patch": 4, **CALM}, FLOW, PICTURES),
    "uvit": ({**TRUNK, "patch": 4, "depth": 3, "qk_norm": True, "time_mlp": True, "final_conv": True}, FLOW, PICTURES),
    "pixart": ({**TRUNK, "patch": 4, "text_depth": 0, **CALM}, FLOW, {**PICTURES, **TEXT}),
    "mmdit": ({**TRUNK, "patch": 4, "text_depth": 0, "single": 1, **CALM}, FLOW, {**PICTURES, **TEXT}),
    "nextdit": ({**TRUNK, "patch": 4, "text_depth": 0, "kv_group": 2, **CALM}, FLOW, {**PICTURES, **TEXT}),
    "decoder": ({**TRUNK, "qk_norm": True, "rope": "grid"}, {"name": "next_token", "label_drop": 0.1}, {**TOKENS, "classes": 4}),
    "unidiffuser": ({**TRUNK, "patch": 4, "depth": 3, "qk_norm": True}, JOINT, {**PICTURES, **TEXT}),
    "encoder_decoder": (
        {**TRUNK, "qk_norm": True, "positions": "grid"},
        {"name": "next_token", "label_drop": 0.1},
        {**TOKENS, **TEXT, "classes": 4},
    ),
    "masked": ({**TRUNK, "qk_norm": True}, UNMASK, {**TOKENS, "classes": 4}),
    "classifier": ({**TRUNK, "patch": 4, "qk_norm": True}, {"name": "classify"}, PICTURES),
    "two_tower": ({**TRUNK, "patch": 4, "text_depth": 1, "qk_norm": True}, {"name": "contrast"}, {**PICTURES, **TEXT}),
    "meissonic": ({**TRUNK, "depth": 1, "single": 1, "compress": 2, "text_depth": 1, **CALM}, UNMASK, {**TOKENS, **TEXT}),
}


def config(family, **model):
    """A complete config of a family, some of its model's keys changed."""
    section, objective, _ = FAMILIES[family]
    return small.config(model={"name": family, **section, **model}, objective=dict(objective))


def dims(family):
    """Sizes that the source gives."""
    return FAMILIES[family][2]


def batch(n=16, seed=0):
    """Waves [n] as image, label, tokens of the mean grey of 2 x 2 pixels, and text that names the label and says more."""
    given = small.batch(n, seed)
    grey = np.asarray(given["image"], np.float32).reshape(n, SIDE, 2, SIDE, 2).mean((2, 4)) / 256
    rng = np.random.default_rng(seed)
    text = np.concatenate([1 + np.asarray(given["label"])[:, None], rng.integers(0, WORDS, (n, LENGTH - 1))], 1)
    return {**given, "tokens": jnp.asarray(grey * VOCABULARY, jnp.int32), "text": jnp.asarray(text, jnp.int32)}
