"""Attention by a platform's kernel is what it is as written, padded, grouped and causal; and only what is compiled for a device has it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel
from jax.sharding import Mesh, PartitionSpec

from lab.layers import kernels
from lab.layers.attention import attend

CASES = {  # heads, groups, queries, keys, head_dim, causal
    "whole blocks": (2, 2, 256, 256, 64, False),
    "padded": (2, 2, 200, 200, 64, False),
    "fewer queries than keys": (2, 2, 130, 300, 64, False),
    "causal and grouped": (4, 2, 200, 200, 64, True),
}


@pytest.fixture
def interpreted(monkeypatch):
    """The TPU's kernel, computed by this machine."""
    monkeypatch.setattr(splash_attention_kernel, "make_splash_mha", partial(splash_attention_kernel.make_splash_mha, interpret=True))


def drawn(heads, groups, queries, keys, head_dim, dtype=jnp.bfloat16):
    rng = np.random.default_rng(0)
    shapes = ((2, queries, heads, head_dim), (2, keys, groups, head_dim), (2, keys, groups, head_dim))
    q, k, v = (jnp.asarray(rng.normal(size=s), dtype) for s in shapes)
    return q * head_dim**-0.5, k, v


def out_and_gradients(q, k, v, causal, where):
    mask = jnp.tril(jnp.ones((q.shape[1], k.shape[1]), bool)) if causal else None
    weights = jnp.asarray(np.random.default_rng(1).normal(size=q.shape), jnp.float32)

    def loss(q, k, v):
        with kernels.on(where):
            out = attend(q, k, v, mask, causal=causal)
        return jnp.sum(out.astype(jnp.float32) * weights), out

    return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(q, k, v)


@pytest.mark.parametrize("case", CASES)
def test_the_tpus_kernel_gives_what_attention_does(case, interpreted):
    *shape, causal = CASES[case]
    q, k, v = drawn(*shape)
    (_, want), want_grads = out_and_gradients(q, k, v, causal, kernels.Where("cpu"))
    (_, got), grads = out_and_gradients(q, k, v, causal, kernels.Where("tpu"))
    assert not np.array_equal(got, want)  # another program, so rounded otherwise
    for a, b in zip((got, *grads), (want, *want_grads), strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        assert np.max(np.abs(a - b)) < 0.03 * np.max(np.abs(b))


def kernel_of(where, causal=False, masked=False, queries=256, dtype=jnp.bfloat16):
    q, k, _ = drawn(2, 2, queries, queries, 64, dtype)
    with kernels.on(where):
        return kernels.chosen(q, k, masked, causal)


def test_who_has_a_kernel():
    tpu = kernels.Where("tpu")
    assert kernel_of(tpu)
    assert kernel_of(tpu, masked=True, causal=True)
    assert kernel_of(kernels.Where("gpu"), queries=16)
    assert kernel_of(tpu, masked=True) is None  # a mask that the kernel is not told
    assert kernel_of(tpu, queries=64) is None  # mostly padding
    assert kernel_of(tpu, dtype=jnp.float32) is None
    assert kernel_of(kernels.Where("gpu"), dtype=jnp.float32) is None
    assert kernel_of(kernels.Where("cpu")) is None
    assert kernels.chosen(*drawn(2, 2, 256, 256, 64)[:2], False, False) is None
    mesh = Mesh(np.array(jax.devices("cpu")[:2]).reshape(1, 2), ("data", "sequence"))
    divided = kernels.Where("tpu", mesh, lambda names, shape: PartitionSpec(*("sequence" if n == "tokens" else None for n in names)))
    assert kernel_of(divided)
    assert kernel_of(divided, causal=True) is None


def test_on_a_cpu_the_program_is_the_same():
    q, k, v = drawn(2, 2, 256, 256, 64)
    plain = jax.jit(attend).lower(q, k, v).as_text()

    def on_cpu(q, k, v):
        with kernels.on(kernels.Where("cpu")):
            return attend(q, k, v)

    on_cpu.__name__ = "attend"
    assert jax.jit(on_cpu).lower(q, k, v).as_text() == plain


def test_heads_that_share_keys_lie_with_them_on_a_mesh(interpreted):
    """Four heads over two devices, of two groups that one device alone would hold: keys are given to each head."""
    q, k, v = drawn(4, 1, 128, 128, 64)
    mesh = Mesh(np.array(jax.devices("cpu")[:2]), ("tensor",))

    def spec(names, shape):
        return PartitionSpec(*("tensor" if n in ("heads", "kv_heads") and s % 2 == 0 else None for n, s in zip(names, shape, strict=True)))

    (_, want), _ = out_and_gradients(q, k, v, False, kernels.Where("cpu"))
    (_, got), _ = jax.jit(lambda q, k, v: out_and_gradients(q, k, v, False, kernels.Where("tpu", mesh, spec)))(q, k, v)
    np.testing.assert_allclose(np.asarray(got, np.float32), np.asarray(want, np.float32), atol=0.02)
