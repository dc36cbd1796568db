"""The coordinate check: muP is as promised in width and depth, the standard rule is not, and planted faults are named."""

import functools
import json
import re

import families
import numpy as np
import pytest
import small
import toy

from lab import axes, branches, cli, coordinates
from lab.check import Sizes, examine, lies, text
from lab.coordinates import Setting, measured
from lab.parametrization import mup, standard
from lab.population import build, described
from lab.verdict import BOUND, judge, slopes

RULES = {"mup": mup, "standard": standard}
# a check of few sizes always runs for every family; the full one is `lab check --all`
SHORT, FEW = Sizes((32, 128), ()), Setting(seeds=5)


def silent(_):
    """Says nothing."""


def quiet(of, sizes, setting, rules=RULES, **model):
    """What the check says of a family of the tests' own size."""
    batches = small.stack([families.batch(16, seed) for seed in range(setting.steps)])
    return examine(families.config(of, **model), families.dims(of), batches, sizes, setting, rules, silent)


def beyond(found):
    """Own changes whose whole interval is beyond the bound, each for itself: stricter than a verdict, which counts how many there are."""
    return {n: s for n, s in found["own"].items() if abs(s.off) - s.half > BOUND}


def scaled(result, rule):
    """Own slopes of the weights whose step muP scales with width: those that show whether a check can fail."""
    ladder = result.ladders[0]
    return [s.value for n, s in result.slopes[rule][0]["own"].items() if mup(ladder.arrows[n.rstrip("'")]).step not in (0.0, 1.0)]


QUICK = ("dit", "masked", "decoder", "two_tower")  # of the others' weights the arrows are audited in their own files


@pytest.mark.parametrize("family", [pytest.param(f, marks=[pytest.mark.slow] * (f not in QUICK)) for f in families.FAMILIES])
def test_mup_changes_do_not_drift_with_width_and_standard_ones_do(family):
    result = quiet(family, SHORT, FEW)
    assert not result.wrong
    assert not beyond(result.slopes["mup"][0])
    control = scaled(result, "standard")
    assert np.median(control) >= 0.15, control
    assert max(control) >= 0.5, control
    assert beyond(result.slopes["standard"][0])
    trained = {n for n, w in result.ladders[0].arrows.items() if not w.fixed} - {"sharpness"}  # an exponent, which no product shows
    assert {n.rstrip("'") for n in result.slopes["mup"][0]["own"]} == trained  # none overlooked


# with zero gates what grows from zero is not yet settled at the twelfth step: two of DiT's 21 weights, the bias of queries and keys and
# the modulation, had slopes of 0.25 and 0.20 under muP
@pytest.mark.slow
@pytest.mark.parametrize("zero_gates", [False, True])
def test_four_widths_and_depths_and_a_table_that_forgets_the_hidden_step(zero_gates):
    rules = {**RULES, "forgetful": toy.FAULTS["hidden learning rates unscaled"].table}
    result = quiet("dit", Sizes(), Setting(), rules, zero_gates=zero_gates)
    assert not result.wrong
    assert [round(float(np.exp(ladder.x[-1]))) for ladder in result.ladders] == [8, 4]
    assert np.median(scaled(result, "standard")) >= 0.3
    assert max(scaled(result, "forgetful")) > 0.5
    assert {"learning rate", "depth"} <= {f.kind for f in result.verdicts["standard"].faults}
    assert {f.kind for f in result.verdicts["forgetful"].faults} >= {"learning rate"}


@functools.cache
def planted():
    """The toy under muP, the standard rule and every faulty table: one program a size."""
    rules = RULES | {name: fault.table for name, fault in toy.FAULTS.items()}
    return examine(toy.config(), toy.SOURCE, toy.batches(12), Sizes((16, 32, 64), (2, 4, 8)), Setting(seeds=3), rules, silent)


def test_the_toy_is_right_in_width_and_depth_and_the_standard_rule_in_neither():
    result = planted()
    assert not result.wrong
    assert "mup: none of" in text(result)
    wide, deep = result.slopes["mup"]
    assert max(abs(s.value) for s in wide["own"].values()) < BOUND
    closers = {n for n, a in result.ladders[1].arrows.items() if a.closes}
    assert closers == {"blocks.out", "blocks.down"}
    assert all(abs(deep["own"][n].value + 1) < BOUND for n in closers)
    assert {"learning rate", "depth"} <= {f.kind for f in result.verdicts["standard"].faults}


