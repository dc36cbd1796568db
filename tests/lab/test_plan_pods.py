"""Plans of pods: the lab's own step compiled for chips that are not here, and the search for a layout that fits."""

import importlib.util
import json
import sys
import textwrap
from pathlib import Path

import jax
import pytest

from lab import cli, layouts, pods, pods_text
from lab.data import encoded
from lab.devices import CHIPS
from lab.errors import UserError
from lab.experiment import load
from lab.layouts import Guess, Layout, Seconds
from lab.models import shared
from lab.population import build
from lab.population import placement as placed
from sharding import aot

ROOT = Path(__file__).resolve().parents[2]
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="the TPU compiler is not installed: pip install '.[plan]'"
)

SMALL = """
    from ml_collections import ConfigDict

    def get_config():
        c = ConfigDict()
        c.model = dict(name="dit", width=64, depth=3, head_dim=32, mlp_ratio=2, patch=1, qk_norm=False, zero_gates=True)
        c.base = dict(width=64)
        c.objective = dict(name="flow", time="uniform", label_drop=0.1)
        c.data = dict(name="encoded", path="nowhere", shapes=dict(image=(16, 16, 4)), classes=10)
        c.train = dict(steps=1000, batch=8, dtype="bfloat16", precision="default")
        return c

    def sweep():
        for k in (-8, -7):
            yield {"optim.lr": 2.0**k, "model.width": 32}
            yield {"optim.lr": 2.0**k}
"""


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.py"
    path.write_text(textwrap.dedent(SMALL))
    return path


def work_of(path, **changes):
    trials, dims, inputs, _ = pods.largest(load(str(path), [f"--config.{k}={v}" for k, v in changes.items()]))
    return layouts.work(build(trials[0].config, dims), trials[:1], inputs), trials


def test_the_population_of_most_parameters_is_planned(small):
    trials, dims, inputs, alike = pods.largest(load(str(small)))
    assert {t.config["model"]["width"] for t in trials} == {64}
    assert (len(trials), alike) == (1, 2)
    assert dims == {"classes": 10, "image": 16, "channels": 4}
    assert inputs["image"][0] == (16, 16, 4)


def test_estimates_follow_remat_batch_and_mesh(small):
    job, _ = work_of(small)
    assert job.layers == 3
    stream = 3 * 256 * 64 * 2  # layers, tokens, width, bytes
    assert stream <= job.kept["block"] < 3 * stream < job.kept["dots"] < job.kept["none"]
    assert job.flops["none"] < job.flops["block"] < 1.4 * job.flops["none"]  # a forward more is a third

    def of(**mesh):
        return layouts.state_bytes(job, mesh)

    whole, divided = of(data=4), of(fsdp=4)
    assert whole["weights"] == job.weight_bytes
    assert whole["optimizer"] >= 2 * whole["weights"]
    assert divided["weights"] < 0.3 * whole["weights"]
    assert divided["batch"] == whole["batch"] == sum(x.size * x.dtype.itemsize for x in job.inputs.values()) // 4

    def temporaries(remat="none", accumulate=1, **mesh):
        return layouts.temporary_bytes(job, Layout(mesh, remat, accumulate), of(**mesh)["weights"])

    assert temporaries(data=2) > temporaries(data=4) > temporaries("block", data=4)
    assert temporaries(fsdp=2) > temporaries(fsdp=2, tensor=2)


def test_candidates_use_all_chips_and_divide_what_they_divide(small):
    job, _ = work_of(small)
    found = list(layouts.candidates(job, 8, 1))
    assert len(found) == len({str(x) for x in found})
    assert {x.remat for x in found} == set(shared.REMAT)
    for x in found:
        assert jax.numpy.prod(jax.numpy.array(list(x.mesh.values()))) == 8
        assert 8 % (x.mesh.get("data", 1) * x.mesh.get("fsdp", 1) * x.accumulate) == 0
        assert x.mesh.get("tensor", 1) <= 2
    two = list(layouts.candidates(job, 8, 2))
    assert two
    assert all(any(x.mesh.get(a, 1) % 2 == 0 for a in ("data", "fsdp")) for x in two)
    assert not list(layouts.candidates(job, 1024, 1))  # more chips than examples, heads and tokens can share


@pytest.mark.parametrize(
    "own",
    [
        "",
        "mesh=dict(fsdp=-1)",
        "mesh=dict(tensor=2), sharding='tensor'",
        "sharding='fsdp', rules=dict(mlp='fsdp', embed='')",
        "mesh=dict(data=2), rules=dict(mlp='tensor', heads='')",
    ],
)
def test_the_printed_overrides_run_as_planned(small, own):
    """Under every layout, whatever mesh and rules the experiment has of its own."""
    small.write_text(textwrap.dedent(SMALL).replace("return c", f"c.run = dict({own})\n    return c"))
    job, _ = work_of(small)
    devices = jax.devices()
    found = {str(x.mesh): x for x in layouts.candidates(job, len(devices), 1)}
    assert {"fsdp", "tensor"} & {a for x in found.values() for a in x.mesh}
    for x in found.values():
        flags = x.flags(job.placing(x.mesh)[0]).split()
        run = load(str(small), flags).config.run.to_dict()
        planned = pods.placement(job, x, devices)
        assert placed(run, 1) == planned
        assert ("heads" in planned.rules) == ("tensor" in x.mesh and "heads" not in own)


