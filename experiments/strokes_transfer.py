"""Does the best learning rate of a decoder of outlines, half of them with a span moved to the end, stay put as it grows 8x wider?

Polygons of the world `polygons`, whose best loss is known; 4 widths, 6 learning rates under muP with three seeds and 7 under the standard
parametrization with one: `./launch.sh run experiments/strokes_transfer.py`.
"""

from ml_collections import ConfigDict


def get_config():
    c = ConfigDict()
    c.model = dict(name="decoder", width=32, depth=2, head_dim=16, mlp_ratio=2, kv_group=1, qk_norm=True, rope="line")
    c.base = dict(width=32)
    c.objective = dict(name="infill", share=0.5, label_drop=0.1)
    c.data = dict(name="polygons", grid=8, scales=2, infill=True)
    c.optim = dict(schedule="cosine", warmup=25, ema=0.95)
    c.train = dict(steps=150, batch=32, log_every=5)
    c.eval = dict(examples=512, batch=128, every=150)
    c.sample = dict(n=36, options={})
    return c


def sweep():
    trials = [("standard", 0, k) for k in range(-9, -2)] + [("mup", seed, k) for seed in range(3) for k in range(-8, -2)]
    for width in (32, 64, 128, 256):  # one compile each
        for rule, seed, k in trials:
            yield {"model.width": width, "parametrization.name": rule, "optim.lr": 2.0**k, "seed": seed}