@pytest.mark.parametrize("name", toy.FAULTS)
def test_a_fault_of_a_table_is_named_with_its_weight(name):
    fault, verdict = toy.FAULTS[name], planted().verdicts[name]
    found = {f.weight for f in verdict.faults if f.kind == fault.kind}
    assert fault.surely <= found <= fault.weights
    assert {f.kind for f in verdict.faults} == {fault.kind}  # and no other is invented
    (line,) = [t for t in text(planted()).splitlines() if t.startswith(f"{name}: ")]
    assert line.startswith(f"{name}: {fault.kind}: ")
    assert all(w in line for w in fault.surely)


@pytest.mark.parametrize("lie", toy.LIES)
def test_a_fault_of_an_arrow_is_named_with_its_weight(lie):
    sizes = Sizes((16, 32), ())
    assert lies(toy.config(), toy.SOURCE, toy.batches(1), sizes) == []
    found = lies(toy.config(lie=lie), toy.SOURCE, toy.batches(1), sizes)
    weight, kind, said = toy.LIES[lie].weight, toy.LIES[lie].kind, toy.LIES[lie].said
    assert {f.weight for f in found} == {weight}
    assert (found[0].kind, said in found[0].why) == (kind, True), found


def alarms(checks, seeds, sizes):
    """Verdicts of so many independent checks of the right model, each of so many seeds of its own."""
    setting = Setting(seeds=checks * seeds)
    every = examine(toy.config(), toy.SOURCE, toy.batches(12), sizes, setting, {"mup": mup}, silent).ladders
    verdicts = []
    for i in range(checks):
        mine = slice(i * seeds, (i + 1) * seeds)
        ladders = [
            ladder._replace(found=[{m: {n: v[:, mine] for n, v in by.items()} for m, by in f.items()} for f in ladder.found])
            for ladder in every
        ]
        verdicts.append(judge(ladders, [slopes(ladder, 0) for ladder in ladders], 0))
    return verdicts


def test_the_right_model_raises_no_alarm_over_ten_checks():
    verdicts = alarms(10, 3, Sizes((16, 48), ()))
    assert min(v.tested for v in verdicts) >= 20  # many slopes each, of which none may alarm
    assert sum(bool(v.faults) for v in verdicts) <= 1


@pytest.mark.slow
def test_the_right_model_raises_an_alarm_in_five_of_a_hundred_checks_at_most():
    verdicts = alarms(100, 4, Sizes((16, 32, 64), (2, 4, 8)))
    assert sum(bool(v.faults) for v in verdicts) <= 5, [v.faults for v in verdicts if v.faults]


def test_blocks_behind_zero_gates_learn_from_the_third_step_and_that_is_said():
    for gates, first in ((True, 3), (False, 2)):
        config = {**families.config("dit", zero_gates=gates), "base": {"width": 32}}
        batches = small.stack([families.batch(8, seed) for seed in range(6)])
        _, found = measured(config, families.dims("dit"), batches, {"mup": mup}, Setting(seeds=2, steps=6))
        wakes = {n: int(w.max()) for n, w in found["wakes"].items()}
        assert wakes["readout"] == 1
        assert {wakes[n] for n in wakes if n.startswith(("blocks.attention", "blocks.mlp"))} == {first}
        if gates:
            assert {wakes[n] for n in wakes if n.startswith("blocks.modulation.kernel")} == {2, 3}  # gates, then shifts and gains


def test_epsilon_is_told_by_what_it_takes_and_the_planted_one_is_what_it_says():
    """An epsilon of 1e-4 and one of 1e-8 beside gradients expected 1e4 times larger are the same to every number."""
    config, batches, setting = toy.config(), toy.batches(6), Setting(seeds=2, steps=6)
    config["optim"]["eps"] = 1e-4
    _, large = measured(config, toy.SOURCE, batches, {"mup": mup}, setting)
    config["optim"]["eps"] = 1e-8
    _, found = measured(config, toy.SOURCE, batches, {"mup": mup, "planted": toy.FAULTS["epsilon of 1e-4"].table}, setting)
    for n, share in large["epsilon"].items():
        np.testing.assert_allclose(found["epsilon"][n][1], share[0], rtol=0.05, atol=2e-3)
        assert found["epsilon"][n][0].max() < 1e-2
    assert max(s.mean() for s in large["epsilon"].values()) > 0.1


