"""What will an MMDiT of 18B parameters reach, whose hyperparameters were searched on one of 0.18B?

After Zheng et al. (arXiv 2505.15270, section 5.3): a proxy of width 512 for 30k steps and 80 draws, its best point carried to 18B for 200k. Depth and
width of the 18B model are not published; depth 19 gives the proxy its 0.18B parameters, and ten times its width a hundred times as many. Latents of 16
channels at 256 pixels, 154 words and a pooled vector as in SD3 (arXiv 2403.03206); batch 4096; gradients clipped at 1 as found there. Meant for v5p:8x8x8.
"""

from ml_collections import ConfigDict

TOPOLOGIES = ("v6e:16x16", "v5p:8x8x4", "v5p:8x8x8", "2 v5p:8x8x8")


def get_config():
    c = ConfigDict()
    c.model = dict(name="mmdit", width=512, depth=19, head_dim=128, mlp_ratio=4, patch=2, qk_norm=True, zero_gates=True)
    c.base = dict(width=512)
    c.objective = dict(name="flow", time="logit_normal", label_drop=0.1)
    shapes = dict(image=(32, 32, 16), text=(154, 4096), pooled=(2048,))
    c.data = dict(name="encoded", path="pretraining256-latents", shapes=shapes)
    c.optim = dict(lr=2.0**-10, b1=0.9, b2=0.999, clip=1.0, schedule="constant", warmup=1000, ema=0.9999)
    c.train = dict(steps=30_000, batch=4096, log_every=100, dtype="bfloat16", precision="default")
    c.eval = dict(examples=8192, batch=1024, every=10_000)
    c.run = dict(chunk=1)
    return c


def sweep():
    for k in range(-13, -8):
        yield {"optim.lr": 2.0**k}
    yield {"model.width": 5120, "train.steps": 200_000}
