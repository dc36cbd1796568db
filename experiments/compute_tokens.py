"""How do the losses of a decoder and of a masked transformer fall with training FLOPs, and what will larger budgets bring?

Scenes of one object as 64 palette tokens; eight budgets a factor of 2 apart, three sizes each, two seeds, under muP with a learning rate a family that is best at width 32 for 150 and for
1,200 steps within a quarter of an octave. `./launch.sh run experiments/compute_tokens.py`, then `./launch.sh fit runs/compute_tokens`. About 20 minutes on 2 cores. What was seen: docs/laws.md.
"""

from ml_collections import ConfigDict

WIDTHS = (8, 16, 24, 32, 48, 64)
LEAST = 5e9  # FLOPs of the smallest budget
SIZES = ((8, 16, 24), (8, 16, 24), (16, 24, 32), (16, 24, 32), (16, 24, 32), (24, 32, 48), (24, 32, 48), (32, 48, 64))
SIZE = dict(depth=2, head_dim=8, mlp_ratio=2, qk_norm=True)
ARMS = {  # model, objective, learning rate, training MFLOPs of an example by width at WIDTHS (`lab plan` tells them)
    "decoder": (
        dict(name="decoder", rope="grid", **SIZE),
        dict(name="next_token", label_drop=0.1),
        2.0**-6,
        (1.309, 3.6, 6.875, 11.133, 22.598, 37.994),
    ),
    "masked": (
        dict(name="masked", **SIZE),
        dict(name="unmask", schedule="cosine", weighting="elbo", label_drop=0.1),
        2.0**-7,
        (1.266, 3.38, 6.341, 10.151, 20.313, 33.867),
    ),
}


def get_config():
    c = ConfigDict(dict(base=dict(width=32)))
    c.model, c.objective = dict(width=32, **ARMS["decoder"][0]), ARMS["decoder"][1]
    c.data = dict(name="shapes", size=8, grid=1, density="medium", extras=("tokens",), examples=65536)
    c.optim = dict(schedule="cosine", warmup=25, ema=0.95)
    c.train = dict(batch=8, log_every=25)
    c.eval = dict(examples=1024, batch=128, every=100000)
    c.sample = dict(n=0)
    return c


def sweep():
    for arm, (model, objective, lr, mflops) in ARMS.items():
        for k, widths in enumerate(SIZES):
            for width in widths:
                steps = round(LEAST * 2**k / (1e6 * mflops[WIDTHS.index(width)] * 8))
                of = {"model": {**model, "width": width}, "objective": objective, "optim.lr": lr, "train.steps": steps}
                for seed in range(2):
                    yield {"arm": arm, "seed": seed, **of}