def test_a_mesh_that_an_experiment_names_is_told_in_whole(small):
    def own(**run):
        config = load(str(small)).config.to_dict()["run"]
        return pods.own({**config, **run, "mesh": {**config["mesh"], **run.get("mesh", {})}}, on)

    on = pods.Pod("v5e:2x1", 1, "v5e", CHIPS["v5e"], jax.devices())
    assert own() == {}
    assert own(mesh={"fsdp": -1, "tensor": 1}) == own(sharding="fsdp") == own(sharding="fsdp+tensor") == {"fsdp": 2}
    for run, said in (
        ({"mesh": {"fsdp": 3}}, "run.mesh={'fsdp': 3} does not cover 2 devices"),
        ({"mesh": {"tensor": 2}, "sharding": "fsdp"}, "run.mesh lacks"),
        ({"slices": 2}, "run.slices=2"),
    ):
        with pytest.raises(UserError, match=said):
            own(**run)


def test_a_search_learns_from_what_does_not_fit():
    def guess(gib, seconds):
        return Guess(Layout({"fsdp": 4}, "none", int(gib)), gib * 2**30, Seconds(seconds, 0, 0, 0))

    found = [guess(10, 1.0), guess(9, 2.0), guess(4, 3.0), guess(1, 4.0)]
    tried = []

    def attempt(g):  # each needs twice what is estimated
        needed = 2 * g.bytes
        tried.append({"layout": g.layout._asdict(), "needed": needed, "fits": needed < 16 * 2**30})
        return {"layout": g.layout} if tried[-1]["fits"] else None

    assert pods.search(found, 16 * 2**30, attempt, tried)["layout"].accumulate == 4  # not 9, which the first has shown to be too large
    assert [t["layout"]["accumulate"] for t in tried] == [10, 4]


def test_a_roofline_of_known_numbers(small):
    job, _ = work_of(small)
    chip = CHIPS["v5e"]
    layout = Layout({"data": 2, "fsdp": 4}, "none", 1)
    state = layouts.state_bytes(job, layout.mesh)
    moved = [layouts.Collective("all-reduce", ("data",), 1, 0, 10**9), layouts.Collective("all-gather", ("fsdp",), 1, 0, 2 * 10**9)]
    one, two = (layouts.seconds(job, layout, "v5e", chip, slices, state, moved) for slices in (1, 2))
    assert one.compute == pytest.approx(8 * job.flops["none"] / 8 / 197e12)
    assert one.slice == pytest.approx(3e9 / 200e9)
    assert one.network == 0
    assert two.slice == pytest.approx(2e9 / 200e9)
    assert two.network == pytest.approx(1e9 / 3.125e9)
    assert one.least == max(one)
    assert one.most == sum(one)


def counted(bytes_of):
    return sum(bytes_of[k] for k in ("weights", "optimizer", "average", "batch", "hyperparameters"))


def test_recorded_plans_give_room_to_what_was_counted():
    """Arrays as large as a pod's have hardly any padding; those of the small step below are of less than the compiler's tiles."""
    rows = json.loads((ROOT / "benchmarks" / "results" / "plans.json").read_text())
    assert any(r["experiment"] == "mmdit_18b" and r["topology"] == "v5p:8x8x8" for r in rows)
    for r in rows:
        assert (ROOT / "experiments" / "pods" / f"{r['experiment']}.py").is_file()
        if r["fits"]:
            assert r["bytes"]["arguments"] == pytest.approx(counted(r["bytes"]), rel=0.02)
            assert r["bytes"]["peak"] <= r["memory"]


