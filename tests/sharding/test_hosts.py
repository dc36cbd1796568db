"""Runs of several processes: they compute what one does, leave one study, and end where one hangs."""

import json
import re
import textwrap
import time
from pathlib import Path

import pytest
from processes import end, start

HERE = Path(__file__).resolve().parent
PLACED = ("data", "fsdp", "fsdp+tensor", "sequence", "trials")


def compared(hosts, devices, steps, names, judged):
    """{placement: what each process says} and what one process of one device says."""
    alone = start(1, 1, str(HERE / "worker.py"), "plain,plain trials", str(steps), "plain,plain trials" if "trials" in judged else "plain")
    several = start(hosts, devices, str(HERE / "worker.py"), ",".join(names), str(steps), ",".join(judged))
    rows = [json.loads(line) for out in end(several) for line in out.splitlines() if line.startswith("{")]
    plain = {r["name"]: r for out in end(alone) for r in map(json.loads, filter(lambda line: line.startswith("{"), out.splitlines()))}
    return {name: [r for r in rows if r["name"] == name] for name in names}, plain


def farthest(a, b):
    return max(abs(x - y) for one, two in zip(a, b, strict=True) for x, y in zip(one, two, strict=True))


def check(hosts, devices, steps, names=PLACED, judged=PLACED):
    placed, plain = compared(hosts, devices, steps, names, judged)
    for name, rows in placed.items():
        want = plain["plain trials" if name == "trials" else "plain"]
        assert len(rows) == hosts
        for row in rows:
            assert len(row["losses"]) == steps
            assert farthest(row["losses"], want["losses"]) < 1e-5, name
            wanted = want["judged"] if name in judged else {}
            assert row["judged"] == {k: pytest.approx(v, abs=1e-5) for k, v in wanted.items()}, name
            assert row["weights"] == pytest.approx(want["weights"], rel=1e-4), name
            assert (row["global"], row["missed"]) == (True, []), name
    assert plain["plain"]["judged"].keys() == {"eval_loss", "eval_ema"}
    # a batch is read once where it is divided over hosts, and whole by each where it is not
    assert sorted(r["share"] for r in placed["fsdp+tensor"]) == [[i, hosts] for i in range(hosts)]
    assert [r["share"] for r in placed["trials"]] == [[0, 1]] * hosts
    wrong = placed["fsdp+tensor"][0]["wrong"]
    assert farthest(wrong, plain["plain"]["losses"][: len(wrong)]) > 1e-3  # what is compared can differ


def test_two_processes_compute_what_one_does_under_placements_that_differ():
    """Batch, heads and channels, tokens, or trials over processes; of fewer steps and devices, and one evaluation, than its slow siblings."""
    check(2, 2, 6, names=("fsdp+tensor", "sequence", "trials"), judged=("fsdp+tensor",))


@pytest.mark.slow
@pytest.mark.parametrize("hosts", [2, 4])
def test_processes_of_four_devices_compute_what_one_does_under_every_placement(hosts):
    check(hosts, 4, 20)


EXPERIMENT = '''"""Do several processes leave one study?"""
from ml_collections import ConfigDict


def get_config():
    c = ConfigDict(dict(base=dict(width=32)))
    c.model = dict(name="dit", width=32, depth=1, head_dim=16, mlp_ratio=2, patch=4, qk_norm=False, zero_gates=True)
    c.objective, c.data = dict(name="flow", time="logit_normal", label_drop=0.1), dict(name="{source}")
    c.train, c.optim = dict(steps=4, batch=16, log_every=1), dict(lr=2.0**-9)
    c.eval, c.sample = dict(examples=32, batch=16, every=2), dict(n=2, options=dict(steps=2))
    c.judge = dict(names=("spectrum",), n=16, options=dict())
    c.run = dict(checkpoint_seconds=1e9, sharding="{sharding}")
    return c
'''
SOURCE = '''import sys
sys.path.insert(0, "{tests}")
import small


class Source(small.Source):
    """The tests' pictures."""

    def __init__(self, split, data_dir):
        super().__init__(seed=int(split == "eval"))
        self.info |= {{"fingerprint": "waves", "origin": "waves"}}
'''


