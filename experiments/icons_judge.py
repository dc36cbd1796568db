"""Which caption does an icon of 32 pixels fit?

Two towers, which judge what icons_tokens.py and icons_latents.py draw; of one size whatever drew it.
"""

from ml_collections import ConfigDict


def get_config():
    c = ConfigDict()
    c.model = dict(name="two_tower", width=96, depth=3, head_dim=16, mlp_ratio=3, patch=4, qk_norm=True, text_depth=1)
    c.base = dict(width=96)
    c.objective = dict(name="contrast")
    icons = dict(name="icons", size=32, sets=("octicons",), views=2)
    c.data = dict(name="text", source=icons, tokens="words", words=1024, length=8)
    c.optim = dict(lr=2.0**-8, schedule="cosine", warmup=100)
    c.train = dict(steps=600, batch=64, log_every=50)
    c.eval = dict(examples=512, batch=128, every=200)
    c.sample = dict(n=0)
    c.judge = dict(names=("wrong",))  # the error on real icons that the judge itself makes
    return c
