"""How far does a best learning rate move over 16x in width, with intervals?

Icons at 16 pixels; learning rates sqrt(2) apart, widths 32 to 512, both parametrizations, 3 seeds: 450 trials, some hours on
2 cores. `./launch.sh run experiments/dit_width.py`; what it will cost here: `./launch.sh plan experiments/dit_width.py`.
"""

from ml_collections import ConfigDict


def get_config():
    c = ConfigDict()
    c.model = dict(name="dit", width=32, depth=2, head_dim=16, mlp_ratio=4, patch=4, qk_norm=False, zero_gates=True)
    c.base = dict(width=32)
    c.objective = dict(name="flow", time="logit_normal", label_drop=0.1)
    c.data = dict(name="icons", size=16, sets=("fontawesome", "material", "octicons", "simple"))
    c.optim = dict(schedule="cosine", warmup=20, ema=0.97)
    c.train = dict(steps=300, batch=32, log_every=10)
    c.eval = dict(examples=512, batch=128, every=150)
    c.sample = dict(n=32, options=dict(steps=25, guidance=2.0, method="heun"))
    return c


def sweep():
    for width in (32, 64, 128, 256, 512):
        for rule, low, n in (("standard", -10.5, 15), ("mup", -8.5, 15)):
            for seed in range(3):
                for k in range(n):
                    yield {"model.width": width, "parametrization.name": rule, "optim.lr": 2.0 ** (low + k / 2), "seed": seed}
