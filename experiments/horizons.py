"""How does loss fall with size and with data, where each size trains one trunk and five decays?

Four widths, five horizons a factor of 2 apart: 20 trials for 61% of their FLOPs (run.trunk). `./launch.sh plan experiments/horizons.py` says what it takes here,
`./launch.sh run experiments/horizons.py`, then `./launch.sh fit runs/horizons`.
"""

from ml_collections import ConfigDict


def get_config():
    c = ConfigDict()
    c.model = dict(name="dit", width=32, depth=2, head_dim=16, mlp_ratio=2, patch=2, qk_norm=False, zero_gates=True)
    c.base = dict(width=32)
    c.objective = dict(name="flow", time="logit_normal", label_drop=0.1)
    c.data = dict(name="mixture", size=8, channels=1)
    c.optim = dict(schedule="wsd", warmup=20, decay=0.2, ema=0.95)
    c.train = dict(batch=32, log_every=20)
    c.eval = dict(examples=512, batch=128, every=500)
    c.run = dict(trunk=True)
    return c


def sweep():
    for width in (32, 48, 64, 96):
        for steps in (100, 200, 400, 800, 1600):
            yield {"model.width": width, "train.steps": steps}
