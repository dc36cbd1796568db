"""Checkpoints: what is restored is what was saved, or the step before, or an error; never something else."""

import ctypes
import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from safetensors import SafetensorError

from lab import checkpoint, stores
from lab.checkpoint import Checkpoints
from lab.digests import digest
from lab.errors import UserError


def tree(seed):
    """Arrays of several dtypes, of incompressible numbers."""
    rng = np.random.default_rng(seed)
    return {
        "w": jnp.asarray(rng.normal(size=(32, 16)), jnp.float32),
        "opt": [jnp.asarray(rng.normal(size=40), jnp.bfloat16), jnp.int32(seed)],
        "alive": jnp.array([True, False]),
    }


def same(a, b):
    """Whether two trees are equal bit for bit, dtypes and structure too."""
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        digest(x) == digest(y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def saved(folder, steps=(1, 2), store=None):
    """A folder with a save a step, closed."""
    store = Checkpoints(folder, store=store)
    for step in steps:
        store.save(step, tree(step), {"note": step})
    store.wait()
    store.close()


def restored(folder, like=None):
    """What a new process would find."""
    store = Checkpoints(folder)
    try:
        return store.restore(tree(0) if like is None else like)
    finally:
        store.close()


@pytest.fixture(params=[stores.File, stores.Orbax])
def form(request):
    """Both forms: that of one process and that of several."""
    return request.param


def test_a_round_trip_is_exact_and_the_newest_steps_are_kept(tmp_path, form):
    assert restored(tmp_path) is None
    saved(tmp_path, (1, 2, 5), form)
    step, got, meta = restored(tmp_path)
    assert (step, meta) == (5, {"note": 5})
    assert same(got, tree(5))
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.isdigit()) == ["2", "5"]
    store = Checkpoints(tmp_path)
    assert store.meta() == {"note": 5}
    store.close()


def test_a_training_state_comes_back_with_its_optimizer_and_arrows(tmp_path):
    prog = small.program(depth=1, mlp_ratio=1)
    state = jax.jit(prog.init)(small.hyper(prog))
    store = Checkpoints(tmp_path)
    store.save(3, state)
    store.wait()
    step, got, _ = store.restore(jax.eval_shape(prog.init, small.hyper(prog)))
    store.close()
    assert step == 3
    assert same(got, state)


def test_a_save_is_a_copy_of_the_moment(tmp_path):
    store, values = Checkpoints(tmp_path), {"w": np.zeros(1000, np.float32)}
    store.save(1, values)
    values["w"][:] = 7  # as a donated buffer may be, while the save is still being written
    store.wait()
    assert np.all(store.restore({"w": np.zeros(1000, np.float32)})[1]["w"] == 0)
    store.close()


def test_an_empty_folder_has_no_meta(tmp_path):
    store = Checkpoints(tmp_path)
    with pytest.raises(UserError, match="holds no checkpoint"):
        store.meta()
    store.close()


