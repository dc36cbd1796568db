"""A run of two processes, one or both of which are stopped or killed, goes on and comes out as undisturbed. More: lab bench crash."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab import record

ROOT = Path(__file__).resolve().parents[2]
SILENCE = 10
# processes are forked from one that has imported the lab; signals come before a line of what follows a step has run
CODE = """
import json, shutil, signal, sys
from pathlib import Path
sys.path.insert(0, "benchmarks")
import crash

base, silence, full = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "full"
crash.SILENCE = silence
crash.ready(base / "xla")
told = {}

def end(what, folder, pids):
    codes, apart = crash.ended(pids)
    told[what] = {"codes": codes, "apart": apart, "log": [f.read_text()[-2000:] for f in sorted(folder.glob("host-*.log"))]}

def at(step, how, *workers):
    return dict.fromkeys(workers, ("step", step, 0.0, how))

whole, cut, other = [crash.fresh(base) for _ in range(3)]
end("stop 1", cut, crash.several(cut, at(3, signal.SIGTERM, 1)))
if full:
    end("stop both", cut, crash.several(cut, at(2, signal.SIGTERM, 0, 1)))
shutil.copytree(cut / "runs", other / "runs")
undisturbed = crash.several(whole)  # beside what waits for a silent one
end("kill 0", cut, crash.several(cut, at(2, signal.SIGKILL, 0)))
if full:
    end("kill 1", cut, crash.several(cut, at(4, signal.SIGKILL, 1)))
end("whole", whole, undisturbed)
alone = crash.several(other, options=(*crash.PLACED, "--config.run.mesh.data=2", "--config.run.mesh.fsdp=2"), hosts=1)
end("end", cut, crash.several(cut))
end("alone", other, alone)
told["found"] = {name: crash.outcome(f) for name, f in (("whole", whole), ("cut", cut))}
told["folders"] = {name: str(f / "runs" / "tiny") for name, f in (("whole", whole), ("cut", cut), ("other", other))}
print(json.dumps(told))
"""
CRASHES = (1, -6)  # an error as the other's connection closes, or jax's abort as it is silent, which a shell calls 134
STOPPED = {"stop 1": [(75,), (75,)], "kill 0": [(-9,), CRASHES]}
FULL = STOPPED | {"stop both": [(75,), (75,)], "kill 1": [CRASHES, (-9,)]}


def events(folder, what):
    """The steps of one kind of event in each attempt of a study of one population."""
    files = sorted(Path(folder).glob("*/events-*.jsonl"))
    return [[e["step"] for e in map(json.loads, f.read_text().splitlines()) if e["what"] == what] for f in files]


def survived(tmp_path, form, stopped):
    """A study of two processes, disturbed again and again, comes out as undisturbed; and one process goes on with what two have written."""
    env = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", CODE, str(tmp_path), str(SILENCE), form]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    wanted = stopped | {"whole": [(0,), (0,)], "end": [(0,), (0,)], "alone": [(0,)]}
    for k, codes in wanted.items():
        assert all(c in one for c, one in zip(told[k]["codes"], codes, strict=True)), (k, told[k])
    # nothing waits for much longer than the silence of the killed one
    assert all(told[k]["apart"] < 3 * SILENCE + 10 for k in stopped), told
    assert told["found"]["cut"] == told["found"]["whole"]
    assert told["found"]["cut"]["rows"] == 26
    # each stop has saved where it came, and the next attempt went on from there; after a kill from a checkpoint
    begun, saved = [steps[0] for steps in events(told["folders"]["cut"], "restore")], events(told["folders"]["cut"], "save")
    stops = sum(codes == [(75,), (75,)] for codes in stopped.values())
    assert begun[: stops + 1] == [0, *(steps[-1] for steps in saved[:stops])]
    assert begun[1] > 0
    assert begun == sorted(begun)
    assert begun[-1] < 12
    # one process with four devices, in another mesh
    assert [s[0] for s in events(told["folders"]["other"], "restore")] == begun[: stops + 1]
    one, two = (record.table(Path(told["folders"][name])).to_pylist() for name in ("other", "whole"))
    assert [(r["trial"], r["step"]) for r in one] == [(r["trial"], r["step"]) for r in two]
    for x, y in zip(one, two, strict=True):
        for k in ("loss", "grad_norm", "eval_loss", "eval_ema"):
            assert x[k] == (None if y[k] is None else pytest.approx(y[k], rel=1e-5)), (k, x["step"])


def test_two_processes_go_on_after_a_stop_of_the_second_and_a_kill_of_the_first(tmp_path):
    survived(tmp_path, "short", STOPPED)


@pytest.mark.slow
def test_two_processes_go_on_after_stops_and_kills_of_each_and_both(tmp_path):
    survived(tmp_path, "full", FULL)
