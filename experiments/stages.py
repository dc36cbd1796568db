"""Does a DiT of 32 pixels learn for fewer FLOPs where it begins at 8 and 16 (PixArt-alpha, arXiv 2310.00426; Lumina-mGPT, 2408.02657)?

Scenes of one object, judged by an exact oracle; the patch stays, so tokens are 4, 16 and 64.
"""

from ml_collections import ConfigDict


def get_config():
    c = ConfigDict()
    c.model = dict(name="dit", width=96, depth=2, head_dim=16, mlp_ratio=2, patch=4, qk_norm=True, zero_gates=True)
    c.base = dict(width=32)
    c.objective = dict(name="flow", time="logit_normal", label_drop=0.1)
    c.data = dict(name="shapes", size=32, grid=1, skill="object", examples=65536)
    c.optim = dict(schedule="cosine", warmup=50, ema=0.99, lr=2.0**-6)
    c.train = dict(steps=400, batch=32, log_every=20)
    c.eval = dict(examples=256, batch=128, every=200)
    c.sample = dict(n=36, options=dict(steps=25, guidance=4.0, method="heun"))
    c.judge = dict(names=("oracle",), n=256)
    return c


def sweep():
    for seed in (0, 1):
        yield {"seed": seed}


def stages():
    yield {"stage": "8px", "data.size": 8, "train.steps": 1600}
    yield {"stage": "16px", "data.size": 16, "train.steps": 800}
    yield {"stage": "32px"}