def test_a_flipped_byte_anywhere_in_the_arrays_gives_the_step_before(tmp_path, capsys):
    saved(tmp_path)
    largest = max((p for p in (tmp_path / "2" / "tree").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 0x10
    largest.write_bytes(content)
    step, got, meta = restored(tmp_path)
    assert (step, meta) == (1, {"note": 1})
    assert same(got, tree(1))
    assert "checkpoint 2" in capsys.readouterr().out
    assert (tmp_path / "damaged-2").is_dir()
    store = Checkpoints(tmp_path)  # and training goes on from there
    store.save(2, tree(9))
    store.wait()
    assert same(store.restore(tree(0))[1], tree(9))
    store.close()


def test_a_flipped_byte_in_any_file_never_gives_other_numbers(tmp_path, form):
    saved(tmp_path / "clean", store=form)
    files = sorted(p for p in (tmp_path / "clean" / "2").rglob("*") if p.is_file() and p.stat().st_size)
    assert len(files) > (1 if form is stores.File else 3)
    for n, file in enumerate(files):
        folder = tmp_path / f"case{n}"
        shutil.copytree(tmp_path / "clean", folder)
        broken = folder / file.relative_to(tmp_path / "clean")
        content = bytearray(broken.read_bytes())
        content[len(content) // 2] ^= 0x01
        broken.write_bytes(content)
        step, got, meta = restored(folder)
        assert meta == {"note": step}, broken
        assert same(got, tree(step)), broken


def test_a_lost_file_gives_the_step_before(tmp_path, form):
    saved(tmp_path, store=form)
    largest = max((p for p in (tmp_path / "2" / "tree").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    largest.unlink()
    step, got, _ = restored(tmp_path)
    assert step == 1
    assert same(got, tree(1))


@pytest.mark.parametrize(
    "change",
    [
        lambda t: {**t, "more": t["w"]},
        lambda t: {k: v for k, v in t.items() if k != "alive"},
        lambda t: {**t, "w": t["w"][:16]},
        lambda t: {**t, "w": jnp.zeros((64, 16))},
    ],
)
def test_a_save_of_other_weights_is_the_users_error_and_stays_where_it_is(tmp_path, change):
    saved(tmp_path)
    with pytest.raises(UserError, match="holds other weights than the config describes"):
        restored(tmp_path, change(tree(0)))
    step, got, _ = restored(tmp_path)
    assert step == 2
    assert same(got, tree(2))


def test_another_dtype_is_refused_naming_both_and_cast_when_asked(tmp_path):
    saved(tmp_path)
    like = {**tree(0), "w": jax.ShapeDtypeStruct((32, 16), jnp.bfloat16)}
    store = Checkpoints(tmp_path)
    with pytest.raises(UserError, match=r"holds w as float32, where bfloat16 is asked for"):
        store.restore(like)
    step, got, _ = store.restore(like, cast=True)
    store.close()
    assert step == 2
    assert got["w"].dtype == jnp.bfloat16
    assert same({**got, "w": tree(2)["w"]}, tree(2))
    np.testing.assert_array_equal(got["w"], tree(2)["w"].astype(jnp.bfloat16))


def unheld(flat, *more):
    """Where the buffers lie, which keeps none from being donated, in the place of `stores.held`."""
    return {k: np.ctypeslib.as_array((ctypes.c_float * x.size).from_address(x.unsafe_buffer_pointer())) for k, x in flat.items()}


@pytest.mark.parametrize("held", [stores.held, unheld])
def test_a_step_is_saved_as_it_was_though_the_next_ones_overwrite_its_buffers(tmp_path, monkeypatch, held):
    """On a CPU a save that goes on behind donated steps would write what they have made of the buffers; unheld, it does, and is found out."""
    step, write, made = jax.jit(lambda x: [v + 1 for v in x], donate_argnums=0), stores.File._write, threading.Event()
    monkeypatch.setattr(stores, "held", held)
    monkeypatch.setattr(stores.File, "_write", lambda *args: made.wait(60) and write(*args))
    store, x = Checkpoints(tmp_path, keep=100), step([jnp.zeros(100_000) for _ in range(4)])
    for n in range(3):
        made.clear()
        store.save(n, x)
        for _ in range(5):
            x = step(x)
        jax.block_until_ready(x)
        made.set()
        store.wait()
    found = []
    while got := store.restore([jax.ShapeDtypeStruct((100_000,), jnp.float32)] * 4):
        assert all(np.all(np.asarray(v) == 1 + 5 * got[0]) for v in got[1])
        found.append(got[0])
        shutil.rmtree(tmp_path / str(got[0]))
    store.close()
    assert found == ([] if held is unheld else [2, 1, 0])


def test_orbax_saves_a_step_as_it_was_too(tmp_path):
    step = jax.jit(lambda x: [v + 1 for v in x], donate_argnums=0)
    store, x = Checkpoints(tmp_path, keep=100, store=stores.Orbax), step([jnp.zeros(1_000_000) for _ in range(8)])
    for n in range(3):
        store.save(n, x)
        for _ in range(20):
            x = step(x)
    store.close()
    for n in (2, 1, 0):
        at, got, _ = restored(tmp_path, [jax.ShapeDtypeStruct((1_000_000,), jnp.float32)] * 8)
        assert at == n
        assert all(np.all(np.asarray(v) == 1 + 20 * n) for v in got)
        shutil.rmtree(tmp_path / str(n))


def test_steps_of_both_forms_lie_in_one_folder(tmp_path):
    """A study that one process began and several went on with, and the other way round; what killed saves have left is removed."""
    for n, form in enumerate((stores.Orbax, stores.File, stores.Orbax, stores.File), 1):
        (tmp_path / "9.tmp" / "tree").mkdir(parents=True)
        (tmp_path / "9.orbax-checkpoint-tmp").mkdir()
        saved(tmp_path, (n,), form)
        assert sorted(p.name for p in tmp_path.iterdir()) == [str(i) for i in (n - 1, n) if i]
        assert same(restored(tmp_path)[1], tree(n))


def test_a_full_disk_is_told_as_one_and_leaves_nothing(tmp_path, monkeypatch):
    def full(arrays, path):
        path.write_bytes(b"half of it")
        raise SafetensorError(f"Error while serializing: I/O error: {os.strerror(errno.ENOSPC)} (os error 28)")

    saved(tmp_path, (1,))
    store = Checkpoints(tmp_path)
    with monkeypatch.context() as m:
        m.setattr(stores, "save_file", full)
        store.save(2, tree(2))
        with pytest.raises(OSError, match="No space left on device") as told:
            store.wait()
    assert told.value.errno == errno.ENOSPC
    store.close()
    assert [p.name for p in tmp_path.iterdir()] == ["1"]


def test_a_save_of_a_step_that_is_there_is_none(tmp_path):
    saved(tmp_path)
    store = Checkpoints(tmp_path)
    store.save(2, tree(9))
    store.wait()
    assert same(store.restore(tree(0))[1], tree(2))
    store.close()


def test_a_step_whose_meta_does_not_hold_is_passed_over(tmp_path):
    saved(tmp_path)
    store = Checkpoints(tmp_path)
    assert store.restore(tree(0), holds=lambda meta: meta["note"] < 2)[0] == 1
    store.close()


def test_digests_of_older_checkpoints_are_checked_as_they_were_made(tmp_path, monkeypatch):
    def crc(flat, rows=None):
        return {k: f"{zlib.crc32(np.asarray(x).tobytes()):08x}-{checkpoint.kind(x)}" for k, x in flat.items()}

    with monkeypatch.context() as m:
        m.setattr(checkpoint, "digests", crc)
        saved(tmp_path, store=stores.Orbax)
    assert restored(tmp_path)[0] == 2
    with monkeypatch.context() as m:
        m.setattr(checkpoint, "digests", lambda flat, rows: {k: f"{int(d[:8], 16) ^ 1:08x}{d[8:]}" for k, d in crc(flat).items()})
        saved(tmp_path / "other", store=stores.Orbax)
    assert restored(tmp_path / "other") is None


PADDED = """
import sys
from pathlib import Path
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from lab.checkpoint import Checkpoints
from lab.digests import digests
mesh = Mesh(np.array(jax.devices()), ("trials",))
x = {"w": np.arange(8 * 6, dtype=np.float32).reshape(8, 6) ** 1.5, "b": np.arange(8) > 3}
step = jax.jit(lambda t: jax.tree.map(lambda v: v * 0, t), donate_argnums=0)
store = Checkpoints(Path(sys.argv[1]))
for n in (7, 5, 3):
    on, first = jax.device_put(x, NamedSharding(mesh, P("trials"))), {k: v[:n] for k, v in x.items()}
    assert digests(on, n) == digests(first), n
    store.save(9 - n, on, rows=n)
    step(on)
    at, got, _ = store.restore(first)
    assert at == 9 - n and all(np.array_equal(got[k], first[k]) for k in x), n
store.close()
print("held")
"""


def test_of_trials_that_fill_no_round_of_turns_those_that_count_are_saved(tmp_path):
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": "4", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run([sys.executable, "-c", PADDED, str(tmp_path)], env=env, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["held"], done.stderr[-2000:]


MOVED = """
import json, sys
from pathlib import Path
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from lab import stores
from lab.checkpoint import Checkpoints
from lab.digests import digests
shape, axes = json.loads(sys.argv[2])
mesh = Mesh(np.array(jax.devices()[: int(np.prod(shape))]).reshape(shape), ("a", "b"))
x = {"w": np.arange(8 * 16, dtype=np.float32).reshape(8, 16) ** 1.5, "b": np.arange(16, dtype=np.int32)}
where = {"w": NamedSharding(mesh, P(*axes)), "b": NamedSharding(mesh, P("a"))}
store = Checkpoints(Path(sys.argv[1]), store=getattr(stores, sys.argv[3]))
found = store.restore({k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=where[k]) for k, v in x.items()})
if found is not None:
    assert found[1]["w"].sharding == where["w"], found[1]["w"].sharding
    assert digests(found[1]) == digests(x)
    print("moved")
store.save(2 if found else 1, jax.device_put(x, where))
store.close()
"""


def test_a_sharded_save_comes_back_on_another_mesh_and_another_count_of_devices(tmp_path, form):
    said = []
    for devices, mesh in ((8, ((4, 2), ("a", "b"))), (4, ((2, 2), ("b", "a"))), (1, ((1, 1), (None, "a")))):
        env = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        command = [sys.executable, "-c", MOVED, str(tmp_path), json.dumps(mesh), form.__name__]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout.strip())
    assert said == ["", "moved", "moved"]
    (kept,) = [json.loads(p.read_text())["digests"] for p in (tmp_path / "1").glob("meta/metadata")]
    assert kept == json.loads((tmp_path / "2" / "meta" / "metadata").read_text())["digests"]
