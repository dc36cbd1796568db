"""Meissonic's masked model: what it may see, what it costs with and without compression, and that its arrows are true."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from lab import audit, cost
from lab.axes import Dims
from lab.errors import UserError
from lab.layers import embed
from lab.models import meissonic
from lab.objectives.unmask import Objective
from lab.optim import schedule
from lab.population import described
from lab.train import Program

SOURCE = {"side": 4, "tokens": 16, "vocabulary": 5, "classes": 3, "words": 7, "length": 3}
KNOBS = dict(width=32, depth=1, single=1, head_dim=16, mlp_ratio=2, side=4, vocabulary=5, words=7, length=3)
COMPRESS = pytest.mark.parametrize("compress", [1, 2])


def model(**knobs):
    """A described model."""
    return meissonic.Model(Dims.of(meissonic.Model.axes, {**KNOBS, **knobs}, {"width": 32}), True, False)


def given(n=16, seed=0):
    """One random grid and text, n times, half of its tokens masked."""
    rng = np.random.default_rng(seed)
    tokens = np.where(np.arange(16) % 2, -1, rng.integers(0, 5, 16)).reshape(1, 4, 4).astype(np.int32)
    one = {"tokens": tokens, "t": np.full(1, 0.5, np.float32), "text": rng.integers(1, 7, (1, 3), np.int32)}
    return {k: np.repeat(v, n, 0) for k, v in one.items()}


@COMPRESS
def test_every_position_listens_to_every_token_and_to_rate_and_text(compress):
    m, data = small.drawn(model(compress=compress)), given()
    run = jax.jit(lambda m, x: m(x))
    out = np.asarray(run(m, data))
    assert out.shape == (16, 16, 5)
    one = np.eye(16, dtype=bool).reshape(16, 4, 4)
    found = np.abs(run(m, {**data, "tokens": np.where(one, (data["tokens"] + 2) % 5, data["tokens"])}) - out).max(-1)
    assert found.min() > 1e-4  # row i: token i changed, or told where it was masked
    np.testing.assert_array_equal(run(m, {**data, "tokens": np.where(data["tokens"] < 0, 5, data["tokens"])}), out)
    flat = np.asarray(run(m, {**data, "tokens": 0 * data["tokens"]}))[0]  # equal tokens are told apart by angles, and by their cells' parts
    assert np.abs(flat[:, None] - flat[None]).max(-1)[~np.eye(16, dtype=bool)].min() > 1e-4
    for key, change in (("t", 0.2), ("text", -1)):
        other = data[key].copy()
        other[3] += np.asarray(change, other.dtype)
        moved = np.abs(run(m, {**data, key: other}) - out).max((1, 2))
        assert np.flatnonzero(moved > 1e-4).tolist() == [3]


def test_compression_is_a_convolution_and_its_transpose():
    dims = Dims.of(meissonic.Model.axes, {**KNOBS, "compress": 2}, {"width": 32})
    m = small.drawn(meissonic.Model(dims, True, False))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4, 32)), jnp.float32)
    kernel, names = m.down.get_value().reshape(2, 2, 32, 32), ("NHWC", "HWIO", "NHWC")
    want = jax.lax.conv_general_dilated(x, kernel, (2, 2), "VALID", dimension_numbers=names)
    cells = embed.patchify(x, 2).reshape(2, 4, 4, 32)
    found = embed.project(cells, m.down.get_value(), jnp.zeros(32), 2)
    np.testing.assert_allclose(found.reshape(2, 2, 2, 32), want, rtol=1e-4, atol=1e-4)
    up = m.up.get_value()
    kernel = up.reshape(32, 2, 2, 32).transpose(1, 2, 0, 3)
    want = jax.lax.conv_transpose(found.reshape(2, 2, 2, 32), kernel[::-1, ::-1], (2, 2), "VALID", dimension_numbers=names)
    wide = embed.project(found, up, jnp.zeros(32)).reshape(2, 4, -1)
    np.testing.assert_allclose(embed.unpatchify(wide, 2, 4), want, rtol=1e-3, atol=1e-3)


def config(**more):
    """A study's config of this model."""
    c = small.config()
    c["model"] = dict(name="meissonic", width=32, depth=1, single=1, head_dim=16, mlp_ratio=2, qk_norm=True, zero_gates=False) | more
    c["objective"] = dict(name="unmask", schedule="cosine", weighting="plain", label_drop=0.1)
    return c


@pytest.mark.parametrize("more", [{}, dict(compress=2, depth=2, single=9, width=64)])
def test_every_arrow_is_true(more):
    batch = {"tokens": np.zeros((2, 4, 4), np.int32), "text": np.ones((2, 3), np.int32), "label": np.zeros(2, np.int32)}
    assert audit.truth(config(**more), SOURCE, batch) == {}


def by_hand(n, width, depth, single, mlp_ratio, side, vocabulary, length, compress=1, **_):
    """FLOPs forward and of the gradient: 2 m n k of every product; the features of the rate need no gradient."""
    image = (side // compress) ** 2
    both = image + length
    block = 2 * n * both * width**2 * (4 + 2 * mlp_ratio) + 4 * n * both**2 * width
    encoder = 2 * n * length * width**2 * (4 + 2 * mlp_ratio) + 4 * n * length**2 * width
    condition = 2 * n * 256 * width + 3 * (2 * n * width**2)
    modulation = 2 * n * width**2 * (12 * depth + 3 * single + 2)
    ends = 2 * (2 * n * image * compress**2 * width**2) + 2 * n * side**2 * width * vocabulary
    forward = (depth + single) * block + encoder + condition + modulation + ends
    return forward, 3 * forward - 2 * n * 256 * width


@pytest.mark.parametrize("more", [{}, dict(compress=2, depth=2, single=3), dict(width=64, compress=4)])
def test_flops_equal_the_hand_count(more):
    prog = Program(model(**more), None, Objective("cosine", "plain", 0.1), schedule("constant", 20, 0, 0.2), jnp.float32)
    shapes = {"tokens": jax.ShapeDtypeStruct((4, 4, 4), jnp.int32), "text": jax.ShapeDtypeStruct((4, 3), jnp.int32)}
    args = described(prog), jax.eval_shape(lambda: jax.random.key(0)), shapes

    def f(p, k, b):
        return jnp.mean(prog.loss(p, k, b))

    forward, gradient = by_hand(4, **{**KNOBS, **more})
    assert cost.flops(f, *args) == forward
    assert cost.flops(jax.grad(f), *args) == gradient


def test_mistakes_are_one_line():
    data = given(1)
    for key in data:
        with pytest.raises(UserError, match=rf"'meissonic' takes tokens, t, text; missing: {key},"):
            model()({k: v for k, v in data.items() if k != key})
    with pytest.raises(UserError, match=r"side=4 is not a multiple of model\.compress=3; nearest: 3 or 6"):
        model(compress=3)
    with pytest.raises(UserError, match="reads text, and the source gives none"):
        model(length=0)
