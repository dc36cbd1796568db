"""What does PixArt-alpha of 0.61B parameters reach at the learning rate of its proxy of 0.04B?

The sizes and recipe of Zheng et al. (arXiv 2505.15270, PixArt-alpha/): 4 heads of 72 at the base and 16 in the end, depth 28, features of 120 words
by Flan-T5-XXL (4096), SA-1B at 256 pixels as latents; proxy 5 epochs at batch 1408, target 30 at 5632; AdamW with epsilon 1e-10, decay 0.03, gradients
clipped at 0.01, 1000 steps of warm-up. Latents and features by `lab data encode`. Meant for v5p:8x8x8, v5e:16x16 or v6e:16x16.
"""

from ml_collections import ConfigDict

TOPOLOGIES = ("v5e:16x16", "v6e:16x16", "v5p:8x8x8")


def get_config():
    c = ConfigDict()
    c.model = dict(name="pixart", width=288, depth=28, head_dim=72, mlp_ratio=4, patch=2, qk_norm=False, zero_gates=True)
    c.base = dict(width=288)
    c.objective = dict(name="diffusion", schedule="linear", prediction="eps", learned_variance=True, label_drop=0.1)
    c.data = dict(name="encoded", path="sam256-latents", shapes=dict(image=(32, 32, 4), text=(120, 4096)))
    c.optim = dict(lr=2.0**-10, weight_decay=0.03, b1=0.9, b2=0.999, eps=1e-10, clip=0.01, schedule="constant", warmup=1000, ema=0.9999)
    c.train = dict(steps=39_000, batch=1408, log_every=100, dtype="bfloat16", precision="default")
    c.eval = dict(examples=4096, batch=512, every=5000)
    c.run = dict(chunk=1)
    return c


def sweep():
    for k in range(-13, -8):
        yield {"optim.lr": 2.0**k}
    yield {"model.width": 1152, "train.batch": 5632, "train.steps": 59_000}
