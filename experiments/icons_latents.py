"""Can a diffusion transformer draw the icon of a caption in the latents of a KL autoencoder?

The set is that of experiments/icons_tokenizers.py with `--config.model.name=kl`, encoded `--to icons-kl`. First
`lab run experiments/icons_judge.py`, which judges; then such as
`lab sample runs/icons_latents --prompt "arrow right" --prompt heart`.
"""

from ml_collections import ConfigDict


def get_config():
    c = ConfigDict()
    c.model = dict(
        name="pixart",
        width=128,
        depth=4,
        head_dim=16,
        mlp_ratio=3,
        patch=1,
        qk_norm=True,
        zero_gates=True,
        text_depth=1,
    )
    c.base = dict(width=128)
    c.objective = dict(name="flow", time="logit_normal", label_drop=0.1)
    latents = dict(name="encoded", path="icons-kl", shapes=dict(image=(8, 8, 4)), classes=1)
    c.data = dict(name="text", source=latents, tokens="words", words=1024, length=8)
    c.optim = dict(schedule="cosine", warmup=100, lr=2.0**-8)
    c.train = dict(steps=2500, batch=32, log_every=50)
    c.eval = dict(examples=512, batch=128, every=500)
    c.sample = dict(n=16, options=dict(guidance=3.0, steps=25))
    c.judge = dict(names=("learned",), n=256, options=dict(learned=dict(study="runs/icons_judge")))  # of icons_judge.py
    return c
