"""Which of four hyperparameters of a small DiT's optimizer matter, and what are their best values for a large one?

Icons at 16 pixels; 64 points spread over learning rate, second beta, weight decay and clipping, halved twice; the best six again on two further seeds.
`./launch.sh run experiments/tuning.py`, then `./launch.sh transfer runs/tuning --to model.width=256`; experiments/tuned.py holds the best
against published defaults. docs/tuning.md says how to read it.
"""

from ml_collections import ConfigDict

from lab import search

SPACE = {
    "optim.lr": search.log(2**-10, 2**-3),
    "optim.b2": search.choice(0.9, 0.95, 0.99, 0.999),
    "optim.weight_decay": search.log(1e-4, 1.0),
    "optim.clip": search.log(0.1, 10.0),
}


def get_config():
    c = ConfigDict()
    c.model = dict(name="dit", width=32, depth=2, head_dim=16, mlp_ratio=2, patch=4, qk_norm=False, zero_gates=True)
    c.base = dict(width=32)
    c.objective = dict(name="flow", time="logit_normal", label_drop=0.1)
    c.data = dict(name="icons", size=16, sets=("fontawesome", "material", "octicons", "simple"))
    c.optim = dict(schedule="cosine", warmup=20, ema=0.98)
    c.train = dict(steps=800, batch=16, log_every=10)
    c.eval = dict(examples=512, batch=128, every=800)
    c.sample = dict(n=32, options=dict(steps=25, guidance=2.0, method="heun"))
    c.run = dict(halving=dict(at=(0.25, 0.5), keep=1 / 3))
    return c


def sweep(history):
    yield from search.random(SPACE, n=64)
    yield from search.again(history, k=6, seeds=(1, 2))
