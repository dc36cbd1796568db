"""How far does an autoregressive decoder of 3B parameters go on the tokens of ImageNet, at its proxy's learning rate?

Sizes of LlamaGen's largest class-conditional model (arXiv 2406.06525, table 1: LlamaGen-3B, 24 layers, width 3200, 32 heads of 100; heads of 128 here, so
25 of them) on 24 x 24 tokens of a codebook of 16384, batch 1024 and 300 epochs; betas 0.9 and 0.95, decay 0.05, clip 1 as there. Tokens by
`lab data encode`. Meant for v5p:4x8x8, v6e:16x16 or two slices of v5e:16x16.
"""

from ml_collections import ConfigDict

TOPOLOGIES = ("v5e:16x16", "v6e:16x16", "v5p:4x8x8", "2 v5e:16x16")


def get_config():
    c = ConfigDict()
    c.model = dict(name="decoder", width=256, depth=24, head_dim=128, mlp_ratio=3, kv_group=1, rope="grid", qk_norm=True)
    c.base = dict(width=256)
    c.objective = dict(name="next_token", label_drop=0.1)
    c.data = dict(name="encoded", path="imagenet384-tokens", shapes=dict(tokens=(24, 24)), classes=1000, vocabulary=16384)
    c.optim = dict(lr=2.0**-8, weight_decay=0.05, b1=0.9, b2=0.95, clip=1.0, schedule="cosine", warmup=5000, ema=0.9999)
    c.train = dict(steps=375_000, batch=1024, log_every=100, dtype="bfloat16", precision="default")
    c.eval = dict(examples=4096, batch=512, every=10_000)
    c.run = dict(chunk=1)
    return c


def sweep():
    for k in range(-11, -6):
        yield {"optim.lr": 2.0**k, "train.steps": 20_000}
    yield {"model.width": 3200}
