"""Every optimizer in populations and studies: traced numbers, checkpoints, placement, memory, and what a config may say of it."""

import hashlib
import json

import jax
import numpy as np
import pytest
import small

from lab import axes, cli, find, restore
from lab.checkpoint import Checkpoints
from lab.data.loader import held_out
from lab.errors import UserError
from lab.experiment import DEFAULTS, load
from lab.optim import own
from lab.population import Population, Trial, hypers, state_names
from lab.sampling import restored
from lab.study import Study
from lab.trials import _fitting, expand, pack, shape_key
from sharding import mesh, place

NAMES = find.names("lab.optimizers")
SOURCE = small.Source(64, side=8)
RATE = {"sgd": 2.0**-4, "adafactor": 2.0**-4}
MODEL = dict(name="tests/residual.py", width=32, depth=2)


def trials(name, points=({},), **changes):
    """Trials of the residual MLP at twice its base width, two points apart in what is traced."""
    changes = {"base": dict(width=16), "model": MODEL, "optim.name": name, "optim.lr": RATE.get(name, 2.0**-8), **changes}
    return [Trial(f"t{i}", "", small.config(**{**changes, **p}), p) for i, p in enumerate(points)]


def points(name):
    """Two points that differ in everything that this optimizer has traced."""
    config = {**DEFAULTS["optim"], "name": name}
    numbers = {k: v for k, v in config.items() if k in find.arguments(find.module("lab.optimizers", name).Optimizer)} | own(config)[0]
    moved = {f"optim.{k}": 0.7 * v for k, v in numbers.items()}
    rate = RATE.get(name, 2.0**-8)
    return [
        {},
        {**moved, "optim.lr": rate / 2, "optim.weight_decay": 0.5, "optim.clip": 0.5, "seed": 1, "parametrization.name": "standard"},
    ]


class Runner:
    """A population, compiled once."""

    def __init__(self, group):
        self.pop = Population(group, SOURCE, held_out(group[0].config, SOURCE))
        self.start = self.pop.init()
        self.pop.compile(self.start)

    def begin(self, group=None):
        """A new carry; of other trials than before, where they are given, by the same program."""
        if group:
            self.pop.hyper = self.pop.place(hypers(self.pop.program, group, sorted({t.config["seed"] for t in group})))
        return self.pop.init()

    def train(self, carry, steps, seeds):
        """The carry after the steps."""
        for n in steps:
            batches = [small.batch(16, 100 * s + n, SOURCE) for s in seeds]
            carry, _ = self.pop.step(carry, self.pop.hyper, self.pop.put({k: np.stack([b[k] for b in batches]) for k in batches[0]}))
        return carry


def same(a, b):
    """Whether two states are equal bit for bit."""
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_population_equals_its_single_runs_and_goes_on_bitwise_from_a_checkpoint(name, tmp_path):
    both = trials(name, points(name))
    two, one = Runner(both), Runner(both[:1])
    state = two.pop.state(whole := two.train(two.start, range(4), (0, 1)))
    # what a run that was stopped after two steps does
    store = Checkpoints(tmp_path)
    store.save(2, two.pop.state(two.train(two.begin(), range(2), (0, 1))))
    store.wait()
    found = store.restore(two.pop.state(two.begin()))
    store.close()
    assert same(two.train(two.pop.carry(found[1], whole), range(2, 4), (0, 1)), whole)
    assert not same(two.train(two.begin(), range(2, 4), (0, 1)), whole)  # the control: without what the optimizer kept
    moved = []
    for i, trial in enumerate(both):
        alone = one.pop.state(one.train(one.begin([trial]), range(4), (i,)))
        for x, y in zip(axes.values(alone.params), axes.values(state.params), strict=True):
            np.testing.assert_allclose(x[0], y[i], rtol=2e-4, atol=2e-5)
        moved.append(np.concatenate([np.ravel(x) for x in axes.values(alone.params)]))
    assert np.abs(moved[0] - moved[1]).max() > 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_what_is_kept_of_a_weight_lies_as_the_weight_does(name):
    pop = Population(trials(name), SOURCE, held_out(trials(name)[0].config, SOURCE))
    shapes, where = pop._shapes, mesh.mesh({"tensor": 2})
    names = state_names(shapes)
    laid = place.shardings(names, shapes, where, {"embed": ("tensor",)})
    for part in (laid.params, laid.opt):
        specs = {str(x.spec) for x in jax.tree.leaves(part)}
        # Adafactor keeps rows and columns, which have no name and are small
        assert any("tensor" in s for s in specs) == (part is laid.params or name != "adafactor"), specs


def test_the_memory_of_a_trial_is_told_by_what_its_optimizer_keeps():
    """Beside the weights and their average: two moments of Adam's, one of SGD's, rows and columns of Adafactor's."""
    fitting = {n: _fitting(trials(n)[0], SOURCE.dims) for n in ("adamw", "sgd", "adafactor")}
    np.testing.assert_allclose(fitting["sgd"] / fitting["adamw"], 4 / 3, rtol=0.01)
    np.testing.assert_allclose(fitting["adafactor"] / fitting["adamw"], 4 / 2, rtol=0.1)


# ---- configs

