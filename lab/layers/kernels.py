"""The attention kernel of a platform: Pallas on TPUs, cuDNN on GPUs; elsewhere, and where none fits, attention is as it is written."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

LANES = 128  # of a TPU: sequences are padded to a multiple of it
BLOCK = 512  # most queries or keys that a TPU's kernel holds at once


class Where(NamedTuple):
    """A platform, and for several devices their mesh with `spec(names, shape)`, by which an array lies on them."""

    platform: str
    mesh: Mesh | None = None
    spec: Callable[[tuple[str, ...], tuple[int, ...]], PartitionSpec] | None = None


CPU = Where("cpu")
_where: ContextVar[Where] = ContextVar("where", default=CPU)


@contextmanager
def on(where: Where) -> Iterator[None]:
    """Within it attention is traced with the kernels of a platform.

    Only what is compiled for a device is: what is traced to be counted, probed or audited has attention as it is written.
    """
    before = _where.set(where)
    try:
        yield
    finally:
        _where.reset(before)


def chosen(q: jax.Array, k: jax.Array, masked: bool, causal: bool) -> Callable | None:
    """The kernel(q, k, v) of where this is traced for, or None.

    Kernels are for 16-bit floats, whose softmax they take in float32: what asks for float32 is not to get less. q [B, T, heads, E], k
    and v [B, S, groups, E]; `masked` where a mask is given that is not the causal one.
    """
    where = _where.get()
    if q.dtype not in (jnp.bfloat16, jnp.float16) or k.dtype != q.dtype or (masked and not causal):
        return None
    if where.platform in ("gpu", "cuda") and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128:
        return lambda q, k, v: jax.nn.dot_product_attention(q, k, v, scale=1.0, is_causal=causal, implementation="cudnn")
    if where.platform == "tpu" and min(q.shape[1], k.shape[1]) >= LANES:
        return _on_mesh(where, q, k, causal)
    return None


def _on_mesh(where: Where, q: jax.Array, k: jax.Array, causal: bool) -> Callable | None:
    """The TPU kernel, on each device for the examples, heads and queries that lie there; a Pallas call is not divided by itself."""
    if where.mesh is None:
        return lambda q, k, v: _splash(q, k, v, causal)
    asks = where.spec(("batch", "tokens", "heads", "head_dim"), q.shape)
    looked = where.spec(("batch", "", "kv_heads", "head_dim"), k.shape)
    if causal and asks[1] is not None:
        return None  # a device's queries would not begin at the first key

    def call(q, k, v):
        specs = (asks, looked, looked)
        if looked[2] != asks[2]:  # a device has other heads than the keys they share
            k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
            specs = (asks, *[PartitionSpec(looked[0], None, asks[2], None)] * 2)
        # the kernel does not say over which axes its output varies, which check_vma would want
        return jax.shard_map(lambda *x: _splash(*x, causal), mesh=where.mesh, in_specs=specs, out_specs=asks, check_vma=False)(q, k, v)

    return call


def _splash(q: jax.Array, k: jax.Array, v: jax.Array, causal: bool) -> jax.Array:
    """JAX's splash attention for arrays as `chosen` has them, padded to whole blocks."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    asked, looked, heads = q.shape[1], k.shape[1], q.shape[2]
    q, k, v = (_padded(x).swapaxes(1, 2) for x in (q, k, v))
    shape = (q.shape[2], k.shape[2])
    mask = masks.MultiHeadMask([masks.CausalMask(shape) if causal else masks.FullMask(shape)] * heads)
    rows, columns = (math.gcd(n, BLOCK) for n in shape)
    sizes = kernel.BlockSizes(block_q=rows, block_kv=columns, block_q_dkv=rows, block_kv_dkv=columns, block_q_dq=rows, block_kv_dq=columns)
    call = kernel.make_splash_mha(mask, block_sizes=sizes, head_shards=1, q_seq_shards=1)
    told = None
    if not causal and looked < shape[1]:  # padding comes last, where no causal query looks
        told = kernel.SegmentIds(jnp.zeros(shape[0], jnp.int32), (jnp.arange(shape[1]) >= looked).astype(jnp.int32))
    return jax.vmap(lambda q, k, v: call(q, k, v, segment_ids=told))(q, k, v).swapaxes(1, 2)[:, :asked]


def _padded(x: jax.Array) -> jax.Array:
    """[B, T, heads, E] with zeros up to a multiple of LANES tokens."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % LANES), (0, 0), (0, 0)))
