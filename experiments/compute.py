"""How does the loss of a flow-matching DiT fall with training FLOPs, what will larger budgets bring, and how much compute do gates that start at zero save?

Real icons at 16 pixels; two arms (adaLN-zero, and gates drawn as all weights are), eight budgets a factor of 2 apart, three sizes each, two seeds, under muP. The learning rate is that
which is best at width 32 for 150 and for 1,200 steps of 16 alike. `./launch.sh run experiments/compute.py`, then `./launch.sh fit runs/compute`, `./launch.sh forecast runs/compute --flops 1e13` and
`./launch.sh compare runs/compute --base "drawn gates"`. About 10 minutes on 2 cores. What was seen: docs/laws.md.
"""

from ml_collections import ConfigDict

MFLOPS = {24: 1.158, 32: 1.96, 48: 4.189, 64: 7.25, 96: 15.87}  # width: of a training example (`lab plan` tells them)
LEAST = 5e9  # FLOPs of the smallest budget
SIZES = ((24, 32, 48), (24, 32, 48), (24, 32, 48), (32, 48, 64), (32, 48, 64), (32, 48, 64), (48, 64, 96), (48, 64, 96))


def get_config():
    c = ConfigDict()
    c.model = dict(name="dit", width=32, depth=2, head_dim=8, mlp_ratio=2, patch=4, qk_norm=False, zero_gates=True)
    c.base = dict(width=32)
    c.objective = dict(name="flow", time="logit_normal", label_drop=0.1)
    c.data = dict(name="icons", size=16, sets=("fontawesome", "material", "octicons", "simple"), views=8)
    c.optim = dict(lr=2.0**-6, schedule="cosine", ema=0.95)
    c.transfer = dict(batch_rule="sqrt", base_batch=16)
    c.train = dict(batch=8, log_every=25)
    c.eval = dict(examples=1024, batch=128, every=100000)
    c.sample = dict(n=0)
    return c


def sweep():
    for arm, zero in (("adaLN-zero", True), ("drawn gates", False)):
        for k, widths in enumerate(SIZES):
            for width in widths:
                steps = round(LEAST * 2**k / (1e6 * MFLOPS[width] * 8))
                for seed in range(2):
                    yield {
                        "arm": arm,
                        "model.zero_gates": zero,
                        "model.width": width,
                        "train.steps": steps,
                        "optim.warmup": steps // 10,
                        "seed": seed,
                    }
