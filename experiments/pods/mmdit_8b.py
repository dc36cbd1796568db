"""What does an MMDiT of 8B parameters reach at the learning rate of a proxy of the same depth?

Sizes of Stable Diffusion 3's largest model (arXiv 2403.03206, section 5.3): 38 dual blocks of width 2432, 38 heads of 64, RMSNorm of queries and keys,
latents of 16 channels at 256 pixels, 154 words (77 of CLIP, 77 of T5) of 4096 features and one pooled vector of 2048; rectified flow with
logit-normal times, batch 4096 for 500k steps. The width is carried by muP from a proxy of 8 heads. Meant for v5p:8x8x8 or v6e:16x16.
"""

from ml_collections import ConfigDict

TOPOLOGIES = ("v5e:16x16", "v6e:16x16", "v5p:8x8x8", "2 v5p:8x8x8")


def get_config():
    c = ConfigDict()
    c.model = dict(name="mmdit", width=512, depth=38, head_dim=64, mlp_ratio=4, patch=2, qk_norm=True, zero_gates=True)
    c.base = dict(width=512)
    c.objective = dict(name="flow", time="logit_normal", label_drop=0.1)
    shapes = dict(image=(32, 32, 16), text=(154, 4096), pooled=(2048,))
    c.data = dict(name="encoded", path="pretraining256-latents", shapes=shapes)
    c.optim = dict(lr=2.0**-10, b1=0.9, b2=0.999, clip=1.0, schedule="constant", warmup=1000, ema=0.9999)
    c.train = dict(steps=500_000, batch=4096, log_every=100, dtype="bfloat16", precision="default")
    c.eval = dict(examples=8192, batch=1024, every=25_000)
    c.run = dict(chunk=1)
    return c


def sweep():
    for k in range(-13, -8):
        yield {"optim.lr": 2.0**k, "train.steps": 30_000}
    yield {"model.width": 2432}
