"""Which rule transfers the best learning rate of a DiT, over 8x in width and over 4x in depth?

Real icons at 16 pixels, learning rates a factor of 2 apart. Widths 32 to 256 at depth 2 under five rules with four seeds, depths 2 to 8 at width 32 under three with eight. At the base (width 32,
depth 2) all rules but the published one are one model, so each is tuned there on its own grid. `./launch.sh run experiments/parametrizations.py`, then `./launch.sh transfer runs/parametrizations` for
width and with `--over model.depth` for depth; experiments/parametrizations_decoder.py asks the same of a decoder. About 18 minutes on 2 cores. What was seen: docs/parametrizations.md.
"""

from ml_collections import ConfigDict

# first and last log2 of the learning rates
WIDE = {"standard": (-10, -3), "standard_embed": (-10, -3), "published_xavier": (-10, -3), "ntk": (-9, -3), "mup": (-8, -3)}
DEEP = {"standard": (-8, -3), "depth_mup": (-8, -3), "mup": (-8, -3)}


def get_config():
    c = ConfigDict()
    c.model = dict(name="dit", width=32, depth=2, head_dim=16, mlp_ratio=2, patch=4, qk_norm=False, zero_gates=True)
    c.base = dict(width=32, depth=2)
    c.objective = dict(name="flow", time="logit_normal", label_drop=0.1)
    c.data = dict(name="icons", size=16, sets=("fontawesome", "material", "octicons", "simple"))
    c.optim = dict(schedule="cosine", warmup=25, ema=0.95)
    c.train = dict(steps=150, batch=16, log_every=5)
    c.eval = dict(examples=512, batch=128, every=150)
    c.sample = dict(n=0)
    return c


def sweep():
    cells = [(width, 2, WIDE, 4) for width in (32, 64, 128, 256)] + [(32, depth, DEEP, 8) for depth in (2, 4, 8)]
    for width, depth, rules, seeds in cells:  # one compile each
        for rule, (low, high) in rules.items():
            for k in range(low, high + 1):
                for seed in range(seeds):
                    yield {"model.width": width, "model.depth": depth, "parametrization.name": rule, "optim.lr": 2.0**k, "seed": seed}
