"""How good a picture does each family paint for the same training FLOPs?

Scenes of one object at 8 pixels and their captions; six families, three budgets (the same for all), three learning rates each, one seed.
Losses of different kinds are drawn apart; what they share is the oracle's share of right objects (chance 1/36).
"""

from ml_collections import ConfigDict

SIZE = dict(head_dim=16, mlp_ratio=2, qk_norm=True)
PICTURE = dict(depth=3, patch=2, **SIZE)
FLOW = dict(name="flow", time="logit_normal", label_drop=0.1)
TOKENS, MASKS = dict(name="next_token", label_drop=0.1), dict(name="unmask", schedule="cosine", weighting="plain", label_drop=0.1)
RUNGS = {32: 0.25e12, 64: 1e12, 96: 2.25e12}  # width: training FLOPs
ARMS = {  # model, objective, training MFLOPs an example at each width (`lab plan` tells them)
    "dit": (dict(name="dit", zero_gates=True, **PICTURE), FLOW, (2.86, 10.70, 23.51)),
    "uvit": (dict(name="uvit", time_mlp=False, final_conv=False, **PICTURE, text_depth=1), FLOW, (3.87, 14.42, 31.66)),
    "pixart": (dict(name="pixart", zero_gates=True, **PICTURE, text_depth=1), FLOW, (3.70, 13.90, 30.60)),
    "mmdit": (dict(name="mmdit", zero_gates=True, single=1, **PICTURE | dict(depth=2), text_depth=1), FLOW, (3.66, 13.61, 29.85)),
    "decoder": (dict(name="decoder", depth=3, rope="grid", **SIZE, text_depth=1), TOKENS, (17.46, 59.54, 126.25)),
    "masked": (dict(name="masked", depth=3, **SIZE, text_depth=1), MASKS, (15.72, 52.28, 109.68)),
}


def get_config():
    c = ConfigDict(dict(base=dict(width=32)))
    c.model, c.objective, _ = ARMS["dit"]
    c.data = dict(name="shapes", size=8, grid=1, density="medium", extras=("text", "tokens"), examples=65536)
    c.optim = dict(schedule="cosine", warmup=50, ema=0.98, clip=1.0)
    c.train, c.eval = dict(batch=32, log_every=20), dict(examples=512, batch=128, every=100000)
    c.sample = dict(n=36, options=dict(guidance=2.0))
    c.judge = dict(names=("oracle",), n=512)
    return c


def sweep():
    for arm, (model, objective, mflops) in ARMS.items():
        for (width, budget), each in zip(RUNGS.items(), mflops, strict=True):
            steps = round(budget / (1e6 * each * 32))
            for k in (-7, -6, -5):
                yield {"arm": arm, "model": {**model, "width": width}, "objective": objective, "train.steps": steps, "optim.lr": 2.0**k}