TEXT = '''"""Which optimizer?"""
from ml_collections import ConfigDict
def get_config():
    c = ConfigDict()
    c.model = dict(name="dit", width=32, depth=1, head_dim=16, mlp_ratio=2, patch=4, qk_norm=False, zero_gates=True)
    c.base = dict(width=32)
    c.objective = dict(name="flow", time="logit_normal", label_drop=0.1)
    c.data = dict(name="mixture", size=8, channels=1)
    c.optim = dict({optim})
    return c
def sweep():
    yield from {points}
'''


def written(folder, optim="", points="[{}]"):
    """An experiment file."""
    path = folder / "optimizers.py"
    path.write_text(TEXT.format(optim=optim, points=points))
    return str(path)


@pytest.mark.parametrize(
    "optim, points, said",
    [
        ('name="sgd", b2=0.5', "[{}]", ["optim.b2=0.5", "'sgd'", "b1"]),
        ("b2=0.5", '[{"optim.name": "lion"}, {"optim.name": "sgd"}]', ["optim.b2=0.5", "'sgd'"]),
        ('name="lion", eps=1e-6', "[{}]", ["optim.eps", "'lion'", "b1, b2"]),
        ('name="muon", momntum=0.9', "[{}]", ["optim.momntum=0.9", "'momentum'"]),
        ("momentum=0.9", "[{}]", ["optim.momentum=0.9", "'adamw'"]),
        ("lrr=0.1", "[{}]", ["optim.lrr=0.1", "'lr'"]),
        ('name="muon", momentum="big"', "[{}]", ["optim.momentum='big'", "float"]),
        ('name="lyon"', "[{}]", ["'lyon'", "'lion'"]),
        ('name="./own.py"', "[{}]", ["optim.power", "missing"]),
        ("", '[{"optim.name": "adam_atan2", "optim.eps": 0.1}]', ["optim.eps=0.1", "'adam_atan2'"]),
        ('name="lion"', '[{"parametrization.eps": "fixed"}]', ["parametrization.eps='fixed'", "'lion'", "no epsilon"]),
    ],
)
def test_a_key_that_the_optimizer_does_not_read_is_one_line(tmp_path, monkeypatch, capsys, optim, points, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text("class Optimizer:\n    def __init__(self, power: float):\n        pass\n")
    assert cli.main(["audit", written(tmp_path, optim, points)]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("lab: ")]
    assert all(s in line for s in said), line


def test_muon_wants_a_width_that_has_a_base():
    group = trials("muon", base={})
    with pytest.raises(UserError, match=r"optim.name='muon'.*config.base"):
        Population(group, SOURCE, held_out(group[0].config, SOURCE))


def test_numbers_of_an_optimizers_own_are_traced_and_its_name_is_not(tmp_path):
    several = '[{"optim.name": n, **m} for n in ("muon", "lion") for m in ({"optim.lr": 0.1}, {"optim.b1": 0.5})]'
    more = '[{"optim.name": "muon", "optim.momentum": m, "optim.adam_ratio": 0.5} for m in (0.9, 0.8)]'
    group = expand(load(written(tmp_path, "", f"{several} + {more}")), "")
    assert [t.arm for t in group] == ["mup muon"] * 2 + ["mup lion"] * 2 + ["mup muon"] * 2
    assert [len(g) for g in pack(group, {"image": 8, "channels": 1, "classes": 4})] == [4, 2]
    assert len({shape_key(t) for t in group}) == 2
    assert len({t.id for t in group}) == 6


def test_a_trial_of_adamw_is_the_one_it_was_before_it_had_a_name(tmp_path):
    (trial,) = expand(load(written(tmp_path, "b2=0.95")), "print")
    kept = {k: v for k, v in trial.config.items() if k not in ("run", "sample", "judge", "transfer", "init")}
    kept["eval"] = {k: v for k, v in kept["eval"].items() if k != "metric"}
    kept["parametrization"] = {"name": "mup", "alpha": 1.0}
    kept["optim"] = {k: v for k, v in kept["optim"].items() if k != "name"}
    kept["train"] = {k: kept["train"][k] for k in ("steps", "batch", "log_every", "dtype", "precision")}
    text = json.dumps([restore.NUMBERS, kept, "print", [None] * 3], sort_keys=True, default=list)
    assert trial.id == hashlib.sha256(text.encode()).hexdigest()[:12]
    (other,) = expand(load(written(tmp_path, 'b2=0.95, name="lion"')), "print")
    assert other.id != trial.id


def test_a_study_of_before_goes_on(tmp_path):
    """study.json and config.json without the name: the trials are the same, and weights can be sampled."""
    path = written(tmp_path, "")
    path = tmp_path / "optimizers.py"
    path.write_text(
        path.read_text().replace(
            "    return c",
            "    c.train = dict(steps=2, batch=8)\n    c.eval = dict(examples=8, batch=8)\n    c.sample = dict(n=0)\n    return c",
        )
    )
    assert cli.main(["run", str(path), "--workdir", str(tmp_path)]) == 0
    folder = tmp_path / "optimizers"
    for file in (folder / "study.json", next(folder.glob("*/config.json"))):
        told = json.loads(file.read_text())
        del told.get("config", told)["optim"]["name"]
        file.write_text(json.dumps(told))
    again = Study(load(str(path)), folder)
    assert set(again.trials) == set(again.known["trials"])
    assert restored(folder).config["optim"]["name"] == "adamw"
    with pytest.raises(UserError, match=r"its optim\.name is 'adamw', this one's is 'lion'"):
        Study(load(str(path), ["--config.optim.name=lion"]), folder)
