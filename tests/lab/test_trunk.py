"""Horizons from one trunk by `lab run`: each trial is what it would have been alone, resumed and added as well, and less is computed."""

import re
import shutil

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from test_halving import in_parts, train
from test_study import JUDGE, LINEAR, TESTS, mistake, run

from lab import cli, optim, plan, population, record, study, trunk
from lab.errors import UserError
from lab.experiment import load
from lab.population import Interrupt

TEXT = '''"""How does loss fall with the horizon?"""
from ml_collections import ConfigDict
def get_config():
    c = ConfigDict()
    c.model = dict({model})
    c.base = dict(width=32)
    c.objective = dict(name="flow", time="logit_normal", label_drop=0.1)
    c.data = dict(name={source!r}, n=128)
    c.optim = dict(schedule="wsd", warmup=3, ema=0.9)
    c.train = dict(batch=16, log_every=1)
    c.eval = dict(examples=32, batch=16, every=5)
    c.sample = dict(n=2, options=dict(steps=2, guidance=2.0, method="euler"))
    c.judge = dict(names=({judge!r},), every=4, n=5)
    c.run = dict(trunk=True)
    return c
def sweep():
    for steps in {horizons}:
        for k in {rates}[:: -1 if steps == 20 else 1]:  # so that trials stand in another order
            yield {{"train.steps": steps, "optim.lr": 2.0**k}}
'''
HORIZONS, RATES = (12, 20, 32), (-8, -7, -6, 12)  # the last rate diverges
ALONE = "--config.run.trunk=False"
SPENT = 12 + (20 - 10) + (32 - 17)  # decays begin at 10, 17 and 26


def experiment(folder, horizons=HORIZONS, rates=RATES):
    path = folder / "tiny.py"
    path.write_text(TEXT.format(source=str(TESTS / "waves.py"), model=LINEAR, judge=JUDGE, horizons=horizons, rates=rates))
    return path


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The folders of one study, from a trunk and each horizon alone."""
    folder = tmp_path_factory.mktemp("pair")
    assert run(experiment(folder), folder / "trunk") == 0
    return folder / "trunk" / "tiny", train(experiment(folder), folder / "alone", ALONE)


@pytest.fixture
def again(pair, tmp_path):
    """A copy of the folder of that study for a test that writes."""
    shutil.copytree(pair[0], tmp_path / "tiny")
    return tmp_path / "tiny"


def trained(folder):
    """{horizon: (step it began at, steps trained in the last attempt)}."""
    told, out = record.read_study(folder), {}
    for name, pop in told["populations"].items():
        here = record.read_json(folder / name / "timing.json")["steps_here"]
        out[told["trials"][pop["trials"][0]]["steps"]] = pop.get("trunk", {"start": 0})["start"], here
    return dict(sorted(out.items()))


class After(Interrupt):
    """An interrupt that is asked for after some steps."""

    def __init__(self, steps):
        self.left = steps

    @property
    def asked(self):
        self.left -= 1
        return self.left < 0


def of(folder, horizons):
    """Results of the trials of some horizons."""
    table, steps = record.results(folder), {i: t["steps"] for i, t in record.read_study(folder)["trials"].items()}
    return table.filter([steps[i] in horizons for i in table["trial"].to_pylist()])


@pytest.mark.parametrize("warmup", [0, 1, 30])
@pytest.mark.parametrize("decay", [0.0, 0.1, 0.2, 1 / 3, 1.0])
def test_only_wsd_is_the_same_of_a_longer_horizon_until_it_decays(warmup, decay):
    rates = {name: [optim.schedule(name, n, warmup, decay)(np.arange(n)) for n in (100, 170)] for name in ("wsd", "cosine", "linear")}
    at = optim.decays(100, warmup, decay)
    assert warmup <= at < 100
    short, long = rates.pop("wsd")
    assert np.array_equal(short[: at + 1], long[: at + 1])  # the last at the peak yet
    assert np.all(short[at + 1 :] < 1)
    assert optim.decays(170, warmup, decay) >= at
    assert all(not np.array_equal(a[warmup + 1 : 100], b[warmup + 1 : 100]) for a, b in rates.values())


def test_the_last_state_that_all_trials_have_is_begun_from():
    left = {"a": (10, ["x", "y"]), "b": (10, ["z"]), "c": (20, ["x", "y"]), "d": (30, ["x", "y", "z"])}
    assert trunk.start(["x", "y"], 25, left) == {"start": 20, "from": ["c"]}
    assert trunk.start(["x", "z"], 25, left) == {"start": 10, "from": ["a", "b"]}
    assert trunk.start(["y"], 30, left) == {"start": 30, "from": ["d"]}
    assert trunk.start(["x"], 9, left) == trunk.start(["w"], 50, left) == {}


def test_every_trial_is_bitwise_what_it_would_have_been_alone(pair):
    """Losses, norms, evaluations, what judges say, FLOPs and examples, of every step, and the weights that are kept."""
    one, other = (record.results(f) for f in pair)
    assert one.num_rows == 4 * (13 + 21 + 33)
    assert one.equals(other)
    assert record.status(pair[0]) == record.status(pair[1])
    assert sorted(record.status(pair[0]).values()) == ["diverged"] * 3 + ["done"] * 9
    for name in record.read_study(pair[0])["populations"]:
        kept, same = ({p.name: p for p in (f / name / "weights").iterdir() if p.name.isdigit()} for f in pair)
        assert kept.keys() == same.keys()
        stores = [population.Checkpoints(f / name / "weights") for f in pair]
        digests = [s._meta(int(next(iter(kept))))["digests"] for s in stores]
        assert digests[0] == digests[1]
        assert digests[0]
        for s in stores:
            s.close()


def test_less_is_computed_and_it_is_told(pair, capsys):
    assert trained(pair[1]) == {12: (0, 12), 20: (0, 20), 32: (0, 32)}
    assert trained(pair[0]) == {12: (0, 12), 20: (10, 10), 32: (17, 15)}
    share = f"{SPENT / sum(HORIZONS):.0%}"
    assert cli.main(["plan", str(pair[0].parent.parent / "tiny.py")]) == 0
    assert re.search(rf"run.trunk leaves these of \S+ \({share}\)", capsys.readouterr().out)
    page = (pair[0] / "report.html").read_text()
    assert f"({share}) were computed" in page
    assert "trunk" not in " ".join(map(str, record.read_study(pair[1])["populations"].values()))


@pytest.fixture
def compiled(tmp_path):
    """Steps and evaluations that XLA has compiled, each as often as it did: all are kept in a cache of the test's own."""
    keys = {"jax_compilation_cache_dir": str(tmp_path / "xla"), "jax_persistent_cache_min_compile_time_secs": 0.0}
    before = {k: getattr(jax.config, k) for k in keys}

    def use(settings):
        compilation_cache.reset_cache()
        for k, v in settings.items():
            jax.config.update(k, v)

    use(keys)
    yield lambda: len(list((tmp_path / "xla").glob("jit_laid-*-cache")))
    use(before)


