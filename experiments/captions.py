"""Does a model that has learned what short captions say learn dense ones for fewer FLOPs (PixArt-alpha, arXiv 2310.00426)?

Scenes of one object at 16 pixels, captions of 3 words and then of 14, which tell size, place and ground too, by a text encoder that is
learned along. `./launch.sh run experiments/captions.py`; the last stage alone begins from nothing with `stages` taken out of a copy.
"""

from ml_collections import ConfigDict


def get_config():
    c = ConfigDict()
    c.model = dict(name="pixart", width=64, depth=2, head_dim=16, mlp_ratio=2, patch=4, qk_norm=True, zero_gates=True, text_depth=1)
    c.base = dict(width=64)
    c.objective = dict(name="flow", time="logit_normal", label_drop=0.1)
    c.data = dict(name="shapes", size=16, grid=1, density="dense", extras=("text",), examples=65536)
    c.optim = dict(schedule="cosine", warmup=50, ema=0.99, lr=2.0**-7)
    c.train = dict(steps=500, batch=32, log_every=20)
    c.eval = dict(examples=256, batch=128, every=250)
    c.sample = dict(n=36, options=dict(steps=25, guidance=3.0, method="heun"))
    c.judge = dict(names=("oracle",), n=256)
    return c


def sweep():
    for seed in (0, 1):
        yield {"seed": seed}


def stages():
    yield {"stage": "short", "data.density": "medium"}
    yield {"stage": "dense"}
