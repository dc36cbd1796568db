"""Published formats: rules invert exactly, what does not fit is named, and folders go in and out through the command."""

import json
import shutil

import encoders
import mistakes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from lab import cli, population, record
from lab.axes import Dims, scale, stack, weight, weights
from lab.data import encode
from lab.data.loader import open_source
from lab.errors import UserError
from lab.experiment import DEFAULTS
from lab.formats import dit, pixart, tensors
from lab.formats.rules import Constant, Rest, Rule, apply, invert
from lab.sampling import asked, restored, sample

DIMS = Dims({"layers": 2, "embed": 4, "heads": 2, "head_dim": 3, "mlp": 5})
PUBLISHED = {
    **{"_class_name": "DiTTransformer2DModel", "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "in_channels": 1},
    **{"sample_size": 8, "patch_size": 4, "num_embeds_ada_norm": 3},
}


class Layer(nnx.Module):
    def __init__(self):
        self.pair = weight("2 | embed -> heads head_dim", DIMS)
        self.fused = weight("3 | embed -> mlp", DIMS)
        self.logits = scale("head_dim ->", DIMS)


class Toy(nnx.Module):
    """A weight of every kind that rules know."""

    def __init__(self):
        self.layer = stack(Layer(), 2, DIMS)
        self.whole = stack(Layer(), 2, DIMS).fused
        self.shared = weight("embed -> mlp", DIMS)
        self.extra = weight("-> embed", DIMS, fill=1.0)


RULES = (
    Rule("layer.pair", ("l.{i}.k.weight", "l.{i}.q.weight"), "(heads head_dim) embed -> embed heads head_dim", order=(1, 0)),
    Rule("layer.fused", "l.{i}.fused", "(n mlp) embed -> n embed mlp", sizes={"n": 3}, order=(2, 0, 1)),
    Rule("whole", "whole"),
    Rule("shared", "copy.{i}", "mlp embed -> embed mlp", factor=0.5, copies="layers"),
    Rule("extra", fill=1.0),
    Constant("positions", np.arange(3, dtype=np.float32)),
)


def random(model, seed=0):
    """Random arrays for a described model, but for what formats take for granted."""
    rng = np.random.default_rng(seed)
    return {n: rng.normal(size=w.get_value().shape).astype(np.float32) for n, w in weights(model).items()}


def toy():
    """Random weights of Toy."""
    model = Toy()
    logits = np.full(2, 3**-0.5, np.float32)
    return model, random(model) | {"layer.logits": logits, "extra": np.ones(4, np.float32)}


def test_rules_place_every_number_and_invert():
    model, mine = toy()
    theirs = invert(RULES, mine, model, DIMS)
    pair, fused = mine["layer.pair"], mine["layer.fused"]
    for i in range(2):
        for j in range(6):
            np.testing.assert_array_equal(theirs[f"l.{i}.q.weight"][j], pair[i, 0, :, j // 3, j % 3])
            np.testing.assert_array_equal(theirs[f"l.{i}.k.weight"][j], pair[i, 1, :, j // 3, j % 3])
        for ours, at in ((0, 2), (1, 0), (2, 1)):
            np.testing.assert_array_equal(theirs[f"l.{i}.fused"][5 * at : 5 * at + 5], fused[i, ours].T)
        np.testing.assert_array_equal(theirs[f"copy.{i}"], 2 * mine["shared"].T)
    np.testing.assert_array_equal(theirs["positions"], [0, 1, 2])
    assert set(theirs) == {f"l.{i}.{n}" for i in "01" for n in ("q.weight", "k.weight", "fused")} | {
        "copy.0",
        "copy.1",
        "whole",
        "positions",
    }
    again, left = apply(RULES, theirs, model, DIMS)
    assert not left
    assert again.keys() == mine.keys()
    for name, x in mine.items():
        np.testing.assert_array_equal(again[name], x, err_msg=name)


def test_what_does_not_fit_is_named():
    model, mine = toy()
    theirs = invert(RULES, mine, model, DIMS)
    del theirs["l.1.q.weight"], theirs["whole"]
    theirs["l.0.fused"] = theirs["l.0.fused"].T
    theirs["copy.1"] = theirs["copy.1"] + 1
    theirs["positions"] = np.array([0, 1, 3], np.float32)
    theirs["l.2.fused"] = np.zeros(3)
    told = mistakes.said(apply, RULES, theirs, model, DIMS)
    for said in (
        "missing l.1.q.weight [6, 4]",
        "missing whole [2, 3, 4, 5]",
        "l.0.fused has shape [4, 15], expected [15, 4]",
        "copy.1 differs from copy.0",
        "positions is not",
        "extra l.2.fused",
    ):
        assert said in told


def test_extra_tensors_are_left_only_when_asked():
    model, mine = toy()
    theirs = invert(RULES, mine, model, DIMS) | {"more": np.zeros(1)}
    with pytest.raises(UserError, match="extra more"):
        apply(RULES, theirs, model, DIMS)
    again, left = apply(RULES, theirs, model, DIMS, allow_extra=True)
    assert left == ["more"]
    np.testing.assert_array_equal(again["whole"], mine["whole"])


@pytest.mark.parametrize("name", ["extra", "layer.logits"])
def test_a_weight_that_a_format_takes_for_granted_must_be_so(name):
    model, mine = toy()
    with pytest.raises(UserError, match=f"'{name}' has no place"):
        invert(RULES, mine | {name: 1.01 * mine[name]}, model, DIMS)


def test_a_weight_without_a_rule_has_no_place_unless_the_rest_is_kept():
    model, mine = toy()
    mine = random(model)
    with pytest.raises(UserError, match="no place for these weights of the model: extra"):
        invert([r for r in RULES if getattr(r, "ours", "") != "extra"], mine, model, DIMS)
    theirs = invert([Rest("a.")], mine, model, DIMS)
    assert theirs.keys() == {f"a.{n}" for n in mine}
    again, _ = apply([Rest("a.")], theirs, model, DIMS)
    for name, x in mine.items():
        np.testing.assert_array_equal(again[name], x)


def test_a_wrong_rule_is_an_error_of_its_author():
    model, mine = toy()
    for bad in (Rule("whole", "whole", "layers n embed mlp -> layers n mlp embed", sizes={"n": 3}), Rule("nothing", "x")):
        with pytest.raises(ValueError, match="rule"):
            invert([bad, Rest()], mine, model, DIMS)


def published(folder, seed=0, **changes):
    """A random published DiT: config.json and one safetensors file."""
    theirs = PUBLISHED | changes
    config = {**json.loads(json.dumps(DEFAULTS)), **dit.Format.config(theirs)}
    dims = config.pop("data")
    program = population.build(config, dims)
    mine = random(program.model, seed) | {"blocks.attention.logits": np.full(theirs["num_layers"], 8**-0.5, np.float32)}
    made = invert(dit.Format.rules({**config, "data": dims}), mine, program.model, program.dims)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(theirs))
    tensors.write(folder / dit.Format.file, made)
    return made


def run(*argv):
    return cli.main([str(a) for a in argv])


def refused(capsys, *argv):
    """The one line of a command that fails."""
    capsys.readouterr()
    assert run(*argv) == 2
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert said.out == ""
    return line


def test_a_folder_comes_in_is_sampled_and_goes_out(tmp_path, capsys):
    made = published(tmp_path / "dit")
    assert run("import", "weights", tmp_path / "dit", "--to", tmp_path / "in") == 0
    assert "44 tensors of the format 'dit'" in capsys.readouterr().out
    assert list(record.status(tmp_path / "in").values()) == ["done"]
    assert run("sample", tmp_path / "in", "-n", 2, "--option", "steps=1", "--out", tmp_path / "s.png") == 0
    assert (tmp_path / "s.png").stat().st_size > 1000
    trial = next(iter(record.read_study(tmp_path / "in")["trials"]))
    assert run("export", "weights", tmp_path / "in", "--to", tmp_path / "out", "--trial", trial) == 0
    again = load_file(tmp_path / "out" / dit.Format.file)
    assert again.keys() == made.keys()
    for name, x in made.items():
        np.testing.assert_array_max_ulp(x, again[name], 1 if "linear_1" in name else 0)
    card = record.read_json(tmp_path / "out" / "parametrization.json")
    rows = {r["name"]: r for r in card["weights"]}
    assert (card["parametrization"]["name"], card["base"]) == ("mup", {"width": 16})
    assert (rows["readout"]["arrow"], rows["readout"]["role"]) == ("embed -> patch_out", "output")
    assert "is unknown" in refused(capsys, "export", "weights", tmp_path / "in", "--to", tmp_path / "x", "--trial", "abc")
    assert "not empty" in refused(capsys, "export", "weights", tmp_path / "in", "--to", tmp_path / "out")
    assert "not empty" in refused(capsys, "import", "weights", tmp_path / "dit", "--to", tmp_path / "out")


def test_shards_are_read_by_their_index_and_a_lost_one_is_named(tmp_path, capsys):
    made = published(tmp_path / "dit")
    (tmp_path / "dit" / dit.Format.file).unlink()
    names = sorted(made)
    files = {n: f"diffusion_pytorch_model-0000{1 + (k % 2)}-of-00002.safetensors" for k, n in enumerate(names)}
    for file in set(files.values()):
        save_file({n: made[n] for n in names if files[n] == file}, tmp_path / "dit" / file)
    (tmp_path / "dit" / f"{dit.Format.file}.index.json").write_text(json.dumps({"weight_map": files}))
    assert run("import", "weights", tmp_path / "dit", "--to", tmp_path / "in") == 0
    kept = restored(tmp_path / "in").weights
    np.testing.assert_array_equal(kept.readout.get_value(), made["proj_out_2.weight"].T)
    (tmp_path / "dit" / files[names[0]]).unlink()
    assert f"lacks {files[names[0]]}, which" in refused(capsys, "import", "weights", tmp_path / "dit", "--to", tmp_path / "in2")
    (tmp_path / "dit" / f"{dit.Format.file}.index.json").write_text("{}")
    assert "no key 'weight_map'" in refused(capsys, "import", "weights", tmp_path / "dit", "--to", tmp_path / "in2")


def test_mistakes_of_import_are_one_line(tmp_path, capsys):
    made, to = published(tmp_path / "dit"), tmp_path / "in"
    ask = ("import", "weights", tmp_path / "dit", "--to", to)
    save_file(made | {"more": np.zeros(2, np.float32)}, tmp_path / "dit" / dit.Format.file)
    assert "extra more" in refused(capsys, *ask)
    assert run(*ask, "--allow-extra") == 0
    assert "left: more [2]" in capsys.readouterr().out
    shutil.rmtree(to)
    config = tmp_path / "dit" / "config.json"
    for changes, said in (
        ({"_class_name": "DiTTransformer3DModel"}, "(nearest: 'DiTTransformer2DModel')"),
        ({"num_layers": 3}, "missing transformer_blocks.2.attn1.to_q.weight [16, 16]"),
        ({"num_embeds_ada_norm": 5}, "embedding_table.weight has shape [4, 16], expected [6, 16]"),
        ({"activation_fn": "geglu"}, "activation_fn='geglu' has no counterpart"),
        ({"attention_head_dim": None}, "no key 'attention_head_dim'"),
        ({"in_channels": [1]}, "wrong type"),
        ({"_class_name": "Transformer2DModel", "norm_type": "ada_norm_x"}, "expected 'ada_norm_zero'"),
    ):
        config.write_text(json.dumps({k: v for k, v in (PUBLISHED | changes).items() if v is not None}))
        assert said in refused(capsys, *ask), said
    assert "--objective names none" in refused(capsys, *ask, "--objective", "time=uniform")
    config.write_text(json.dumps({k: v for k, v in PUBLISHED.items() if k != "_class_name"}))
    assert "names no class" in refused(capsys, *ask)
    config.write_text(json.dumps(PUBLISHED | {"_class_name": "Transformer2DModel", "norm_type": "ada_norm_zero"}))
    assert run(*ask, "--allow-extra") == 0
    shutil.rmtree(to)
    config.write_text(json.dumps(PUBLISHED))
    whole = (tmp_path / "dit" / dit.Format.file).read_bytes()
    for cut in (len(whole) - 100, 20, 0):
        (tmp_path / "dit" / dit.Format.file).write_bytes(whole[:cut])
        assert "is damaged" in refused(capsys, *ask)
    (tmp_path / "dit" / dit.Format.file).unlink()
    assert "no *.safetensors" in refused(capsys, *ask)
    config.unlink()
    assert "config.json" in refused(capsys, *ask)
    assert "'weights'" in refused(capsys, "import", "wieghts", tmp_path / "dit", "--to", to)
    assert not to.exists()


def test_a_tensor_in_two_files_is_refused(tmp_path):
    published(tmp_path / "dit")
    shutil.copy(tmp_path / "dit" / dit.Format.file, tmp_path / "dit" / "model.fp16.safetensors")
    with pytest.raises(UserError, match="lies in"):
        tensors.Tensors(tmp_path / "dit")


def test_a_model_that_a_published_format_cannot_hold_goes_out_in_the_labs_own(tmp_path, capsys):
    """With gains of queries and keys, and at twice the base: the card tells muP's steps, and they come back with the weights."""
    model = dict(name="dit", width=32, depth=1, head_dim=16, mlp_ratio=2, patch=4, qk_norm=True, zero_gates=False)
    told = {"model": model, "base": {"width": 16}, "objective": dict(name="flow", time="uniform", label_drop=0.2)}
    told |= {"_class_name": "ScalingLab", "data": {"image": 8, "channels": 1, "classes": 3}}
    config = {**json.loads(json.dumps(DEFAULTS)), **{k: told[k] for k in ("model", "base", "objective")}}
    described = population.build(config, told["data"]).model
    mine = random(described)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "config.json").write_text(json.dumps(told))
    tensors.write(tmp_path / "own" / "model.safetensors", mine)
    assert run("import", "weights", tmp_path / "own", "--to", tmp_path / "in") == 0
    line = refused(capsys, "export", "weights", tmp_path / "in", "--to", tmp_path / "out")
    assert "model," in line
    assert "--format native" in line
    assert run("export", "weights", tmp_path / "in", "--to", tmp_path / "out", "--format", "native") == 0
    again = load_file(tmp_path / "out" / "model.safetensors")
    assert again.keys() == mine.keys()
    for name, x in mine.items():
        np.testing.assert_array_equal(again[name], x)
    card = record.read_json(tmp_path / "out" / "parametrization.json")
    steps = {r["name"]: r["step"] for r in card["weights"]}
    assert (steps["blocks.attention.qkv"], steps["patch_in.kernel"]) == (0.5, 1.0)
    told = record.read_study(tmp_path / "in")
    next(iter(told["trials"].values()))["point"] = {"parametrization.name": "standard", "optim.lr": 1.0}
    record.write_json(tmp_path / "in" / "study.json", told)
    assert run("export", "weights", tmp_path / "in", "--to", tmp_path / "arm", "--format", "native") == 0
    arm = record.read_json(tmp_path / "arm" / "parametrization.json")
    assert (arm["parametrization"]["name"], {r["step"] for r in arm["weights"]}) == ("standard", {0.0, 1.0})
    card["parametrization"]["alpha"] = 0.5
    record.write_json(tmp_path / "out" / "parametrization.json", card)
    assert run("import", "weights", tmp_path / "out", "--to", tmp_path / "in2", "--objective", "name=flow", "--objective", "time=uniform",
               "--objective", "label_drop=0.3") == 0  # fmt: skip
    kept = restored(tmp_path / "in2").config
    assert (kept["parametrization"]["alpha"], kept["base"], kept["objective"]["label_drop"]) == (0.5, {"width": 16}, 0.3)


SHAPES = {"name": "shapes", "size": 8, "grid": 1, "density": "medium", "extras": ("tokens", "text")}
DECODER = dict(name="decoder", width=32, depth=1, head_dim=16, mlp_ratio=1, qk_norm=False, rope="grid", text_depth=0)


def own(folder, model, objective, dims):
    """A folder in the lab's own layout with random weights."""
    told = {"_class_name": "ScalingLab", "model": model, "base": {"width": 32}, "objective": objective, "data": dims}
    config = {**json.loads(json.dumps(DEFAULTS)), **{k: told[k] for k in ("model", "base", "objective")}}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(told))
    tensors.write(folder / "model.safetensors", random(population.build(config, dims).model))
    return folder


def flags(section):
    """A section of data as the command takes it."""
    return [x for k, v in section.items() for x in ("--data", f"{k}={v}")]


def test_imports_of_tokens_and_text_want_their_data_and_are_sampled_judged_and_reported_with_it(tmp_path, capsys):
    dims = open_source(SHAPES, "train", "").dims
    source = own(tmp_path / "own", DECODER, dict(name="next_token", label_drop=0.1), dims)
    bare, full = tmp_path / "bare", tmp_path / "full"
    assert run("import", "weights", source, "--to", bare) == 0
    assert "no palette and no prompts to sample with: --data name=SOURCE" in capsys.readouterr().out
    for more in ((), ("--prompt", "a red circle"), ("--judge", "oracle")):
        line = refused(capsys, "sample", bare, *more)
        assert "imported without their data" in line
        assert "--data name=SOURCE" in line
    assert run("import", "weights", source, "--to", full, *flags(SHAPES)) == 0
    assert "to sample with" not in capsys.readouterr().out
    for more in ((), ("--prompt", "a red circle")):
        assert run("sample", full, "-n", 2, "--out", tmp_path / "s.png", *more) == 0
        (tmp_path / "s.png").unlink()
    assert run("sample", full, "-n", 4, "--judge", "oracle") == 0
    assert "oracle_chance" in capsys.readouterr().out
    assert "(nearest: 'circle')" in refused(capsys, "sample", full, "--prompt", "a red circel")
    about = record.read_study(full)["data"]
    found = restored(full)
    cond, names = asked(found, full, about, 3)
    made = sample(found, about, cond, {})["image"]
    assert {tuple(x) for x in made.reshape(-1, 3)} <= {tuple(x) for x in about["palette"]}
    assert names == about["class_names"][:3]
    for folder, said, unsaid in ((bare, "import them again", "draws"), (full, "`lab sample", "import them again")):
        assert run("report", folder) == 0
        (line,) = capsys.readouterr().out.splitlines()
        assert line.startswith("weights of 'own' in the format 'native': decoder of ")
        assert "no losses to report" in line
        assert said in line
        assert unsaid not in line
        assert not (folder / "report.html").exists()
    assert run("export", "weights", full, "--to", tmp_path / "out", "--format", "native") == 0
    again, before = (load_file(p / "model.safetensors") for p in (tmp_path / "out", source))
    assert again.keys() == before.keys()
    assert all(np.array_equal(again[n], x) for n, x in before.items())


def test_data_of_other_sizes_than_the_weights_is_refused_in_one_line(tmp_path, capsys):
    source = own(tmp_path / "own", DECODER, dict(name="next_token", label_drop=0.1), open_source(SHAPES, "train", "").dims)
    ask = ("import", "weights", source, "--to", tmp_path / "in")
    for changes, said in (
        ({"size": 16}, "the weights are of side=8, which source 'shapes' gives as 16"),
        ({"skill": "count", "grid": 2}, "the weights are of classes=36"),
        ({"extras": ("tokens",)}, "which source 'shapes' does not give"),
        ({"name": "shape"}, "(nearest: 'shapes')"),
        ({"density": "dense"}, "text.positions has shape"),
    ):
        assert said in refused(capsys, *ask, *flags(SHAPES | changes)), said
    assert "--data names none; expected name=..." in refused(capsys, *ask, "--data", "size=8")
    assert not (tmp_path / "in").exists()


def test_a_published_model_of_features_is_sampled_by_those_of_an_encoded_set(tmp_path, capsys):
    """The length of its texts, which the format makes up, is that of the data."""
    theirs = {
        **{"_class_name": "PixArtTransformer2DModel", "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "in_channels": 2},
        **{"out_channels": 2, "sample_size": 4, "patch_size": 2, "caption_channels": 6, "cross_attention_dim": 16},
    }
    config = {**json.loads(json.dumps(DEFAULTS)), **pixart.Format.config(theirs)}
    program = population.build(config, config["data"])
    mine = random(program.model)
    mine |= {n: np.full_like(x, 8**-0.5) for n, x in mine.items() if n.endswith("logits")}
    (tmp_path / "pixart").mkdir()
    (tmp_path / "pixart" / "config.json").write_text(json.dumps(theirs))
    tensors.write(tmp_path / "pixart" / pixart.Format.file, invert(pixart.Format.rules(config), mine, program.model, program.dims))

    def features(batch):
        text = np.ones((len(batch["label"]), 5, 6), np.float32) * (1 + batch["label"][:, None, None])
        return {"image": batch["image"] / np.float32(255), "text": text}

    for split in ("train", "eval"):
        encode.write(encoders.Source(split), features, tmp_path / "set" / split)
    ask = ("import", "weights", tmp_path / "pixart", "--to")
    assert run(*ask, tmp_path / "bare") == 0
    assert "no prompts to sample with" in capsys.readouterr().out
    assert "imported without their data" in refused(capsys, "sample", tmp_path / "bare")
    assert run(*ask, tmp_path / "in", *flags({"name": "encoded", "path": "set"}), "--data-dir", tmp_path) == 0
    about = record.read_study(tmp_path / "in")["data"]
    assert about["dims"]["length"] == 5
    cond, _ = asked(restored(tmp_path / "in"), tmp_path / "in", about, 3)
    assert cond["text"].shape == (3, 5, 6)
    assert cond["text"][:, 0, 0].tolist() == [1, 2, 3]  # a class in turn
    assert run("sample", tmp_path / "in", "-n", 2, "--option", "steps=2", "--out", tmp_path / "s.png") == 0
    assert (tmp_path / "s.png").stat().st_size > 1000
