"""Tokens that are pixels and text that is features, from the command that makes them to samples that are pictures."""

import json
import math

import numpy as np
import pytest

from lab import cli, record
from lab.errors import UserError
from lab.experiment import load
from lab.sampling import PROMPTS, asked, restored, sample, sources
from lab.trials import expand

EXPERIMENT = '''"""Does it run?"""
from ml_collections import ConfigDict

FLOW, NEXT = dict(name="flow", time="uniform", label_drop=0.1), dict(name="next_token", label_drop=0.1)
UNMASK = dict(name="unmask", schedule="cosine", weighting="plain", label_drop=0.1)
TRUNK = dict(width=32, depth=1, head_dim=16, mlp_ratio=1, qk_norm=False)
KINDS = dict(
    decoder=(dict(name="decoder", **TRUNK, rope="grid"), NEXT, dict(top_k=3, temperature=0.9)),
    masked=(dict(name="masked", **TRUNK), UNMASK, dict(steps=3)),
    pixart=(dict(name="pixart", **TRUNK, patch=4, zero_gates=False), FLOW, dict(steps=2, guidance=2.0)),
)


def get_config():
    c = ConfigDict(dict(base=dict(width=32)))
    c.model, c.objective, _ = KINDS[{arms!r}[0]]
    c.data = dict({data})
    c.optim = dict(lr=2.0**-6)
    c.train = dict(steps={steps}, batch=8, log_every=1)
    c.eval = dict(examples=16, batch=8, every={steps})
    c.sample = dict(n=5)
    c.run = dict(data_dir={data_dir!r})
    return c


def sweep():
    for arm in {arms!r}:
        model, objective, options = KINDS[arm]
        yield {{"arm": arm, "model": model, "objective": objective, "sample.options": options}}
'''
ENCODER = '''"""Halves of pictures, their nearest of two greys, and what a frozen encoder might say of captions: random vectors, one a word."""
import zlib

import numpy as np

VOCABULARY, PALETTE = 2, ((64,), (192,))


def encode(batch):
    x = np.asarray(batch["image"], np.float32).reshape(-1, 4, 2, 4, 2, 3).mean((2, 4))
    text = np.zeros((len(x), 6, 5), np.float32)
    for row, caption in zip(text, batch["caption"]):
        for place, word in zip(row, caption.split()):
            place[:] = np.random.default_rng(zlib.crc32(word.encode())).standard_normal(5)
    return {"image": x / 127.5 - 1, "tokens": np.uint8(x.mean(-1) > 128), "text": text}
'''


def lab(*argv):
    return cli.main([str(a) for a in argv])


def refused(capsys, *argv):
    """The one line of a command that fails."""
    capsys.readouterr()
    assert lab(*argv) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("lab: ")]
    return line


def trained(folder, **given):
    """The folder of the study of an experiment."""
    (folder / "mine.py").write_text(EXPERIMENT.format(**{"steps": 3, **given}))
    assert lab("run", folder / "mine.py", "--workdir", folder / "runs") == 0
    return folder / "runs" / "mine"


def shown(folder, population):
    """Real pictures and samples that a study drew of a population."""
    with np.load(folder / population / "samples.npz") as z:
        return z["real"], z["samples"]


def arms(folder):
    """{arm: (trial, its population)} of a study."""
    return {t["arm"]: (i, t["population"]) for i, t in record.read_study(folder)["trials"].items()}


@pytest.fixture(scope="module")
def icons(tmp_path_factory):
    """The data_dir of all tests on icons."""
    return str(tmp_path_factory.mktemp("data"))


ICONS = 'name="icons", size=8, sets=("octicons",), extras=("tokens",), levels=4'


@pytest.mark.parametrize("arm", ["decoder", "masked"])
def test_icons_in_four_greys_are_learned_and_drawn_as_pictures(arm, icons, tmp_path):
    folder = trained(tmp_path, arms=(arm,), data=ICONS, data_dir=icons, steps=20)
    rows = [r for r in record.table(folder).to_pylist() if r["eval_loss"] is not None]
    uniform = math.log(4)  # where a readout of zeros begins
    assert rows[0]["eval_loss"] == pytest.approx(uniform, rel=1e-5)
    assert rows[-1]["eval_loss"] < 0.9 * uniform
    about = record.read_study(folder)["data"]
    assert about["palette"] == [[0], [85], [170], [255]]
    assert 5 < about["rms_error"] < 255 / 3 / 2
    real, made = shown(folder, arms(folder)[arm][1])
    assert made.shape == real.shape == (5, 8, 8, 1)
    assert made.dtype == np.uint8
    assert set(np.unique(made)) <= {0, 85, 170, 255}
    assert not set(np.unique(real)) <= {0, 85, 170, 255}  # icons have more greys than their tokens
    assert lab("sample", folder, "-n", 2, "--out", tmp_path / "s.png") == 0
    assert (tmp_path / "s.png").stat().st_size > 1000


