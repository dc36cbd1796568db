"""A trained tokenizer makes an encoded set, models are trained on it, and their samples are pictures again."""

import json
import shutil

import bottlenecks
import numpy as np
import pytest

from lab import cli, coded, record
from lab.data import encoded
from lab.data.loader import open_source
from lab.errors import UserError

SOURCE = dict(name="shapes", size=8, grid=1, density="medium", extras=("caption",), examples=96)
GIVEN = ["shapes", "size=8", "grid=1", "density=medium", "extras=('caption',)", "examples=96"]
TOKENIZER = '''"""Does it run?"""
from ml_collections import ConfigDict
def get_config():
    c = ConfigDict()
    c.model = dict({model})
    c.base = dict(width=32)
    c.objective = dict(name="reconstruct", weight={weight})
    c.data = dict({data})
    c.optim = dict(lr=2.0**-6, ema=0.9)
    c.train = dict(steps=120, batch=16)
    c.eval = dict(examples=32, batch=16, every=120)
    c.sample = dict(n=2)
    return c
'''
MODEL = '''"""Does it run?"""
from ml_collections import ConfigDict
def get_config():
    c = ConfigDict()
    c.model = dict({model}, width=32, depth=1, head_dim=16, mlp_ratio=2, qk_norm=True)
    c.base = dict(width=32)
    c.objective = dict({objective})
    c.data = dict({data})
    c.train = dict(steps=3, batch=8)
    c.eval = dict(examples=16, batch=8, every=3)
    c.sample = dict(n=3, options=dict({options}))
    c.judge = dict(names=("oracle", "novelty"), n=8, options=dict(novelty=dict(n_train=16)))
    return c
'''
# set: its tokenizer, and a model of it
KINDS = {
    "vq": (
        ('name="masked"', 'name="unmask", schedule="cosine", weighting="plain", label_drop=0.1', "steps=2"),
        'name="text", tokens="words", length=8, source=dict(name="encoded", path="set")',
    ),
    "kl": (
        ('name="dit", patch=1, zero_gates=True', 'name="flow", time="uniform", label_drop=0.1', "steps=2"),
        'name="encoded", path="set"',
    ),
}


def words(section):
    return ", ".join(f"{k}={v!r}" for k, v in section.items())


@pytest.fixture(scope="module", params=KINDS)
def made(request, tmp_path_factory):
    """(kind, folder) with a tokenizer's study in runs/tok and the set that it made in data/set."""
    folder = tmp_path_factory.mktemp(request.param)
    weight = 1e-3 if request.param == "kl" else 0.25
    (folder / "tok.py").write_text(TOKENIZER.format(model=words(bottlenecks.MODELS[request.param]), weight=weight, data=words(SOURCE)))
    assert cli.main(["run", str(folder / "tok.py"), "--workdir", str(folder / "runs")]) == 0
    assert encode(folder) == 0
    return request.param, folder


def encode(folder, *more):
    where = ["--with", str(folder / "runs" / "tok"), "--to", "set", "--data-dir", str(folder / "data"), "--eval-examples", "32"]
    return cli.main(["data", "encode", *GIVEN, *where, *more])


def test_a_set_holds_what_the_tokenizer_says_and_pictures_come_back(made):
    kind, folder = made
    data_dir = str(folder / "data")
    source, real = open_source(dict(name="encoded", path="set"), "train", data_dir), open_source(SOURCE, "train", data_dir)
    assert len(source) == 96
    tokenizer = coded.of(dict(name="encoded", path="set"), source.info, data_dir)
    items = [source[i] for i in range(8)]
    images = np.stack([real[i]["image"] for i in range(8)])
    direct = {k: np.asarray(v) for k, v in tokenizer({"image": images}).items()}
    assert [x["caption"] for x in items] == [real[i]["caption"] for i in range(8)]
    if kind == "vq":
        np.testing.assert_array_equal(np.stack([x["tokens"] for x in items]), direct["tokens"])
        assert source.dims["vocabulary"] == 16
        seen = {"tokens": np.stack([x["tokens"] for x in items])}
    else:
        every = np.stack([source[i]["image"] for i in range(96)])
        assert abs(every.mean()) < 0.02
        assert every.std() == pytest.approx(1, abs=0.02)
        back = np.stack([x["image"] for x in items]) / source.info["scale"] + source.info["shift"]
        np.testing.assert_allclose(back, direct["image"], rtol=0.01, atol=0.01)  # kept as bfloat16
        seen = {"image": np.stack([x["image"] for x in items])}
    pictures = tokenizer.pictures(seen)
    assert pictures.shape == (8, 8, 8, 3)
    truth = images / 127.5 - 1
    assert np.mean((pictures - truth) ** 2) < 0.9 * np.var(truth)  # it has learned something; shuffled pictures are further
    assert np.mean((pictures[::-1] - truth) ** 2) > 1.2 * np.mean((pictures - truth) ** 2)
    section = dict(name="text", tokens="words", length=8, source=dict(name="encoded", path="set"))
    captioned = open_source(section, "eval", str(folder / "data"))
    shown = coded.pictured(
        captioned, section, "eval", str(folder / "data")
    )  # the words of the set, around the pictures that it was made of
    held = open_source(SOURCE, "eval", str(folder / "data"))
    for i in range(4):
        np.testing.assert_array_equal(shown[i]["image"], held[i]["image"])
        np.testing.assert_array_equal(shown[i]["text"], captioned[i]["text"])
    stacked = tokenizer.pictures({k: np.stack([v, v[::-1]]) for k, v in seen.items()})
    np.testing.assert_allclose(stacked[1], pictures[::-1], atol=1e-5)


