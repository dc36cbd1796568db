"""What does a bit of a picture's code buy, by kind of tokenizer, number of tokens and width?

Icons of 16 pixels through 4, 16 or 64 tokens; judge `rate` tells bits and error of held-out icons restored, and the report draws them.
"""

from ml_collections import ConfigDict

SIZE = dict(depth=2, head_dim=16, mlp_ratio=2, qk_norm=True)
ARMS = {  # model, weight of its own cost
    "fsq": (dict(name="fsq", levels=(8, 6, 5), **SIZE), 0.0),
    "vq": (dict(name="vq", codes=256, code=8, **SIZE), 0.25),
    "kl": (dict(name="kl", code=4, **SIZE), 0.01),
}


def get_config():
    c = ConfigDict()
    c.model = ARMS["fsq"][0] | dict(width=32, patch=4)
    c.base = dict(width=32, patch=4)
    c.objective = dict(name="reconstruct", error="mse", weight=0.0)
    c.data = dict(name="icons", size=16, sets=("material", "fontawesome", "octicons", "simple"), views=8)
    c.optim = dict(schedule="cosine", warmup=50, lr=2.0**-7)
    c.train = dict(steps=600, batch=32, log_every=50)
    c.eval = dict(examples=512, batch=128, every=600)
    c.judge = dict(names=("rate",), n=512)
    return c


def sweep():
    for arm, (model, weight) in ARMS.items():
        for width in (32, 64):
            for patch in (8, 4, 2):
                objective = dict(name="reconstruct", error="mse", weight=weight)
                yield {"arm": arm, "model": model | dict(width=width, patch=patch), "objective": objective}
