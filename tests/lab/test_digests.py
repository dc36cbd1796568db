"""Digests of arrays: the same wherever and however they lie, and another for any other numbers."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab.digests import CHUNK, digest, digests

ROOT = Path(__file__).resolve().parents[2]


def numbers(n, dtype="float32"):
    """Incompressible numbers of a dtype."""
    x = np.random.default_rng(0).normal(size=n) * 100
    return np.array(jnp.asarray(x).astype(dtype))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(), (0,), (7,), (5, 3, 11)])
def test_the_host_and_a_device_say_the_same(dtype, shape):
    x = numbers(int(np.prod(shape)), dtype).reshape(shape)
    assert digest(x) == digest(jnp.asarray(x))


def test_pieces_on_the_host_are_one_array():
    x = numbers(2 * CHUNK + 5)
    assert digest(x) == digest(jnp.asarray(x))


def test_any_flipped_bit_is_another_digest():
    x = numbers(16)
    seen = {digest(x)}
    for i in range(16):
        for bit in range(32):
            y = x.view(np.uint32).copy()
            y[i] ^= np.uint32(1 << bit)
            seen.add(digest(y.view(np.float32)))
    assert len(seen) == 1 + 16 * 32


def test_any_two_swapped_numbers_are_another_digest():
    """Of which some differ in their sign alone, as sums of products would not see."""
    x = numbers(24)
    x[12:] = -x[:12]
    seen = {digest(x)}
    for i in range(24):
        for j in range(i):
            y = x.copy()
            y[[i, j]] = x[[j, i]]
            seen.add(digest(y))
    assert len(seen) == 1 + 24 * 23 // 2


def test_dtype_shape_and_name_count():
    x = numbers(12)
    assert len({digest(x), digest(x.view(np.int32)), digest(x.reshape(3, 4)), digest(x.reshape(4, 3))}) == 4
    assert list(digests({"a": {"b": x}})) == ["a.b"]


CODE = """
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P, Mesh
from lab.digests import digests
x = {"w": np.arange(8 * 16 * 4, dtype=np.float32).reshape(8, 16, 4) ** 1.5, "b": np.arange(16, dtype=np.float32)}
want = digests(x)
mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("a", "b"))
for spec in (P(), P("a"), P(("a", "b")), P("b", "a"), P(None, ("b", "a")), P(None, "a", "b"), P("a", "b", None)):
    on = {"w": jax.device_put(x["w"], NamedSharding(mesh, spec)), "b": jax.device_put(x["b"], NamedSharding(mesh, P("a")))}
    assert digests(on) == want, spec
bad = np.array(x["w"]); bad[0, 0, 1], bad[7, 15, 3] = bad[7, 15, 3], bad[0, 0, 1]
assert digests({"w": jax.device_put(bad, NamedSharding(mesh, P("a")))})["w"] != want["w"]
whole = NamedSharding(mesh, P())
copies = [jax.device_put(bad if d.id == 2 else x["w"], d) for d in jax.devices()]
odd = digests({"w": jax.make_array_from_single_device_arrays(bad.shape, whole, copies)})["w"]
assert "/" in odd and odd != want["w"], odd  # one of eight copies is another
print(len(jax.devices()))
"""


def test_any_sharding_over_eight_devices_says_the_same():
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", CODE], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["8"]


def test_nothing_is_gathered():
    """Each device sums its own part: the compiled program has sums between devices and no gathering."""
    from lab.digests import _on_devices

    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("a",))
    x = jax.device_put(np.zeros((4, 6), np.float32), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "a")))
    text = _on_devices.lower([x], mesh, False).compile().as_text()
    assert "all-reduce" in text
    assert "all-gather" not in text
