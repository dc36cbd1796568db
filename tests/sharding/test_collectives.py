"""What devices send each other, read in the compiled step: under fsdp one layer's weights at a time, under data alone gradients."""

import json
import math
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parents[1]
PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
import json, jax, small
from lab import axes
from lab.models.shared import rolled
from lab.population import Population
from lab.data.loader import held_out
from lab.train import over_trials

out, source = {}, small.Source()
for name in ("fsdp", "replicated"):
    model = dict(name="dit", width=32, depth=3, head_dim=16, mlp_ratio=2, patch=4, qk_norm=False, zero_gates=True)
    (trial,) = small.trials([{}], model=model, **{"run.sharding": name})
    pop = Population([trial], source, held_out(trial.config, source))
    carry = jax.eval_shape(pop.init)
    carry = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=w) for x, w in zip(carry, pop._where, strict=True)]
    with rolled():
        pop.compile(carry)
    out[name] = pop.step.as_text()
    def room(init):
        return jax.jit(lambda h: jax.tree.leaves(init(h)), out_shardings=pop._where).lower(pop.hyper).compile().memory_analysis().temp_size_in_bytes

    flat = over_trials(pop.program.init, (0,))
    out["room " + name] = [room(pop._init), room(flat), 4 * sum(w.get_value().size for w in axes.weights(pop._shapes.params).values())]
    out["weights"] = {n: [list(w.get_value().shape[1:]), list(w.arrow.names)] for n, w in axes.weights(pop._shapes.params).items()}
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def compiled():
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": str(HERE.parent)}
    run = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(HERE)]
    done = subprocess.run(run, env=env, cwd=HERE.parent, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def sent(text):
    """(kind, sizes of the arrays) of every collective of a program."""
    kinds = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
    for shapes, kind in re.findall(rf"= ([^=]*?) ({kinds})(?:-start)?\(", re.sub(r"/\*.*?\*/", "", text)):
        yield kind, [math.prod(map(int, filter(None, dims.split(",")))) for dims in re.findall(r"\w\[([\d,]*)\]", shapes)]


def test_under_fsdp_a_scanned_stack_gathers_one_layer_at_a_time(compiled):
    gathered = [n for kind, sizes in sent(compiled["fsdp"]) if kind == "all-gather" for n in sizes]
    inside = {n: math.prod(shape) for n, (shape, names) in compiled["weights"].items() if "layers" in names}
    kernels = {n: size for n, size in inside.items() if n.endswith("mlp.up.kernel") or n.endswith("mlp.down.kernel")}
    assert {size // 3 for size in kernels.values()} <= set(gathered)  # a layer's share of each is gathered
    largest = max(size // 3 for size in inside.values())
    outside = max(math.prod(shape) for shape, names in compiled["weights"].values() if "layers" not in names)
    assert max(gathered) <= max(largest, outside)
    assert not {*kernels.values()} & {*gathered}  # and never all three


def test_with_data_alone_nothing_but_sums_is_sent(compiled):
    kinds = {kind for kind, _ in sent(compiled["replicated"])}
    assert kinds == {"all-reduce"}


def test_under_fsdp_no_device_has_room_for_all_numbers_of_an_init(compiled):
    apart, flat, weights = compiled["room fsdp"]
    assert flat > 0.9 * weights  # one flat draw of all that is not zero lies whole on every device
    assert apart < weights / 4  # of eight devices