@needs_libtpu
def test_a_small_step_is_compiled_for_a_pod_once(small, tmp_path, monkeypatch):
    experiment, on = load(str(small), ["--config.run.chunk=1"]), pods.pod("v5e:2x2")
    told = pods.plan(experiment, on, {"fsdp": 2, "tensor": 2}, price=1.2, cache=tmp_path / "plans")
    job, _ = work_of(small)
    bytes_of, text = told["bytes"], pods_text.text(told)
    assert told["fits"]
    assert told["parameters"] * 4 == job.weight_bytes - 4 * 3  # a scale of logits a layer stands beside them, untrained
    assert counted(bytes_of) == sum(layouts.state_bytes(job, {"fsdp": 2, "tensor": 2}).values()) <= bytes_of["arguments"] < bytes_of["peak"]
    assert {a for c in told["collectives"] for a in c["axes"]} == {"fsdp", "tensor"}
    assert told["run_cost"][0] == pytest.approx(1.2 * 4 * told["step_s"][0] * 1000 / 3600)
    assert "fits" in text
    assert "chip-hours" in text
    lowered, _ = pods.lowered(job, Layout({"fsdp": 2, "tensor": 2}, "none", 1), on)
    assert "tpu_custom_call" in lowered.as_text()  # attention by the platform's kernel

    def never(*args):
        raise AssertionError("compiled again")

    monkeypatch.setattr(aot, "cost", never)
    again = pods.plan(experiment, on, {"fsdp": 2, "tensor": 2}, cache=tmp_path / "plans")
    assert again["bytes"] == bytes_of
    assert again["collectives"] == told["collectives"]


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
@pytest.mark.parametrize("remat", ["none", "block"])
def test_kernels_compile_for_every_chip_inside_a_sharded_step(small, topology, remat, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")  # those of the tests, which the TPU's compiler does not know
    job, _ = work_of(small)
    lowered, _ = pods.lowered(job, Layout({"fsdp": 2, "tensor": 2}, remat, 2), pods.pod(topology))
    program = lowered.compile()
    assert program.as_text().count('custom_call_target="tpu_custom_call"') >= 3  # forward, and the gradients of queries and of keys


@pytest.mark.parametrize(
    "args, said",
    [
        (["--topology", "v5q:8x8x8"], "nearest: 'v5"),
        (["--topology", "v5e:3x3"], "v5e:2x2"),
        (["--topology", "v5e:2x2", "--mesh", "fspd=4"], "nearest: 'fsdp'"),
        (["--topology", "v5e:2x2", "--mesh", "fsdp=3"], "of 3 chips, and the topology has 4"),
        (["--topology", "v5e:2x2", "--mesh", "tensor=4"], "data x fsdp x accumulate must divide"),
        (["--topology", "v5e:2x2", "--price", "-1"], "--price=-1.0"),
        (["--price", "1"], "--topology"),
        (["--all"], "--all"),
    ],
)
@needs_libtpu
def test_mistakes_are_told_in_one_line(small, args, said, capsys, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert cli.main(["plan", str(small), *args]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert said in err


def test_without_the_compiler_it_says_what_to_install(small, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    assert cli.main(["plan", str(small), "--topology", "v5e:2x2"]) == 2
    assert "scaling-lab[plan]" in capsys.readouterr().err


@pytest.mark.parametrize(
    "data, said",
    [
        (dict(shapes=dict(image=(16, 16))), "must be 3 sizes"),
        (dict(shapes=dict(img=(16, 16, 4))), "nearest: 'image'"),
        (dict(shapes=dict(tokens=(8, 8))), "vocabulary"),
        (dict(shapes=dict(text=(7, 16))), "declares no set"),
    ],
)
def test_what_declares_no_set_says_so(data, said):
    with pytest.raises(UserError, match=said):
        encoded.declared(data)


def test_a_set_is_declared_by_the_config_of_a_study_too():
    data = dict(shapes=dict(image=(16, 16, 4)), classes=10)
    assert encoded.declared(json.loads(json.dumps(data))) == encoded.declared(data)


def test_plans_of_all_keep_those_of_before_until_they_are_made_anew(tmp_path, monkeypatch):
    files, out, made = [tmp_path / "a.py", tmp_path / "b.py"], tmp_path / "plans.json", []
    for f in files:
        f.write_text('TOPOLOGIES = ("v5e:2x2", "2 v5e:2x2")\n')

    def planned(experiment, on, price):
        made.append((experiment, on[0]))
        if len(made) == 6:
            raise UserError("stopped")
        return {"experiment": experiment, "topology": on[0], "slices": on[1], "call": len(made)}

    monkeypatch.setattr(pods, "load", lambda f: Path(f).stem)
    monkeypatch.setattr(pods, "pod", lambda *on: on)
    monkeypatch.setattr(pods, "plan", planned)
    assert [r["call"] for r in pods.every(files, out)] == [1, 2, 3, 4]
    with pytest.raises(UserError):
        pods.every(files, out)
    assert [(r["experiment"], r["slices"], r["call"]) for r in json.loads(out.read_text())] == [
        ("a", 1, 5),
        ("a", 2, 2),
        ("b", 1, 3),
        ("b", 2, 4),
    ]
    out.write_text('{"experiment": "a"}')  # of one plan
    with pytest.raises(UserError, match="holds no plans of --all"):
        pods.every(files, out)
    out.unlink()
    files.pop()
    made.clear()
    assert len(pods.every(files, out)) == len(json.loads(out.read_text())) == 2
