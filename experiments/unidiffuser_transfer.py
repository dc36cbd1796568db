"""Does the best learning rate of a UniDiffuser, which draws images and captions together, stay put as it grows 8x wider?

Scenes of one object at 16 pixels with captions; 4 widths, 6 learning rates under muP with three seeds and 7 under the standard parametrization with one. Not trained yet:
`./launch.sh run experiments/unidiffuser_transfer.py`.
"""

from ml_collections import ConfigDict


def get_config():
    c = ConfigDict()
    c.model = dict(name="unidiffuser", width=32, depth=3, head_dim=16, mlp_ratio=2, patch=4, qk_norm=True)
    c.base = dict(width=32)
    c.objective = dict(name="joint", time="logit_normal", words=48, text_channels=16, text_weight=0.5)
    c.data = dict(name="shapes", size=16, grid=1, extras=("text",), density="medium", examples=65536)
    c.optim = dict(schedule="cosine", warmup=25, ema=0.95)
    c.train = dict(steps=150, batch=32, log_every=5)
    c.eval = dict(examples=512, batch=128, every=150)
    c.sample = dict(n=36, options=dict(steps=25, guidance=2.0))
    return c


def sweep():
    trials = [("standard", 0, k) for k in range(-9, -2)] + [("mup", seed, k) for seed in range(3) for k in range(-8, -2)]
    for width in (32, 64, 128, 256):  # one compile each
        for rule, seed, k in trials:
            yield {"model.width": width, "parametrization.name": rule, "optim.lr": 2.0**k, "seed": seed}
