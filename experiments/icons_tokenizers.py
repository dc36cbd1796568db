"""How well do 64 tokens, or 64 x 4 latents, give back an icon of 32 pixels?

One alone, and the set that it makes for icons_tokens.py and icons_latents.py:
`./launch.sh run experiments/icons_tokenizers.py --config.model.name=vq --workdir runs/vq`
`./launch.sh data encode icons size=32 views=2 'sets=("octicons",)' --with runs/vq/icons_tokenizers --to icons-vq`
"""

from ml_collections import ConfigDict

SIZE = dict(width=96, depth=2, head_dim=16, mlp_ratio=2, patch=4, qk_norm=True)
ARMS = {  # model, weight of its own cost
    "vq": (dict(name="vq", codes=256, code=8, decay=0.98, **SIZE), 0.25),
    "fsq": (dict(name="fsq", levels=(8, 6, 5), **SIZE), 0.0),
    "kl": (dict(name="kl", code=4, **SIZE), 0.001),
}


def get_config():
    c = ConfigDict()
    c.model = ARMS["vq"][0]
    c.base = dict(width=96)
    c.objective = dict(name="reconstruct", error="mse", weight=0.25)
    c.data = dict(name="icons", size=32, sets=("fontawesome", "octicons"), views=2)
    c.optim = dict(schedule="cosine", warmup=100, lr=2.0**-8)
    c.train = dict(steps=1500, batch=32, log_every=50)
    c.eval = dict(examples=512, batch=128, every=500)
    c.judge = dict(names=("rate",), n=512)
    return c


def sweep():
    for arm, (model, weight) in ARMS.items():
        yield {"arm": arm, "model": model, "objective": dict(name="reconstruct", error="mse", weight=weight)}