def test_rows_are_layers_and_slices_of_weights_and_cover_every_trained_number():
    model = build(toy.config(depth=3), toy.SOURCE).model
    rows, by_name = coordinates._rows(model), axes.weights(model)
    trained = {n: w for n, w in by_name.items() if not w.arrow.fixed}
    assert len(rows.at) == sum(np.prod(w.get_value().shape) for w in trained.values())
    assert {n: len(at) for n, at in rows.entries.items()} == {
        **{"blocks.qkv" + "'" * i: 3 for i in range(3)},
        **{f"blocks.{n}": 3 for n in ("out", "up", "bias", "down")},
        **dict.fromkeys(("patch_in", "table", "skip", "readout"), 1),
    }
    assert sorted(np.concatenate(list(rows.entries.values()))) == list(range(len(rows.size)))
    assert set(rows.size[rows.entries["blocks.qkv'"]]) == {16 * 16}


@pytest.mark.parametrize("family", families.FAMILIES)
def test_every_family_says_the_truth_about_what_closes_its_branches(family):
    for gates in ({"zero_gates": True}, {"zero_gates": False}) if "zero_gates" in families.FAMILIES[family][0] else ({},):
        assert not lies(families.config(family, **gates), families.dims(family), small.stack([families.batch(2)]), Sizes((32,), ()))
    import jax

    program = build(families.config(family), families.dims(family))
    key = jax.eval_shape(lambda: jax.random.key(0))
    found, products = branches.closers(lambda p, k, b: program.loss(p, k, b).sum(), described(program), key, families.batch(2))
    inside = {n: w.arrow for n, w in axes.weights(program.model).items() if w.arrow.inside}
    assert found == {n for n, a in inside.items() if a.closes}
    assert set(products.values()) == {16}  # logits are products over head_dim


EXPERIMENT = '''"""Does it drift?"""
import sys
sys.path.insert(0, {tests!r})
import toy
from ml_collections import ConfigDict


def get_config():
    c = ConfigDict()
    c.model = {{**toy.config(depth=1)["model"], "patch": 4, "lie": {lie!r}}}
    c.base = dict(width=16)
    c.objective = dict(name="flow", time="logit_normal", label_drop=0.1)
    c.data = dict(name="mixture", size=8, channels=1)
    c.train = dict(batch=8)
    return c
'''
SHORTLY = ["--widths", "16,32", "--depths", "1", "--seeds", "2", "--steps", "6"]


@pytest.mark.parametrize("lie, code", [("", 0), ("a bias filed as hidden", 2)])
def test_the_command_says_its_verdict_and_leaves_slopes_and_a_figure(lie, code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(EXPERIMENT.format(tests=str(toy.HERE), lie=lie))
    assert cli.main(["check", "mine.py", *SHORTLY]) == code
    out, err = capsys.readouterr()
    assert re.search(r"^blocks\.qkv' +[+-]\d\.\d\d ± \d\.\d\d", out, re.MULTILINE)
    assert ("arrow of blocks.bias: filed as hidden: " in out) == bool(lie)
    assert "check-mine.json" in out
    assert "width 32, depth 1: 6 steps of 4 trials" in err
    told = json.loads((tmp_path / "check-mine.json").read_text())
    (row,) = told["rows"]
    assert told["versions"]["jax"]
    assert (told["widths"], told["seeds"], row["width"]["sizes"]) == ([16, 32], 2, [1.0, 2.0])
    assert bool(row["arrows"]) == bool(lie)
    at = row["width"]["entries"].index("readout")
    assert re.fullmatch(r"-?\d\.\d{3} \d+\.\d{3}", row["width"]["mup"]["own"][at])
    assert (tmp_path / "check-mine.png").stat().st_size > 5000


@pytest.mark.parametrize(
    "arguments",
    [[], ["x.py", "--all"], ["x.py", "--widths", "64,32"], ["x.py", "--depths", "two"], ["x.py", "--seeds", "1"], ["x.py", "--steps", "5"]]
    + [["x.py"]],
)
def test_a_bad_command_is_one_line(arguments, capsys):
    assert cli.main(["check", *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1