def test_icons_are_drawn_by_words_of_their_captions(icons, tmp_path, capsys):
    data = f'name="text", tokens="words", words=50, length=8, source=dict({ICONS})'
    folder = trained(tmp_path, arms=("decoder",), data=data, data_dir=icons)
    known = record.read_study(folder)["data"]["vocabulary"]["words"]
    out = tmp_path / "s.png"
    assert lab("sample", folder, "--prompt", f"{known[0]} {known[1]}", "-n", 2, "--out", out) == 0
    assert out.stat().st_size > 1000
    line = refused(capsys, "sample", folder, "--prompt", f"{known[0]}{known[0]}")
    assert "is unknown" in line
    assert f"nearest: {known[0]!r}" in line
    assert "has 7 words; expected at most 6" in refused(capsys, "sample", folder, "--prompt", " ".join(7 * known[:1]))


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A study of three kinds on an encoded set: latents, tokens that are pixels, and features of captions."""
    folder = tmp_path_factory.mktemp("told")
    (folder / "enc.py").write_text(ENCODER)
    inner = ("shapes", "size=8", "grid=1", "density=medium", "extras=('caption',)", "examples=64")
    more = ("--with", f"{folder / 'enc.py'}:encode", "--to", "set", "--eval-examples", 64, "--data-dir", folder)
    assert lab("data", "encode", *inner, *more) == 0
    return trained(folder, arms=("pixart", "decoder", "masked"), data='name="encoded", path="set"', data_dir=str(folder))


def test_models_read_features_of_the_data_by_an_input(told):
    losses = [r["loss"] for r in record.table(told).to_pylist() if r["loss"] is not None]
    assert len(losses) == 3 * 3
    assert np.isfinite(losses).all()
    for arm, name in (("pixart", "words.up.kernel"), ("decoder", "text.features.kernel"), ("masked", "text.features.kernel")):
        rows = {w["name"]: w for w in record.read_json(told / arms(told)[arm][1] / "card.json")["weights"]}
        assert (rows[name]["arrow"], rows[name]["role"], rows[name]["shape"]) == ("text_features -> embed", "input", [5, 32])


def test_prompts_are_kept_as_features_of_held_out_captions_and_models_read_them(told):
    about = record.read_study(told)["data"]
    assert about["prompts"].keys() == {"label", "names"}  # features are too many numbers for JSON
    cond, names = asked(restored(told), told, about, 7)
    assert cond["text"].shape == (7, 6, 5)
    assert names[5:] == names[:2]
    np.testing.assert_array_equal(cond["text"][5:], cond["text"][:2])
    _, held = sources(told)
    said = {held[i]["caption"]: held[i]["text"] for i in range(len(held))}
    for name, features in zip(names, cond["text"], strict=True):
        np.testing.assert_array_equal(features, said[name])
    for trial, _ in arms(told).values():
        found = restored(told, trial)
        rng = np.random.default_rng(0)
        makes = {"image": ("x", rng.normal(size=(2, 4, 4, 3)).astype(np.float32)), "tokens": ("tokens", np.zeros((2, 4, 4), np.int32))}
        key, value = makes[found.program.objective.makes]
        given = {key: value, "t": np.full(2, 0.5, np.float32), "label": np.zeros(2, np.int32)}
        one, other, none = (
            np.asarray(found.weights({**given, "text": x})) for x in (cond["text"][:2], cond["text"][2:4], 0 * cond["text"][:2])
        )
        assert min(np.abs(one - other).max(), np.abs(one - none).max()) > 1e-4


def test_samples_follow_prompts_of_the_study_and_a_text_without_features_is_refused_in_one_line(told, tmp_path, capsys):
    names, out = record.read_study(told)["data"]["prompts"]["names"], tmp_path / "s.png"
    for trial, _ in arms(told).values():
        assert lab("sample", told, "--trial", trial, "-n", 3, "--out", out) == 0
        out.unlink()
        assert lab("sample", told, "--trial", trial, "--prompt", names[1], "-n", 2, "--out", out) == 0
        out.unlink()
    line = refused(capsys, "sample", told, "--prompt", names[1][:-1])
    assert "features of texts and no encoder for others" in line
    assert f"(nearest: {names[1]!r})" in line
    kept = (told / PROMPTS).read_bytes()
    for damage in (lambda p: p.unlink(), lambda p: p.write_bytes(kept[: len(kept) // 2]), lambda p: p.write_bytes(b"")):
        damage(told / PROMPTS)
        assert "prompts.npz', the features of the study's prompts, is missing or damaged" in refused(capsys, "sample", told)
    (told / PROMPTS).unlink()
    assert lab("run", told.parents[1] / "mine.py", "--workdir", told.parent) == 0  # nothing is trained again
    assert (told / PROMPTS).read_bytes() == kept


def test_tokens_of_an_encoded_set_are_shown_by_its_palette(told):
    found, about = restored(told, arms(told)["decoder"][0]), record.read_study(told)["data"]
    assert about["palette"] == [[64], [192]]
    cond, _ = asked(found, told, about, 4)
    made = sample(found, about, cond, {"top_k": 1})["image"]
    assert made.shape == (4, 4, 4, 1)
    assert set(np.unique(made)) <= {64, 192}
    with pytest.raises(UserError, match="no palette of the source"):
        asked(found, told, {k: v for k, v in about.items() if k != "palette"}, 4)


def test_every_arm_is_drawn_from_by_options_of_its_own(told, capsys):
    at = arms(told)
    kept = {arm: record.read_json(told / population / "config.json")["sample"]["options"] for arm, (_, population) in at.items()}
    assert kept == {"pixart": {"steps": 2, "guidance": 2.0}, "decoder": {"top_k": 3, "temperature": 0.9}, "masked": {"steps": 3}}
    (drawn,) = told.glob("*/samples.npz")
    arm = next(a for a, (_, population) in at.items() if population == drawn.parent.name)
    with np.load(drawn) as z:
        assert kept[arm].items() <= json.loads(str(z["about"])).items()
    assert "steps" in refused(capsys, "sample", told, "--trial", at["decoder"][0], "--option", "steps=2")


def loaded(tmp_path, *changes):
    """The experiment of two arms, some of its text replaced, and its trials."""
    text = EXPERIMENT.format(arms=("decoder", "masked"), data='name="shapes", size=8, extras=("tokens",)', data_dir="data", steps=3)
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "two.py").write_text(text)
    experiment = load(str(tmp_path / "two.py"))
    return experiment, expand(experiment, "print")


def test_options_of_a_sampler_are_no_part_of_a_trial_and_replace_the_configs_own(tmp_path):
    _, plain = loaded(tmp_path, (', "sample.options": options', ""))
    _, own = loaded(tmp_path, ("c.sample = dict(n=5)", "c.sample = dict(n=5, options=dict(guidance=9.0))"))
    assert [t.id for t in plain] == [t.id for t in own]
    assert [t.config["sample"]["options"] for t in own] == [{"top_k": 3, "temperature": 0.9}, {"steps": 3}]
    assert all(t.config["sample"]["n"] == 5 for t in own)
    _, none = loaded(
        tmp_path,
        ("c.sample = dict(n=5)", "c.sample = dict(n=5, options=dict(guidance=9.0))"),
        ('"sample.options": options', '"sample.options": {}'),
    )
    assert [t.config["sample"]["options"] for t in none] == [{}, {}]


def test_options_that_do_not_fit_an_arm_name_it_and_those_that_alone_differ_are_refused(tmp_path, capsys):
    loaded(tmp_path, ("dict(steps=3)", "dict(top_k=3)"))
    line = refused(capsys, "run", tmp_path / "two.py", "--workdir", tmp_path)
    assert "config key sample.options (arm masked) 'top_k' is unknown" in line
    twice = """        yield {"arm": arm, "model": model, "objective": objective, "sample.options": options}
        yield {"arm": arm, "model": model, "objective": objective, "sample.options": {}}"""
    with pytest.raises(UserError, match=r"differ in sample.options alone.*--option"):
        loaded(tmp_path, (twice.splitlines()[0], twice))
