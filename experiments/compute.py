"""How does the loss of a flow-matching DiT fall with training FLOPs, and what will larger budgets bring?

Real icons at 16 pixels; eight budgets a factor of 2 apart, three sizes each, three seeds, under muP with the learning rate that is best at width 32 for 150 and for 1,200 steps alike.
`./launch.sh run experiments/compute.py`, then `./launch.sh fit runs/compute` and `./launch.sh forecast runs/compute --flops 1e13`. About 10 minutes on 2 cores. What was seen: docs/laws.md.
"""

from ml_collections import ConfigDict

MFLOPS = {16: 0.564, 32: 1.96, 48: 4.189, 64: 7.25, 96: 15.87, 128: 27.82}  # width: of a training example (`lab plan` tells them)
LEAST = 5e9  # FLOPs of the smallest budget
SIZES = ((16, 32, 48), (16, 32, 48), (16, 32, 48), (32, 48, 64), (32, 48, 64), (48, 64, 96), (48, 64, 96), (64, 96, 128))


def get_config():
    c = ConfigDict()
    c.model = dict(name="dit", width=32, depth=2, head_dim=16, mlp_ratio=2, patch=4, qk_norm=False, zero_gates=True)
    c.base = dict(width=32)
    c.objective = dict(name="flow", time="logit_normal", label_drop=0.1)
    c.data = dict(name="icons", size=16, sets=("fontawesome", "material", "octicons", "simple"))
    c.optim = dict(lr=2.0**-6, schedule="cosine", warmup=25, ema=0.95)
    c.train = dict(batch=16, log_every=25)
    c.eval = dict(examples=1024, batch=128, every=100000)
    c.sample = dict(n=0)
    return c


def sweep():
    for k, widths in enumerate(SIZES):
        for width in widths:
            steps = round(LEAST * 2**k / (1e6 * MFLOPS[width] * 16))
            for seed in range(3):
                yield {"model.width": width, "train.steps": steps, "seed": seed}
