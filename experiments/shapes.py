"""How often does a small DiT paint what its label asks for, and how does that grow with compute?

Scenes of one object at 16 pixels, 36 classes (colour and shape), judged by an exact oracle; the quickstart's DiT at two widths.
`./launch.sh run experiments/shapes.py`, about 5 minutes on 2 cores. Seen: 0.28 at width 32, 0.90 at width 96, chance 0.03.
"""

from ml_collections import ConfigDict


def get_config():
    c = ConfigDict()
    c.model = dict(name="dit", width=32, depth=2, head_dim=16, mlp_ratio=2, patch=4, qk_norm=False, zero_gates=True)
    c.base = dict(width=32)
    c.objective = dict(name="flow", time="logit_normal", label_drop=0.1)
    c.data = dict(name="shapes", size=16, grid=1, skill="object", examples=65536)
    c.optim = dict(schedule="cosine", warmup=200, ema=0.995, lr=2.0**-6)
    c.train = dict(steps=5000, batch=64, log_every=50)
    c.eval = dict(examples=512, batch=128, every=1000)
    c.sample = dict(n=36, options=dict(steps=25, guidance=4.0, method="heun"))
    c.judge = dict(names=("oracle",), every=1000, n=512)
    return c


def sweep():
    for width in (32, 96):
        yield {"model.width": width}
