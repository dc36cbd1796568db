"""How well do a diffusion, an autoregressive and a masked model paint what a caption asks for?

Scenes of one object at 16 pixels, 36 captions such as 'a red circle', judged by an exact oracle; one model of each kind, each trained on
images or on palette tokens of the same scenes. Seen: 0.88 of objects right in each (chance 0.03), about 4, 6 and 3 minutes on 2 cores. One arm alone:
`./launch.sh run experiments/text_shapes.py --config.model.name=pixart`.
"""

from ml_collections import ConfigDict

SIZE = dict(width=96, head_dim=16, mlp_ratio=2, qk_norm=True, text_depth=1)
FLOW = dict(name="flow", time="logit_normal", label_drop=0.1)
TOKENS = dict(name="next_token", label_drop=0.1)
MASKS = dict(name="unmask", schedule="cosine", weighting="plain", label_drop=0.1)
ARMS = {  # model, objective, steps, guidance
    "pixart": (dict(name="pixart", depth=3, patch=2, zero_gates=True, **SIZE), FLOW, 2500, 3.0),
    "decoder": (dict(name="decoder", depth=3, rope="grid", **SIZE), TOKENS, 1000, 1.5),
    "masked": (dict(name="meissonic", depth=1, single=2, compress=2, zero_gates=True, **SIZE), MASKS, 2500, 1.5),
}


def get_config():
    c = ConfigDict()
    c.base = dict(width=96)
    c.model, c.objective = ARMS["pixart"][:2]
    c.data = dict(name="shapes", size=16, grid=1, density="medium", extras=("text", "tokens"), examples=65536)
    c.optim = dict(schedule="cosine", warmup=100, ema=0.99, lr=2.0**-8)
    c.train = dict(batch=32, log_every=50)
    c.eval = dict(examples=256, batch=128, every=500)
    c.sample = dict(n=36)
    c.judge = dict(names=("oracle",), every=500, n=512)
    return c


def sweep():
    for arm, (model, objective, steps, guidance) in ARMS.items():
        yield {"arm": arm, "model": model, "objective": objective, "train.steps": steps, "sample.options": dict(guidance=guidance)}
