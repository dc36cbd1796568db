"""Does the best learning rate of a flow-matching DiT stay put as the model grows 8x wider?

Real icons at 16 pixels; 4 widths x 2 parametrizations x 7 learning rates (9 at the base), one seed. 4 to 8 minutes on 2 cores:
`./launch.sh run experiments/quickstart.py`; what it will cost here: `lab plan experiments/quickstart.py`.
"""

from ml_collections import ConfigDict


def get_config():
    c = ConfigDict()
    c.model = dict(name="dit", width=32, depth=2, head_dim=16, mlp_ratio=2, patch=4, qk_norm=False, zero_gates=True)
    c.base = dict(width=32)
    c.objective = dict(name="flow", time="logit_normal", label_drop=0.1)
    c.data = dict(name="icons", size=16, sets=("fontawesome", "material", "octicons", "simple"))
    c.optim = dict(schedule="cosine", warmup=30, ema=0.95)
    c.train = dict(steps=180, batch=32, log_every=5)
    c.eval = dict(examples=512, batch=128, every=180)
    c.sample = dict(n=32, options=dict(steps=25, guidance=2.0, method="heun"))
    return c


def sweep():
    for width in (32, 64, 128, 256):  # one compile each
        for rule, exponents in (("standard", range(-10, -3)), ("mup", range(-8, -1))):
            for k in exponents if width > 32 else range(-10, -1):  # at the base both rules are one model, so they have one grid there
                yield {"model.width": width, "parametrization.name": rule, "optim.lr": 2.0**k}