def test_two_processes_leave_one_study_as_one_does(tmp_path):
    (tmp_path / "source.py").write_text(SOURCE.format(tests=HERE.parent))
    running = {}
    for hosts, sharding in ((1, ""), (2, "fsdp")):
        file = tmp_path / str(hosts) / "pair.py"
        file.parent.mkdir()
        file.write_text(EXPERIMENT.format(source=tmp_path / "source.py", sharding=sharding))
        running[hosts] = start(hosts, 2, "-m", "lab.cli", "run", str(file), "--workdir", str(file.parent / "runs"))
    (alone,), pair = end(running[1]), end(running[2])
    assert "report: " in alone
    assert "report: " in pair[0]
    assert [line for line in pair[1].splitlines() if "Gloo" not in line] == []  # the second says nothing and writes nothing
    from lab import record

    one, two = (tmp_path / n / "runs" / "pair" for n in "12")
    a, b = (record.table(f).to_pylist() for f in (one, two))
    assert [(r["trial"], r["step"]) for r in a] == [(r["trial"], r["step"]) for r in b]
    assert len(a) == 5
    for x, y in zip(a, b, strict=True):
        for k in ("loss", "grad_norm", "eval_loss", "eval_ema", "spectrum_time_3", "spectrum_band_1"):
            assert y[k] == (None if x[k] is None else pytest.approx(x[k], rel=1e-5)), k
    assert sorted(p.name for p in two.glob("*/hosts/*.json")) == ["host-0.json", "host-1.json"]
    for name in ("samples.npz", "weights", "card.json", "done.json", "timing.json"):
        assert [bool(list(f.glob(f"*/{name}"))) for f in (one, two)] == [True, True], name


HANG = """
import sys, threading, time
from pathlib import Path
from sharding import hosts

dog = hosts.Watchdog(Path(sys.argv[1]), 1.0)
time.sleep(1.5)  # a compile, before any step
dog.beat("small", 3)
dog.rest()
time.sleep(1.5)  # between populations
for step in range(4, 8):
    dog.beat("small", step)
    time.sleep(0.4)

def stuck_in_a_collective():
    threading.Event().wait(60)

print("hanging", flush=True)
stuck_in_a_collective()
"""


def test_a_process_whose_steps_stop_ends_with_a_dump_of_its_stacks(tmp_path):
    began = time.monotonic()
    (out,) = end(start(1, 1, "-c", textwrap.dedent(HANG), str(tmp_path)), code=75)
    assert out == "hanging\n"  # it lived through all that is no hang
    told = (tmp_path / "host-0-stacks.txt").read_text()
    assert re.match(r"no step for \d+ s \(run.watchdog_seconds=1.0\)", told)
    assert "stuck_in_a_collective" in told
    about = json.loads((tmp_path / "host-0.json").read_text())
    assert about["population"] == "small"
    assert about["step"] in range(3, 8)
    assert time.monotonic() - began < 55


@pytest.mark.parametrize(
    "env, said",
    [
        ({"LAB_HOSTS": "2"}, "LAB_HOSTS=2: expected LAB_COORDINATOR=host:port"),
        ({"LAB_COORDINATOR": "a:1", "LAB_HOSTS": "2", "LAB_HOST": "2"}, "LAB_HOST=2: expected"),
        ({"LAB_COORDINATOR": "a:1", "LAB_HOSTS": "two", "LAB_HOST": "0"}, "LAB_HOSTS=two, LAB_HOST=0: expected"),
    ],
)
def test_an_environment_that_does_not_say_who_the_others_are_is_refused(monkeypatch, env, said):
    from sharding import hosts

    for k, v in env.items():
        monkeypatch.setenv(k, v)
    with pytest.raises(ValueError, match=said):
        hosts.start()
