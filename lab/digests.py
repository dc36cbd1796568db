"""Checksums of arrays that depend on no layout: equal on the host, on one device and sharded over many processes."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

CHUNK = 1 << 16  # numbers hashed at once on the host: they, and what is made of them, stay in a core's cache
WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint32}  # of an element's bits, by its bytes


def named(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their paths."""
    return {jax.tree_util.keystr(k, simple=True, separator="."): x for k, x in jax.tree_util.tree_leaves_with_path(tree)}


def kind(x: Any, rows: int | None = None) -> str:
    """dtype and shape of an array or a description of one, or of its first `rows`."""
    shape = x.shape if rows is None else (min(rows, x.shape[0]), *x.shape[1:])
    return f"{np.dtype(x.dtype).name}-{'x'.join(map(str, shape))}"


def _mixed(bits: Any, index: Any) -> tuple[Any, Any]:
    """Two words of each number's bits and place, uint32, both one to one in the bits: a sum of them shows every change of one number.

    The finalizer of MurmurHash3 (A. Appleby, public domain), and one more round of it.
    """
    h = bits ^ (index * np.uint32(0x9E3779B1))
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h = (h ^ (h >> np.uint32(shift))) * np.uint32(factor)
    first = h ^ (h >> np.uint32(16))
    second = first * np.uint32(0x27D4EB2F)
    return first, second ^ (second >> np.uint32(15))


def _sums(x: jax.Array, by_row: bool) -> jax.Array:
    """[2] uint32 of an array, traced, or [rows, 2] of each row: each device sums its own part, and nothing is gathered."""
    x = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else x
    bits = jax.lax.bitcast_convert_type(x, WORDS[x.dtype.itemsize]).astype(jnp.uint32)
    index = jnp.zeros(bits.shape, jnp.uint32)  # the place in row-major order, made dim by dim: a reshape would move the parts
    for d in range(bits.ndim):
        stride = np.uint32(math.prod(bits.shape[d + 1 :]) % 2**32)
        index += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, d) * stride
    return jnp.stack([jnp.sum(w, tuple(range(by_row, w.ndim)), dtype=jnp.uint32) for w in _mixed(bits, index)], axis=-1)


@partial(jax.jit, static_argnums=(1, 2))
def _on_devices(leaves: list[jax.Array], mesh: Mesh | None, by_row: bool) -> jax.Array:
    """[..., leaves, 2]: one array, as each that Python reads costs it some 0.1 ms."""
    sums = jnp.stack([_sums(x, by_row) for x in leaves], axis=-2)
    # whole on every device, so that every process can read them
    return sums if mesh is None or by_row else jax.lax.with_sharding_constraint(sums, NamedSharding(mesh, PartitionSpec()))


def _read(leaves: list[jax.Array], mesh: Mesh | None, rows: int | None) -> list[np.ndarray]:
    """[leaves, 2] of each device's copy; of the first `rows` once, from sums by rows, for which devices need not wait for each other."""
    if not leaves:
        return []
    sums = _on_devices(leaves, mesh, rows is not None)
    if rows is None:
        return [np.asarray(s.data) for s in sums.addressable_shards]
    return [np.sum(np.asarray(sums)[:rows], axis=0, dtype=np.uint32)]


def _on_host(x: np.ndarray) -> np.ndarray:
    """What `_sums` gives, of an array on the host."""
    bits = np.ascontiguousarray(x).reshape(-1).view(WORDS[x.dtype.itemsize])
    total = [0, 0]
    for at in range(0, bits.size, CHUNK):
        part = bits[at : at + CHUNK].astype(np.uint32)
        words = _mixed(part, np.arange(at, at + part.size, dtype=np.uint64).astype(np.uint32))
        total = [t + int(w.sum(dtype=np.uint64)) for t, w in zip(total, words, strict=True)]
    return np.array([t % 2**32 for t in total], np.uint32)


def digests(tree: Any, rows: int | None = None) -> dict[str, str]:
    """Checksum of each leaf's bits and their order, with its dtype and shape: of arrays on the host, or on the devices of one mesh.

    With `rows`, it is that of the first so many of every leaf, of arrays of one process of which no device has a copy of another's. Copies on
    several devices that differ have a checksum each, joined by '/': such a digest is that of no sound array.

    Of 64 bits: a change of any one number changes it, other changes do but for one in 2^64.
    """
    flat = named(tree)
    on = {k: x for k, x in flat.items() if isinstance(x, jax.Array)}
    mesh = next((x.sharding.mesh for x in on.values() if isinstance(x.sharding, NamedSharding)), None)
    sums = _read(list(on.values()), mesh, rows)
    places, out = {k: i for i, k in enumerate(on)}, {}
    for k, x in flat.items():
        x = x if k in on else np.asarray(x)
        seen = [s[places[k]] for s in sums] if k in on else [_on_host(x if rows is None else x[:rows])]
        out[k] = "/".join(sorted({f"{first:08x}{second:08x}" for first, second in seen})) + f"-{kind(x, rows)}"
    return out


def digest(x: Any) -> str:
    """`digests` of one array."""
    return digests([x])["0"]
