"""Judges of drawn scenes, of one size whatever they judge: what class does a picture show, and which caption is its own?"""

from ml_collections import ConfigDict

TOWER = dict(width=64, depth=4, head_dim=16, mlp_ratio=4, patch=2, qk_norm=True)
CLASSIFIER = dict(name="classifier", **TOWER)
TOWERS = dict(name="two_tower", text_depth=1, **TOWER)


def get_config():
    c = ConfigDict()
    c.model, c.objective = CLASSIFIER, dict(name="classify")
    c.base = dict(width=64)
    c.data = dict(name="shapes", size=16, grid=1, extras=("text",), density="medium")
    c.optim = dict(lr=2.0**-8, schedule="cosine", warmup=50)
    c.train = dict(steps=1500, batch=64, log_every=50)
    c.eval = dict(examples=1024, batch=128, every=250)
    c.sample = dict(n=0)
    c.judge = dict(names=("wrong",))  # the error on real pictures that the judges themselves make
    return c


def sweep():
    yield {"arm": "classifier"}
    yield {"arm": "two_tower", "model": TOWERS, "objective": dict(name="contrast")}