def test_the_same_command_again_is_done_and_another_tokenizer_is_refused(made, capsys):
    _, folder = made
    before = (folder / "data" / "set" / "train" / encoded.CARD).read_bytes()
    assert encode(folder) == 0
    assert (folder / "data" / "set" / "train" / encoded.CARD).read_bytes() == before
    weights = folder / "data" / "set" / coded.FOLDER / "config.json"
    kept = weights.read_text()
    weights.write_text(kept.replace("32", "64", 1))
    capsys.readouterr()
    assert encode(folder) == 2
    assert "another tokenizer" in capsys.readouterr().err
    source = open_source(dict(name="encoded", path="set"), "train", str(folder / "data"))
    with pytest.raises(UserError):
        coded.of(dict(name="encoded", path="set"), source.info, str(folder / "data"))
    weights.write_text(kept)


def test_a_model_of_the_set_is_judged_by_the_pictures_and_sampled(made, tmp_path, monkeypatch, capsys):
    kind, folder = made
    (model, objective, options), data = KINDS[kind]
    (tmp_path / "mine.py").write_text(MODEL.format(model=model, objective=objective, data=data, options=options))
    monkeypatch.chdir(tmp_path)
    at = f"--config.run.data_dir={folder / 'data'}"
    assert cli.main(["run", "mine.py", at]) == 0
    last = record.table("runs/mine").to_pylist()[-1]
    assert last["oracle_ceiling"] == 1.0  # of the pictures that the set was made of
    assert 0 <= last["oracle"] <= 1
    assert last["novelty_ratio"] > 0
    (npz,) = tmp_path.glob("runs/mine/*/samples.npz")
    with np.load(npz) as z:
        assert z["samples"].shape == z["real"].shape == (3, 8, 8, 3)
        assert z["samples"].dtype == np.uint8
        assert set(np.unique(z["real"])) <= {*range(256)}
    assert str(folder) not in json.dumps({k: v for k, v in record.read_study("runs/mine").items() if k != "config"})
    if kind == "vq":
        assert cli.main(["sample", "runs/mine", "--prompt", "a red circle", "-n", "2", "--out", "p.png"]) == 0
    assert cli.main(["sample", "runs/mine", "-n", "4", "--out", "s.png"]) == 0
    assert cli.main(["sample", "runs/mine", "-n", "8", "--judge", "oracle", "--judge", "novelty"]) == 0
    assert f"oracle_ceiling{' ' * 10} 1" in capsys.readouterr().out
    shutil.move(folder / "data" / "set" / coded.FOLDER, tmp_path / "kept")
    try:
        assert cli.main(["sample", "runs/mine", "-n", "4", "--out", "s.png"]) == 2
        assert "is missing; restore it" in capsys.readouterr().err
    finally:
        shutil.move(tmp_path / "kept", folder / "data" / "set" / coded.FOLDER)


def test_what_is_no_tokenizer_is_named(made, tmp_path, capsys):
    _, folder = made
    (tmp_path / "empty").mkdir()
    where = ["--to", "other", "--data-dir", str(tmp_path)]
    assert cli.main(["data", "encode", *GIVEN, "--with", str(tmp_path / "empty"), *where]) == 2
    assert "neither the folder of a study" in capsys.readouterr().err
    assert cli.main(["data", "encode", "tree", "side=4", "vocabulary=4", "--with", str(folder / "runs" / "tok"), *where]) == 2
    assert "a tokenizer encodes pictures" in capsys.readouterr().err
