"""How does the loss of an autoregressive decoder on real icons fall with training FLOPs, and what will larger budgets bring?

Icons at 8 pixels as 64 tokens of eight greys; eight budgets a factor of 2 apart, three sizes each, two seeds, under muP. `./launch.sh run experiments/compute_decoder.py`, then
`./launch.sh fit runs/compute_decoder`. About 8 minutes on 2 cores. What was seen: docs/laws.md.
"""

from ml_collections import ConfigDict

MFLOPS = {8: 1.309, 16: 3.6, 24: 6.875, 32: 11.133, 48: 22.598, 64: 37.994}  # width: of a training example (`lab plan` tells them)
LEAST = 5e9  # FLOPs of the smallest budget
SIZES = ((8, 16, 24), (8, 16, 24), (16, 24, 32), (16, 24, 32), (16, 24, 32), (24, 32, 48), (24, 32, 48), (32, 48, 64))


def get_config():
    c = ConfigDict()
    c.model = dict(name="decoder", width=32, depth=2, head_dim=8, mlp_ratio=2, qk_norm=True, rope="grid")
    c.base = dict(width=32)
    c.objective = dict(name="next_token", label_drop=0.1)
    c.data = dict(name="icons", size=8, sets=("fontawesome", "material", "octicons", "simple"), extras=("tokens",), levels=8)
    c.optim = dict(lr=2.0**-6, schedule="cosine", warmup=25, ema=0.95)
    c.train = dict(batch=8, log_every=25)
    c.eval = dict(examples=1024, batch=128, every=100000)
    c.sample = dict(n=0)
    return c


def sweep():
    for k, widths in enumerate(SIZES):
        for width in widths:
            steps = round(LEAST * 2**k / (1e6 * MFLOPS[width] * 8))
            for seed in range(2):
                yield {"model.width": width, "train.steps": steps, "seed": seed}
