"""Does a decoder draw vector icons that are grammatical, new and fit into a hole, from 4,100 icons and the words of their names?

IconShop (arXiv 2304.14400) in small: outlines as tokens, a point of a 25 x 25 lattice one token, names as text; of half of the examples a
span is moved to the end. `./launch.sh run experiments/strokes.py`; `lab sample runs/strokes --prompt "arrow left"`.
"""

from ml_collections import ConfigDict


def get_config():
    c = ConfigDict()
    c.model = dict(name="decoder", width=96, depth=3, head_dim=16, mlp_ratio=2, kv_group=1, qk_norm=True, rope="line", text_depth=1)
    c.base = dict(width=96)
    c.objective = dict(name="infill", share=0.5, label_drop=0.1)
    icons = dict(name="strokes", sets=("material",), grid=25, length=80, infill=True)
    c.data = dict(name="text", source=icons, tokens="words", words=512, length=6)
    c.optim = dict(schedule="cosine", warmup=100, ema=0.99, lr=2.0**-7)
    c.train = dict(steps=1500, batch=32, log_every=25)
    c.eval = dict(examples=256, batch=128, every=250)
    c.sample = dict(n=36, options=dict(top_p=0.9))
    c.judge = dict(names=("strokes",), every=0, n=256, options=dict(strokes=dict(infills=128)))
    return c
