"""Placement by names: the rules, and that a sharded program computes what the plain one does."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from jax.sharding import PartitionSpec

from sharding import mesh as meshes
from sharding import place
from sharding.place import spec


def described(**shape):
    """All that placement reads of a mesh."""
    return SimpleNamespace(shape=shape, axis_names=tuple(shape))


MESH = described(data=4, tensor=2)
RULES = {k: (v,) for k, v in {"batch": "data", "embed": "tensor", "mlp": "tensor", "heads": "tensor", "vocab": "data"}.items()}
BOTH = {"batch": ("data", "tensor"), "embed": ("tensor",)}


@pytest.mark.parametrize(
    "names, shape, want",
    [
        (("batch", "embed"), (8, 6), ("data", "tensor")),
        (("embed", "mlp"), (6, 8), ("tensor", None)),  # the first use of a mesh axis wins
        (("mlp", "embed"), (8, 6), ("tensor", None)),
        (("embed", "mlp"), (7, 8), (None, "tensor")),  # 7 is not divided by 2, so the axis is still free
        (("batch",), (6,), (None,)),
        (("batch", "vocab"), (4, 4), ("data", None)),
        (("layers", "embed"), (3, 2), (None, "tensor")),  # no rule: replicated
        (("3", "embed", "heads"), (3, 4, 2), (None, "tensor", None)),
        ((), (), ()),
        (("batch",), (0,), ("data",)),
    ],
)
def test_rules_first_use_and_sizes_that_do_not_divide(names, shape, want):
    assert spec(names, shape, MESH, RULES) == PartitionSpec(*want)
    assert spec(names, shape, MESH, {}) == PartitionSpec(*[None] * len(names))


@pytest.mark.parametrize(
    "names, shape, want",
    [
        (("batch", "embed"), (16, 4), (("data", "tensor"), None)),  # both are taken
        (("embed", "batch"), (4, 16), ("tensor", "data")),  # what is left of a rule
        (("batch", "embed"), (12, 4), (None, "tensor")),  # 12 is not divided by 8: whole, and nothing is taken
    ],
)
def test_a_rule_of_several_axes_takes_those_that_are_free(names, shape, want):
    assert spec(names, shape, MESH, BOTH) == PartitionSpec(*want)


def test_sets_of_rules_follow_the_mesh_and_entries_change_them():
    mesh = described(data=2, fsdp=2, tensor=2)
    assert place.rules("fsdp+tensor", mesh)["batch"] == ("data", "fsdp")
    assert place.rules("", mesh) == place.rules("fsdp+tensor", mesh)  # no name: all axes of the mesh
    found = place.rules("fsdp", mesh, {"mlp": "tensor", "embed": "", "vocabulary": ("fsdp", "tensor")})
    over = dict.fromkeys(("condition", "text_embed"), ("fsdp",))
    assert found == {"batch": ("data", "fsdp"), "mlp": ("tensor",), "vocabulary": ("fsdp", "tensor"), **over}
    assert place.rules("replicated", described(data=4)) == {"batch": ("data",)}
    assert place.rules("sequence", described(trials=2, sequence=4)) == {"trials": ("trials",), "tokens": ("sequence",)}


@pytest.mark.parametrize(
    "sharding, mesh, more, said",
    [
        ("fsdp", {"data": 4}, {}, r"run.sharding='fsdp' divides over the axis 'fsdp', which run.mesh lacks; its axes: data"),
        ("fsdp", {"fsdp": 2, "tensor": 2}, {}, r"the axis 'tensor' of run.mesh is used by no rule of run.sharding='fsdp'"),
        ("replicated", {"fsdp": 2}, {}, r"the axis 'fsdp' of run.mesh is used by no rule"),
        ("fdsp", {"fsdp": 2}, {}, r"run.sharding='fdsp' is no set of rules; expected one of: replicated, fsdp, fsdp\+tensor"),
        ("fsdp", {"fsdp": 2}, {"embed": "tensr"}, r"run.rules.embed='tensr' is not an axis of run.mesh; its axes: fsdp"),
        ("fsdp", {"fsdp": 2}, {"embed": 3}, r"run.rules.embed=3 is not an axis of run.mesh"),
        ("fsdp", {"fsdp": 2}, {"embed": ("fsdp", "data")}, r"run.rules.embed=\('fsdp', 'data'\) is not an axis"),
    ],
)
def test_rules_that_do_not_fit_the_mesh_are_told(sharding, mesh, more, said):
    with pytest.raises(ValueError, match=said):
        place.rules(sharding, described(**mesh), more)


def test_what_is_not_divided_as_asked_is_told():
    names, shapes = {"a": ("embed", "mlp"), "b": ("batch",), "c": ("layers",)}, {"a": (7, 8), "b": (6,), "c": (3,)}
    told = [str(m) for m in place.missed(names, shapes, MESH, RULES)]
    assert told == ["a: embed=7 is not divided by tensor=2", "b: batch=6 is not divided by data=4"]


@pytest.mark.parametrize(
    "sharding, mesh, want",
    [
        ("", {}, {}),
        ("", {"data": 2, "fsdp": 0}, {"data": 2}),
        ("fsdp", {}, {"fsdp": -1}),
        ("fsdp+tensor", {"fsdp": 0}, {"fsdp": -1, "tensor": 1}),
        ("replicated", {}, {"data": -1}),
        ("fsdp", {"fsdp": 2, "data": 2}, {"fsdp": 2, "data": 2}),
    ],
)
def test_a_set_alone_gets_a_mesh_of_all_devices_on_its_main_axis(sharding, mesh, want):
    assert place.sizes(sharding, mesh) == want


def test_names_and_shapes_must_be_of_one_rank():
    with pytest.raises(ValueError, match="zip"):
        spec(("embed",), (4, 4), MESH, RULES)


def test_a_mesh_that_does_not_cover_the_devices_is_refused():
    for sizes in ({"data": 3}, {"data": -1, "tensor": -1}, {"data": -1, "tensor": 3}):
        with pytest.raises(ValueError, match=r"run.mesh=.* does not cover 4 devices"):
            meshes.mesh(sizes, devices=[None] * 4)
    with pytest.raises(ValueError, match=r"run.mesh.model is no axis of a mesh; expected one of: trials, data"):
        meshes.mesh({"model": 4}, devices=[None] * 4)


def devices(slices, each, told=True):
    """Devices of several slices, or of as many processes."""
    about = dict(platform="cpu", device_kind="cpu")
    return [
        SimpleNamespace(id=i, process_index=i // each, **about, **({"slice_index": i // each} if told else {}))
        for i in range(slices * each)
    ]


@pytest.mark.parametrize("told", [True, False], ids=["slices", "processes"])
@pytest.mark.parametrize(
    "shape, over",
    [
        ({"data": 2, "tensor": 4}, 0),
        ({"fsdp": 4, "tensor": 2}, 0),
        ({"data": 1, "fsdp": 4, "sequence": 2}, 1),
        ({"trials": 4, "fsdp": 2}, 0),
    ],
)
def test_one_outer_axis_goes_over_slices_and_all_others_stay_within_one(shape, over, told):
    laid = meshes._laid(shape, devices(2, 4, told), 0 if told else 2)
    assert laid.shape == tuple(shape.values())
    of = np.vectorize(lambda d: d.process_index)(laid)
    first, second = np.split(of, 2, axis=over)
    assert (first == 0).all()
    assert (second == 1).all()


def test_slices_that_no_axis_goes_over_or_that_are_not_there_are_told():
    with pytest.raises(ValueError, match=r"run.mesh=\{'data': 1, 'tensor': 8\} has no axis that goes over 2 slices"):
        meshes._laid({"data": 1, "tensor": 8}, devices(2, 4), 0)
    with pytest.raises(ValueError, match=r"run.slices=4, but the devices lie in 2 slices; expected 0 or 2"):
        meshes._laid({"data": 8}, devices(2, 4), 4)


# the number of devices is fixed when jax is imported, so what needs four of them runs in a process of its own
PROGRAM = """
import json, sys
sys.path.insert(0, sys.argv[1])
import jax, jax.numpy as jnp, numpy as np, small
from lab import axes
from lab.population import Population
from lab.data.loader import held_out

