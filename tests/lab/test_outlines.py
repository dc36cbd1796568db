"""Outlines with text from the experiment to samples that are pictures, and what the judge says of them."""

import numpy as np

from lab import cli, record

EXPERIMENT = '''"""Does it run?"""
from ml_collections import ConfigDict


def get_config():
    c = ConfigDict(dict(base=dict(width=32)))
    c.model = dict(name="decoder", width=32, depth=1, head_dim=16, mlp_ratio=1, qk_norm=False, rope="line")
    c.objective = dict(name="infill", label_drop=0.1)
    icons = dict(name="strokes", sets=("octicons",), grid=16, length=48, infill=True)
    c.data = dict(name="text", source=icons, tokens="words", words=32, length=5)
    c.optim = dict(lr=2.0**-6)
    c.train = dict(steps=3, batch=8, log_every=1)
    c.eval = dict(examples=8, batch=8, every=3)
    c.sample = dict(n=4)
    c.judge = dict(names=("strokes",), n=6, options=dict(strokes=dict(infills=5)))
    c.run = dict(data_dir={data_dir!r})
    return c
'''


def lab(*argv):
    return cli.main([str(a) for a in argv])


def test_a_study_of_outlines_draws_and_judges_them(tmp_path):
    (tmp_path / "mine.py").write_text(EXPERIMENT.format(data_dir=str(tmp_path / "data")))
    assert lab("run", tmp_path / "mine.py", "--workdir", tmp_path / "runs") == 0
    folder = tmp_path / "runs" / "mine"
    (row,) = record.finals(folder).to_pylist()
    assert row["strokes_valid_ceiling"] == row["strokes_infill_ceiling"] == 1
    assert 0 <= row["strokes_infill"] <= row["strokes_infill_high"] < 1
    assert row["strokes_bits_low"] < row["strokes_bits"] < row["strokes_bits_high"]
    assert 4 < row["strokes_nats"] < np.log(264) + 1  # three steps on 264 tokens
    (samples,) = folder.glob("*/samples.npz")
    with np.load(samples) as z:
        made, real = z["samples"], z["real"]
    assert made.shape == real.shape == (4, 64, 64, 1)
    assert {0, 255} <= set(np.unique(real))
    assert {128, 208} == set(np.unique(made))  # what a model of three steps draws is no outline
    assert lab("sample", folder, "--prompt", "arrow", "--out", tmp_path / "arrow.png") == 0
    assert (tmp_path / "arrow.png").stat().st_size > 1000
