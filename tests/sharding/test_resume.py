"""A run of two processes, one or both of which are stopped or killed, goes on and comes out as undisturbed. More: lab bench crash."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab import record

ROOT = Path(__file__).resolve().parents[2]
SILENCE = 5
# processes are forked from one that has imported the lab; signals come before a line of what follows a step has run
CODE = """
import json, shutil, signal, sys
from pathlib import Path
sys.path.insert(0, "benchmarks")
import crash

base, told = Path(sys.argv[1]), {}
crash.SILENCE = int(sys.argv[2])
crash.ready(base / "xla")

def run(what, folder, *args, **more):
    codes, apart = crash.together(folder, *args, **more)
    told[what] = {"codes": codes, "apart": apart, "log": [f.read_text()[-2000:] for f in sorted(folder.glob("host-*.log"))]}

def at(step, how, *workers):
    return dict.fromkeys(workers, ("step", step, 0.0, how))

whole, cut = crash.fresh(base), crash.fresh(base)
run("whole", whole)
run("stop 1", cut, at(3, signal.SIGTERM, 1))
run("stop both", cut, at(2, signal.SIGTERM, 0, 1))
other = crash.fresh(base)
shutil.copytree(cut / "runs", other / "runs")
run("kill 0", cut, at(2, signal.SIGKILL, 0))
run("kill 1", cut, at(4, signal.SIGKILL, 1))
run("end", cut)
run("alone", other, options=(*crash.PLACED, "--config.run.mesh.data=2"), hosts=1)
told["found"] = {name: crash.outcome(f) for name, f in (("whole", whole), ("cut", cut))}
told["folders"] = {name: str(f / "runs" / "tiny") for name, f in (("whole", whole), ("cut", cut), ("other", other))}
print(json.dumps(told))
"""


def events(folder, what):
    """The steps of one kind of event in each attempt of a study of one population."""
    files = sorted(Path(folder).glob("*/events-*.jsonl"))
    return [[e["step"] for e in map(json.loads, f.read_text().splitlines()) if e["what"] == what] for f in files]


def test_two_processes_survive_signals_to_one_and_to_both(tmp_path):
    """Stops of worker 1 and of both, kills of worker 0 and of worker 1, one after the other in one study; and one process goes on with it."""
    env = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", CODE, str(tmp_path), str(SILENCE)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    wanted = {
        "whole": [0, 0],
        "stop 1": [75, 75],
        "stop both": [75, 75],
        "kill 0": [-9, -6],
        "kill 1": [-6, -9],
        "end": [0, 0],
        "alone": [0],
    }
    assert {k: told[k]["codes"] for k in wanted} == wanted, told
    # an abort, which a shell calls 134, follows the silence of the killed one, and nothing waits longer
    assert all(told[k]["apart"] < 3 * SILENCE + 10 for k in wanted), told
    assert told["found"]["cut"] == told["found"]["whole"]
    assert told["found"]["cut"]["rows"] == 26
    # every attempt went on from where the one before had saved; the copy from the second stop
    begun = [steps[0] for steps in events(told["folders"]["cut"], "restore")]
    assert begun[0] == 0
    assert begun[1:3] == [s[-1] for s in events(told["folders"]["cut"], "save")[:2]]
    assert 0 < begun[1] < begun[2] <= begun[3] < begun[4] < 12
    # one process with four devices, in another mesh, goes on with what two have written
    assert [s[0] for s in events(told["folders"]["other"], "restore")] == begun[:3]
    one, two = (record.table(Path(told["folders"][name])).to_pylist() for name in ("other", "whole"))
    assert [(r["trial"], r["step"]) for r in one] == [(r["trial"], r["step"]) for r in two]
    for x, y in zip(one, two, strict=True):
        for k in ("loss", "grad_norm", "eval_loss", "eval_ema"):
            assert x[k] == (None if y[k] is None else pytest.approx(y[k], rel=1e-5)), (k, x["step"])
