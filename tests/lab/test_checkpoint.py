"""Checkpoints: what is restored is what was saved, or the step before, or an error; never something else."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

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


def saved(folder, steps=(1, 2)):
    """A folder with a save a step, closed."""
    store = Checkpoints(folder)
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


def test_a_round_trip_is_exact_and_the_newest_steps_are_kept(tmp_path):
    assert restored(tmp_path) is None
    saved(tmp_path, (1, 2, 5))
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


def test_a_flipped_byte_in_any_file_never_gives_other_numbers(tmp_path):
    saved(tmp_path / "clean")
    files = sorted(p for p in (tmp_path / "clean" / "2").rglob("*") if p.is_file() and p.stat().st_size)
    assert len(files) > 3
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


def test_a_lost_file_gives_the_step_before(tmp_path):
    saved(tmp_path)
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
