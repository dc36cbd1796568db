"""Does the best learning rate of a Next-DiT stay put as it grows 8x wider?

Scenes of one object at 16 pixels with captions; 4 widths, 6 learning rates under muP with three seeds and 7 under the standard parametrization with one. Seen:
standard -3.55 octaves, muP -0.01 (90% interval -1.07 to +0.85). `./launch.sh run experiments/nextdit_transfer.py`.
"""

from ml_collections import ConfigDict


def get_config():
    c = ConfigDict()
    c.model = dict(
        name="nextdit", width=32, depth=2, head_dim=16, mlp_ratio=2, patch=4, kv_group=2, text_depth=1, qk_norm=True, zero_gates=True
    )
    c.base = dict(width=32)
    c.objective = dict(name="flow", time="logit_normal", label_drop=0.1)
    c.data = dict(name="shapes", size=16, grid=1, extras=("text",), density="medium", examples=65536)
    c.optim = dict(schedule="cosine", warmup=25, ema=0.95)
    c.train = dict(steps=150, batch=32, log_every=5)
    c.eval = dict(examples=512, batch=128, every=150)
    c.sample = dict(n=36, options=dict(steps=25, guidance=2.0, method="heun"))
    return c


def sweep():
    trials = [("standard", 0, k) for k in range(-9, -2)] + [("mup", seed, k) for seed in range(3) for k in range(-8, -2)]
    for width in (32, 64, 128, 256):  # one compile each
        for rule, seed, k in trials:
            yield {"model.width": width, "parametrization.name": rule, "optim.lr": 2.0**k, "seed": seed}