source, out = small.Source(), {"devices": jax.device_count()}
points = [{"seed": 0}, {"seed": 1}]

def population(mesh, rules):
    group = small.trials(points, **{"run.mesh": mesh, "run.rules": rules if mesh else {}, "optim.lr": 2.0**-8})
    for t, p in zip(group, points):
        t.config["seed"] = p["seed"]
    return Population(group, source, held_out(group[0].config, source))

def used(x):
    # {dim: mesh axis} of an array
    return {str(i): axis for i, axis in enumerate(x.sharding.spec) if axis}

rules = {"batch": "data", "embed": "tensor", "heads": "tensor", "mlp": "tensor"}
states, losses, judged = [], [], []
for mesh in ({}, {"data": 2, "tensor": 2}):
    pop = population(mesh, rules)
    carry = jax.block_until_ready(pop.init())
    state = pop.state(carry)
    first = jax.device_get([axes.values(state.params), axes.values(state.ema)])
    where = {n: used(w.get_value()) for n, w in axes.weights(state.params).items()} if mesh else {}
    pop.compile(carry)
    seen = []
    for n in range(2):
        batches = [small.batch(16, 10 * s + n, source) for s in pop.seeds]
        batch = pop.put({k: np.stack([b[k] for b in batches]) for k in batches[0]})
        if mesh:
            out["batch"] = used(batch["image"])
        carry, values = jax.block_until_ready(pop.step(carry, pop.hyper, batch))
        seen.append(np.asarray(values["loss"]).tolist())
    states.append((first, jax.device_get(axes.values(pop.state(carry).params))))
    losses.append(seen)
    judged.append({k: np.asarray(v).tolist() for k, v in pop.evaluate(carry).items()})

def gap(a, b):
    return max(float(np.max(np.abs(x - y))) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))

out |= {"init": gap(states[0][0], states[1][0]), "weights": gap(states[0][1], states[1][1]), "where": where}
out |= {"losses": losses, "judged": judged}
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def sharded():
    here = Path(__file__).resolve().parents[1]
    # without optimisation XLA compiles in less than half the time
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": "4"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), str(here)],
        **dict(env=env, cwd=here.parent, capture_output=True, text=True, timeout=300, check=False),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_sharded_init_is_the_plain_one(sharded):
    assert sharded["devices"] == 4
    assert sharded["init"] <= 1e-6


def test_the_weights_and_the_batch_lie_where_the_rules_say(sharded):
    where = sharded["where"]
    assert where["blocks.mlp.up.kernel"] == {"2": "tensor"}  # trials, layers, embed, mlp: embed comes first
    assert where["readout"] == {"1": "tensor"}
    assert where["blocks.attention.qkv_bias"] == {"3": "tensor"}  # trials, layers, 3, heads, head_dim
    assert where["readout_bias"] == {}
    assert sharded["batch"] == {"1": "data"}


def test_sharded_steps_are_the_plain_ones(sharded):
    plain, split = sharded["losses"]
    for a, b in zip(plain, split, strict=True):
        assert b == pytest.approx(a, rel=1e-5)
    assert sharded["weights"] < 1e-4
    for k, v in sharded["judged"][0].items():
        assert sharded["judged"][1][k] == pytest.approx(v, rel=1e-5)
