"""Judges that the lab trains: right about real pictures, at chance on noise and on captions dealt anew, and of use as features."""

from types import SimpleNamespace

import numpy as np
import pytest

from lab import cli, record
from lab.data.loader import open_source
from lab.errors import UserError
from lab.evals import _learned, distance, learned, support, wrong

SOURCE = '''"""Waves: which way they run is the class, and the caption says their phase too."""

import numpy as np


class Source:
    def __init__(self, split, data_dir, classes=4, said=True):
        self.offset, self.said = 0 if split == "train" else 1 << 20, said
        self.dims = {"image": 8, "channels": 1, "classes": classes, "words": 9, "length": 2}
        names = [f"way {i}" for i in range(classes)]
        self.info = {
            "image": [8, 8, 1], "classes": classes, "class_names": names, "examples": 512, "origin": "waves", "fingerprint": f"waves-{classes}-{said}"
        }

    def __len__(self):
        return 512

    def __getitem__(self, i):
        rng = np.random.default_rng(self.offset + i)
        label, phase = rng.integers(4, size=2)
        at = np.stack(np.meshgrid(*[np.linspace(-1, 1, 8)] * 2))
        wave = np.cos(3 * (np.cos(label * np.pi / 4) * at[0] + np.sin(label * np.pi / 4) * at[1]) + phase * np.pi / 2)
        image = np.clip(127.5 * (1 + 0.7 * wave + 0.1 * rng.standard_normal((8, 8))), 0, 255).astype(np.uint8)[..., None]
        text = {"text": np.array([1 + label, 5 + phase], np.int32)} if self.said else {}
        return {"image": image, "label": np.int32(label), **text}
'''
STUDY = '''"""Judges of waves."""
from ml_collections import ConfigDict

TOWER = dict(width=16, depth=1, head_dim=8, mlp_ratio=2, patch=4, qk_norm=True)


def get_config():
    c = ConfigDict(dict(base=dict(width=16), model=dict(name="classifier", **TOWER), objective=dict(name="classify")))
    c.data = dict(name="./waves.py")
    c.optim = dict(lr=2.0**-5, warmup=10, ema=0.9)
    c.train = dict(steps=150, batch=32, log_every=50)
    c.eval = dict(examples=128, batch=64, every=150)
    c.judge = dict(names=("wrong",))
    return c


def sweep():
    yield {"arm": "classifier"}
    yield {"arm": "two_tower", "model": dict(name="two_tower", text_depth=0, **TOWER), "objective": dict(name="contrast")}
'''


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The folder in which both kinds of judges were trained, as a user would."""
    folder = tmp_path_factory.mktemp("judges")
    with pytest.MonkeyPatch.context() as m:
        m.chdir(folder)
        (folder / "waves.py").write_text(SOURCE)
        (folder / "judges.py").write_text(STUDY)
        assert cli.main(["run", "judges.py"]) == 0
    return folder / "runs" / "judges"


def splits(study, **options):
    """Held-out and training split of the waves."""
    name = str(study.parents[1] / "waves.py")
    return tuple(open_source({"name": name, **options}, s, "") for s in ("eval", "train"))


def real(source, n=200, start=250):
    """Pictures in [-1, 1] and what they show, as a model would have been asked for it."""
    items = [source[i] for i in range(start, start + n)]
    out = {k: np.stack([x[k] for x in items]) for k in items[0]}
    return {**out, "image": out["image"].astype(np.float32) / 127.5 - 1}


def test_a_study_of_judges_keeps_their_error_on_real_pictures(study):
    last = {r["arm"]: r for r in record.finals(study).to_pylist()}
    assert last["classifier"]["wrong"] < 0.1
    assert last["two_tower"]["wrong"] < 0.2
    for row in last.values():
        assert 0 <= row["wrong_low"] <= row["wrong"] <= row["wrong_high"]
    assert not list(study.glob("*/samples.npz"))  # they draw nothing
    for name in record.read_study(study)["populations"]:
        assert record.read_json(study / name / "card.json")["parameters"] > 0


def test_real_pictures_reach_the_ceiling_and_controls_fall_to_chance(study):
    held, train = splits(study)
    judge = learned.Judge(held, train, str(study), candidates=8, ceiling=200)
    asked = real(held)
    found = judge(SimpleNamespace(samples=asked))
    for name in ("label", "match"):
        low, high = found[f"learned_{name}_low"], found[f"learned_{name}_high"]
        assert low <= found[f"learned_{name}"] <= high
        assert found[f"learned_{name}"] > 0.9 > 3 * found[f"learned_{name}_chance"]
        assert abs(found[f"learned_{name}"] - found[f"learned_{name}_ceiling"]) < 0.06
    assert all(k.startswith("learned_") and isinstance(v, float) for k, v in found.items())
    rng = np.random.default_rng(0)
    order = rng.permutation(200)
    dealt = judge(SimpleNamespace(samples={**asked, "label": asked["label"][order], "text": asked["text"][order]}))
    noise = judge(SimpleNamespace(samples={**asked, "image": rng.uniform(-1, 1, asked["image"].shape).astype(np.float32)}))
    for control in (dealt, noise):
        assert control["learned_label_low"] - 0.05 < control["learned_label_chance"] < control["learned_label_high"] + 0.05
        assert control["learned_match"] < 0.3
        assert control["learned_label_ceiling"] == found["learned_label_ceiling"]
    # half the pictures swapped: a planted share is found
    half = judge(SimpleNamespace(samples={**asked, "image": np.concatenate([asked["image"][:100], asked["image"][:100][::-1]])}))
    assert 0.5 < half["learned_label"] < 0.75


@pytest.mark.parametrize("kind", ["classifier", "two_tower"])
def test_distances_and_support_are_told_on_their_features(study, kind):
    held, train = splits(study)
    trial = next(i for i, t in record.read_study(study)["trials"].items() if t["arm"] == kind)
    judge = _learned.load("features", str(study), trial)[kind]
    asked = real(held, 100)
    x = judge.features(asked["image"])
    assert x.shape == (100, 16)
    if kind == "two_tower":
        np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, atol=1e-5)
        assert judge.said(asked["text"]).shape == (100, 16)
    far = {**asked, "image": asked["image"][::-1] * 0 + asked["image"][:1]}
    for module, name, better in ((distance, "distance_frechet", -1), (support, "support_coverage", 1)):
        by = module.Judge(held, train, features=str(study), trial=trial, n=200, floors=2)
        good, bad = (by(SimpleNamespace(samples=s)) for s in (asked, far))
        assert better * (good[name] - bad[name]) > 0
        assert name.split("_")[0] in next(iter(good))


def test_features_are_those_of_the_classifier_where_a_study_has_both(study):
    images = real(splits(study)[0], 5)["image"]
    both = _learned.load("features", str(study))
    assert set(both) == {"classifier", "two_tower"}
    judge = distance.Judge(*splits(study), features=str(study), n=50, floors=1)
    np.testing.assert_array_equal(judge._features.embed(images), both["classifier"].features(images))


def test_what_cannot_be_judged_is_named(study, tmp_path, monkeypatch, capsys):
    held, train = splits(study)
    key = "judge.options.learned"
    with pytest.raises(UserError, match=f"{key}.candidates=40: 200 held-out examples have 16 different captions"):
        learned.Judge(held, train, str(study), candidates=40, ceiling=200)
    with pytest.raises(UserError, match=f"{key}.trial 'xx' is unknown"):
        learned.Judge(held, train, str(study), trial="xx")
    with pytest.raises(UserError, match=r"distance\.trial='xx' wants a study's folder as features, which 'pca' is not"):
        distance.Judge(held, train, trial="xx")
    other = splits(study, classes=5, said=False)
    with pytest.raises(UserError, match="classifier tells 4 classes that are not the 5 of the source; the source gives no text"):
        learned.Judge(*other, str(study))
    small = open_source({"name": "shapes", "size": 8, "grid": 1}, "eval", "")
    monkeypatch.setitem(held.info, "vocabulary", {"tokens": "words"})
    judge = learned.Judge(held, train, str(study), candidates=8)
    assert "two_tower" not in judge._judges  # it would read other words
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"pictures of shape \[8, 8, 1\], the source's are \[8, 8, 3\]"):
        learned.Judge(small, small, str(study))
    with pytest.raises(UserError, match="errors are right or wrong"):
        wrong.Judge(held, train)(SimpleNamespace(errors={"error": np.zeros((3, 8, 8, 1))}))
    monkeypatch.chdir(study.parents[1])
    capsys.readouterr()
    assert cli.main(["sample", "runs/judges"]) == 2
    assert "draws nothing; it judges" in capsys.readouterr().err
    assert cli.main(["sample", "runs/judges", "--judge", "wrong"]) == 0


def test_a_classifier_judges_alone_where_there_is_no_text(study):
    found = learned.Judge(*splits(study, said=False), str(study), ceiling=50)(
        SimpleNamespace(samples=real(splits(study, said=False)[0], 50))
    )
    assert "learned_label" in found
    assert "learned_match" not in found
