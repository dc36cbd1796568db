"""Does the learning rate of DiT-XL/2's proxies, 2 to 8 heads wide, hold for DiT-XL/2 itself?

The sizes and recipe of Zheng et al. (arXiv 2505.15270, DiT/train_mup.py): width 1152 of 16 heads of 72 and depth 28, base 4 heads, ImageNet at 256
pixels as latents of a VAE, batch 256, constant learning rates 2^-9 to 2^-13, no warm-up, no decay of weights, gates that do not start at zero. 200k
steps for proxies as there; DiT-XL/2 2.4M. Latents by `lab data encode`. Meant for v5e:16x16 or v5p:4x8x8, planned by `lab plan FILE --topology NAME`.
"""

from ml_collections import ConfigDict

TOPOLOGIES = ("v5e:16x16", "v6e:16x16", "v5p:4x4x8")


def get_config():
    c = ConfigDict()
    c.model = dict(name="dit", width=288, depth=28, head_dim=72, mlp_ratio=4, patch=2, qk_norm=False, zero_gates=False)
    c.base = dict(width=288)
    c.objective = dict(name="diffusion", schedule="linear", prediction="eps", learned_variance=True, label_drop=0.1)
    c.data = dict(name="encoded", path="imagenet256-latents", shapes=dict(image=(32, 32, 4)), classes=1000)
    c.optim = dict(lr=2.0**-10, b1=0.9, b2=0.999, schedule="constant", warmup=0, ema=0.9999)
    c.train = dict(steps=200_000, batch=256, log_every=100, dtype="bfloat16", precision="default")
    c.eval = dict(examples=4096, batch=256, every=10_000)
    c.run = dict(chunk=1)
    return c


def sweep():
    for width in (144, 288, 576):
        for k in range(-13, -8):
            yield {"model.width": width, "optim.lr": 2.0**k}
    yield {"model.width": 1152, "train.steps": 2_400_000}
