"""How do the losses of a decoder and of a masked transformer on real icons fall with training FLOPs, and what will larger budgets bring?

Icons at 8 pixels as 64 tokens of eight greys, in all symmetries of the square so that hardly any repeats; eight budgets a factor of 2 apart, three sizes each, two seeds, under muP with a learning rate
a family. Batches of two, and rates that fall with the horizon, as in compute.py. `./launch.sh run experiments/compute_tokens.py`, then `./launch.sh fit runs/compute_tokens`. About 20 minutes on 2 cores.
What was seen: docs/laws.md.
"""

from ml_collections import ConfigDict

SIZE = dict(width=32, depth=2, head_dim=8, mlp_ratio=2, qk_norm=True)
MODEL = {"decoder": dict(name="decoder", rope="grid", **SIZE), "masked": dict(name="masked", **SIZE)}
MASKS = dict(name="unmask", schedule="cosine", weighting="elbo", label_drop=0.1)
OBJECTIVE = {"decoder": dict(name="next_token", label_drop=0.1), "masked": MASKS}
RATE = {"decoder": 2.0**-6, "masked": 2.0**-7}
WIDTHS = (8, 16, 24, 32, 48)
MFLOPS = {
    "decoder": (1.309, 3.6, 6.875, 11.133, 22.598),
    "masked": (1.266, 3.38, 6.341, 10.151, 20.313),
}  # an example's, by width
LEAST = 2.5e9  # FLOPs of the smallest budget
SIZES = ((8, 16, 24), (8, 16, 24), (8, 16, 24), (16, 24, 32), (16, 24, 32), (16, 24, 32), (24, 32, 48), (24, 32, 48))


def get_config():
    c = ConfigDict(dict(base=dict(width=32), model=MODEL["decoder"], objective=OBJECTIVE["decoder"]))
    c.data = dict(name="icons", size=8, sets=("fontawesome", "material", "octicons", "simple"), extras=("tokens",), levels=8, views=8)
    c.optim = dict(lr=2.0**-6, schedule="cosine", ema=0.95)
    c.transfer = dict(batch_rule="sqrt", base_batch=8, horizon_rule="power", base_steps=2000)
    c.train, c.eval = dict(batch=2, log_every=100), dict(examples=1024, batch=128, every=100000)
    c.sample = dict(n=0)
    return c


def sweep():
    for arm, lr in RATE.items():
        for k, widths in enumerate(SIZES):
            for w in widths:
                of = {"arm": arm, "model": MODEL[arm] | {"width": w}, "objective": OBJECTIVE[arm], "optim.lr": lr}
                steps = round(LEAST * 2**k / (1e6 * MFLOPS[arm][WIDTHS.index(w)] * 2))
                yield from ({**of, "train.steps": steps, "optim.warmup": steps // 10, "seed": seed} for seed in range(2))
