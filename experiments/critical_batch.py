"""What is the critical batch size of an autoregressive decoder?

Grids of 16 tokens from the world `causal`, at a constant learning rate with averaged weights, so that no schedule depends on how long a run is; 6 batches, 5 rates a factor of
2 apart around one that goes as sqrt(batch), 3 seeds. About 4 minutes on 2 cores: `./launch.sh run experiments/critical_batch.py`, then `./launch.sh batch runs/critical_batch`.
"""

from ml_collections import ConfigDict

STEPS = {8: 1400, 16: 800, 32: 450, 64: 260, 128: 170, 256: 130}


def get_config():
    c = ConfigDict()
    c.model = dict(name="decoder", width=32, depth=2, head_dim=16, mlp_ratio=2, kv_group=1, qk_norm=True, rope="grid")
    c.base = dict(width=32)
    c.objective = dict(name="next_token", label_drop=0.0)
    c.data = dict(name="causal", side=4, vocabulary=16, classes=4)
    c.optim = dict(schedule="constant")
    c.train = dict(log_every=100)
    c.eval = dict(examples=256, batch=256, metric="eval_ema")
    return c


def sweep():
    for batch, steps in STEPS.items():  # warm-up, average and evaluations are shares of a run
        run = {
            "train.batch": batch,
            "train.steps": steps,
            "eval.every": steps // 30,
            "optim.warmup": steps // 20,
            "optim.ema": 1 - 20 / steps,
        }
        for seed in range(3):
            for k in range(-9, -4):
                yield {**run, "seed": seed, "optim.lr": 2.0**k * (batch / 8) ** 0.5}
