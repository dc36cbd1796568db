"""Does the best learning rate of a masked transformer stay put as it grows 8x wider?

Grids of 16 tokens from the world `tree`; 4 widths, 7 learning rates under muP with three seeds and as many under the standard parametrization with one. About 6 minutes on 2
cores: `./launch.sh run experiments/masked_transfer.py`. Seen: standard -1.87 or below (at the edge), muP +0.55 (90%
interval +0.08 to +1.21), which costs 0.04% in loss.
"""

from ml_collections import ConfigDict


def get_config():
    c = ConfigDict()
    c.model = dict(name="masked", width=32, depth=2, head_dim=16, mlp_ratio=2, qk_norm=True)
    c.base = dict(width=32)
    c.objective = dict(name="unmask", schedule="cosine", weighting="elbo", label_drop=0.1)
    c.data = dict(name="tree", side=4, vocabulary=16, classes=4)
    c.optim = dict(schedule="cosine", warmup=25, ema=0.95)
    c.train = dict(steps=150, batch=32, log_every=5)
    c.eval = dict(examples=512, batch=128, every=150)
    c.sample = dict(n=36, options=dict(steps=8))
    return c


def sweep():
    trials = [("standard", 0, k) for k in range(-9, -2)] + [("mup", seed, k) for seed in range(3) for k in range(-9, -2)]
    for width in (32, 64, 128, 256):  # one compile each
        for rule, seed, k in trials:
            yield {"model.width": width, "parametrization.name": rule, "optim.lr": 2.0**k, "seed": seed}
