"""Can a decoder and a masked model draw the icon of a caption as tokens of a learned tokenizer?

The set is that of experiments/icons_tokenizers.py; with FSQ `--config.data.source.path=icons-fsq --config.data.source.vocabulary=240`. First `lab run experiments/icons_judge.py`, which judges.
Then such as `lab sample runs/icons_tokens --prompt "arrow right" --prompt heart`.
"""

from ml_collections import ConfigDict

SIZE = dict(width=128, head_dim=16, mlp_ratio=3, qk_norm=True)
ARMS = {  # model, objective, options of its sampler
    "decoder": (
        dict(name="decoder", depth=4, rope="grid", text_depth=1, **SIZE),
        dict(name="next_token", label_drop=0.1),
        dict(guidance=2.0, top_p=0.95),
    ),
    "masked": (
        dict(name="masked", depth=4, text_depth=1, **SIZE),
        dict(name="unmask", schedule="cosine", weighting="plain", label_drop=0.1),
        dict(guidance=2.0, steps=16, temperature=2.0),
    ),
}


def get_config():
    c = ConfigDict()
    c.base = dict(width=128)
    c.model, c.objective = ARMS["decoder"][:2]
    tokens = dict(name="encoded", path="icons-vq", shapes=dict(tokens=(8, 8)), classes=1, vocabulary=256)
    c.data = dict(name="text", source=tokens, tokens="words", words=1024, length=8)
    c.optim = dict(schedule="cosine", warmup=100, lr=2.0**-8)
    c.train = dict(steps=1500, batch=32, log_every=50)
    c.eval = dict(examples=512, batch=128, every=500)
    c.judge = dict(names=("learned",), n=256, options=dict(learned=dict(study="runs/icons_judge")))  # of icons_judge.py
    return c


def sweep():
    for arm, (model, objective, options) in ARMS.items():
        yield {"arm": arm, "model": model, "objective": objective, "sample.options": options}