def test_a_plan_counts_what_the_run_then_compiles_and_computes(tmp_path, compiled, capsys):
    """Two horizons are two populations and one program; of two widths test_study.py has the plan say two."""
    path, folder = experiment(tmp_path, horizons=(6, 10), rates=(-8, -7)), tmp_path / "runs" / "tiny"
    path.write_text(re.sub(r"names=\(.*?\)", "names=()", path.read_text()).replace("c.sample = dict(n=2", "c.sample = dict(n=0"))
    with Interrupt() as interrupt:
        study.Study(load(str(path)), folder).run(interrupt)
    assert compiled() == 2  # a step and an evaluation
    rows = plan.plan(study.Study(load(str(path))))
    assert "2 populations, 1 compile," in plan.table(rows)
    assert compiled() == 2
    here = {n: record.read_json(folder / n / "timing.json")["steps_here"] for n in record.read_study(folder)["populations"]}
    each = {n: record.read_json(folder / n / "card.json")["flops_per_example"] for n in here}
    assert {r["population"]: r["flops"] for r in rows} == pytest.approx({n: each[n] * 16 * here[n] * 2 for n in here})
    assert cli.main(["plan", str(path), "--workdir", str(folder.parent)]) == 0
    assert capsys.readouterr().out == f"2 of 2 populations are done in {folder} and left out\n"


@pytest.mark.slow
def test_a_stopped_study_goes_on_with_the_same_records(pair, tmp_path):
    """Interrupted every five steps, so within every horizon, before and after it leaves its states."""
    folder = tmp_path / "parts" / "tiny"
    assert in_parts(experiment(tmp_path), folder) >= 6
    assert record.results(folder).equals(record.results(pair[0]))
    assert {n: p.get("trunk") for n, p in record.read_study(folder)["populations"].items()} == {
        n: p.get("trunk") for n, p in record.read_study(pair[0])["populations"].items()
    }


def test_a_study_cut_off_goes_on_with_the_same_records(pair, tmp_path, monkeypatch):
    """Dead as the first horizon leaves its states, then in the second before anything of its own is saved."""

    class Cut(Exception):
        pass

    def cut(*_, **__):
        raise Cut

    path, folder = experiment(tmp_path), tmp_path / "tiny"
    with monkeypatch.context() as m:
        m.setattr(population, "_leave", cut)
        with pytest.raises(Cut):
            train(path, tmp_path)
    assert sorted(record.status(folder).values()) == ["interrupted"] * 4 + ["missing"] * 8
    with monkeypatch.context() as m:
        leave = population._leave
        m.setattr(population, "_leave", lambda folder, step, state: cut() if step > 10 else leave(folder, step, state))
        with pytest.raises(Cut):
            train(path, tmp_path)
    states = list(record.status(folder).values())
    assert [states.count(s) for s in ("done", "diverged", "interrupted", "missing")] == [3, 1, 4, 4]
    assert record.results(train(path, tmp_path)).equals(record.results(pair[0]))


def test_a_horizon_added_later_begins_from_what_is_there(pair, tmp_path):
    """In between and beyond; where states are gone, or damaged, it begins before them, or from scratch."""
    path, folder = experiment(tmp_path, horizons=(12, 32)), tmp_path / "tiny"
    train(path, tmp_path)
    assert trained(folder) == {12: (0, 12), 32: (10, 22)}
    old = {p: p.stat().st_mtime_ns for p in folder.glob("*/rows.parquet")}
    train(experiment(tmp_path, horizons=(20, 32)), tmp_path)  # 12 is wanted no more, and yet of use
    assert trained(folder) == {12: (0, 12), 20: (10, 10), 32: (10, 22)}
    assert all(p.stat().st_mtime_ns == t for p, t in old.items())
    assert of(folder, HORIZONS).equals(of(pair[1], HORIZONS))

    name = {t["steps"]: t["population"] for t in record.read_study(folder)["trials"].values()}
    shutil.rmtree(folder / name[32] / "trunk")
    for part in (folder / name[20] / "trunk").glob("**/*.safetensors"):
        part.write_bytes(bytes(part.stat().st_size))
    path = experiment(tmp_path, horizons=(12, 20, 32, 36))
    with pytest.raises(UserError, match=r"are gone or damaged; restore .*trunk', or run the same command again"):
        train(path, tmp_path)
    train(path, tmp_path)
    assert trained(folder)[36] == (10, 26)


def test_states_are_taken_from_several_populations_in_the_order_of_the_trials(pair, tmp_path):
    """Of two populations of two trials each into one of four, which is another program, so to rounding."""
    train(experiment(tmp_path, horizons=(12,)), tmp_path, "--config.run.chunk=2")
    folder = train(experiment(tmp_path, horizons=(12, 20)), tmp_path)
    told = record.read_study(folder)["populations"]
    assert [len(p["trunk"]["from"]) for p in told.values() if "trunk" in p] == [2]
    mine, alone = (of(f, (20,)).to_pylist() for f in (folder, pair[1]))
    assert len(mine) == len(alone) == 4 * 21
    for r, other in zip(mine, alone, strict=True):
        assert r.keys() == other.keys()
        for k in ("loss", "grad_norm", "eval_loss", "eval_ema", "contrast"):
            assert r[k] == (other[k] if other[k] is None else pytest.approx(other[k], rel=1e-4)), (k, r, other)


def test_states_that_are_gone_are_trained_anew(again, tmp_path):
    for kept in again.glob("*/trunk"):
        shutil.rmtree(kept)
    train(experiment(tmp_path, horizons=(*HORIZONS, 36)), tmp_path)
    assert trained(again) == {12: (0, 12), 20: (10, 10), 32: (17, 15), 36: (0, 36)}


@pytest.mark.slow
def test_what_began_from_a_trunk_ends_so_without_it(pair, tmp_path):
    """`run` is no part of a study: one interrupted goes on from its own states whatever the key now says."""
    path, folder = experiment(tmp_path), tmp_path / "tiny"
    with pytest.raises(population.Preempted):
        study.Study(load(str(path)), folder).run(After(12 + 4))
    train(path, tmp_path, ALONE)
    assert trained(folder)[32] == (0, 32)
    assert record.results(folder).equals(record.results(pair[0]))
    assert sorted(p.get("trunk", {"start": 0})["start"] for p in record.read_study(folder)["populations"].values()) == [0, 0, 10]


def test_what_cannot_share_is_one_line(tmp_path, capsys):
    path = str(experiment(tmp_path))
    for overrides, named in (
        (["optim.schedule=cosine"], "optim.schedule='cosine' is that of the whole run, so horizons share no steps; expected 'wsd'"),
        (["optim.schedule=constant"], "optim.schedule='constant'"),
        (
            ["transfer.horizon_rule=inverse_sqrt", "transfer.base_batch=16", "transfer.base_steps=12"],
            "transfer.horizon_rule='inverse_sqrt' changes the learning rate with train.steps",
        ),
        (["run.halving.at=(0.5,)"], "run.halving.at=(0.5,) stops trials"),
        (["run.trunk=perhaps"], "run.trunk"),
    ):
        line = mistake(capsys, "run", path, "--workdir", str(tmp_path), *(f"--config.{o}" for o in overrides))
        assert named in line, line
