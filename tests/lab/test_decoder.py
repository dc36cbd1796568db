"""The decoder sees what it may and no more, with a cache as without, and its arrows, cost and errors are as they should be."""

import branches
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from lab import audit, axes, cost
from lab.axes import Dims, inside
from lab.errors import UserError
from lab.layers import causal, rope
from lab.models import decoder, shared
from lab.objectives import next_token
from lab.optim import schedule
from lab.population import described
from lab.train import Program

KNOBS = dict(width=32, depth=2, head_dim=8, mlp_ratio=2, vocabulary=9, tokens=9, side=3, classes=4)
PREFIXES = {"label": {}, "words": dict(words=7, length=3), "features": dict(features=6, length=3)}


@pytest.fixture(autouse=True)
def rolled(monkeypatch):
    """A rolled stack compiles faster; where it matters a test unrolls it."""
    monkeypatch.setattr(shared, "UNROLL", 0)


def dims(**knobs):
    return Dims.of(decoder.Model.axes, KNOBS | knobs, {"width": 32})


def model(rope="grid", qk_norm=False, **knobs):
    return decoder.Model(dims(**knobs), qk_norm, rope)


def inputs(prefix="label", n=3, seed=0):
    rng = np.random.default_rng(seed)
    given = {"tokens": rng.integers(0, 9, (n, 3, 3)), "label": rng.integers(-1, 4, n)}
    if prefix != "label":
        given["text"] = rng.integers(0, 7, (n, 3)) if prefix == "words" else rng.normal(size=(n, 3, 6)).astype(np.float32)
    return jax.tree.map(jnp.asarray, given)


@pytest.mark.parametrize("rope, prefix", [("line", "words"), ("grid", "label")])
def test_logits_depend_on_the_prefix_and_earlier_tokens_alone(rope, prefix):
    """Every token occurs once, so that the gradient in a row of the table is that in a place."""
    params, order = small.drawn(model(rope, **PREFIXES[prefix])), np.random.default_rng(1).permutation(9)
    given = inputs(prefix, 1) | {"tokens": jnp.asarray(order).reshape(1, 3, 3), "label": jnp.array([2])}
    mix = jnp.asarray(np.random.default_rng(2).normal(size=9), jnp.float32)
    row = "label.table" if prefix == "label" else "text.positions"

    @jax.jit
    def slope(m):  # of the logits at every place
        found = axes.weights(jax.jacrev(lambda m: m(given)[0] @ mix)(m))
        return [jnp.abs(found[n].get_value()).max(-1) for n in ("table", row)]

    moved, said = map(np.asarray, slope(params))
    moved = moved[:, order]
    earlier = np.tril(np.ones((9, 9), bool), -1)
    assert np.all(moved[~earlier] == 0)
    assert np.all(moved[earlier] > 1e-4)
    # of the row of the asked label, or of every place in the text
    assert np.all(said[:, [2] if prefix == "label" else [0, 1, 2]] > 1e-4)


@pytest.mark.parametrize("prefix, rope, kv_group, unroll", [("label", "grid", 2, 8), ("words", "line", 4, 0), ("features", "line", 1, 0)])
def test_decoding_with_a_cache_gives_the_logits_of_all_tokens_at_once(prefix, rope, kv_group, unroll, monkeypatch):
    monkeypatch.setattr(shared, "UNROLL", unroll)
    params, given = small.drawn(model(rope, qk_norm=True, kv_group=kv_group, **PREFIXES[prefix])), inputs(prefix)

    @jax.jit
    def decode(m, given):
        flat = given["tokens"].reshape(3, -1)
        first, cache = m({k: v for k, v in given.items() if k != "tokens"}, m.init_cache(3))

        def step(cache, token):
            logits, cache = m({"tokens": token[:, None]}, cache)
            return cache, logits

        cache, rest = jax.lax.scan(step, cache, flat[:, :-1].T)
        return m(given), jnp.concatenate([first, rest[:, :, 0].transpose(1, 0, 2)], 1), cache["position"]

    want, found, position = decode(params, given)
    assert want.shape == (3, 9, 9)
    np.testing.assert_allclose(found, want, atol=1e-5 * float(jnp.abs(want).max()))
    assert position == (1 if prefix == "label" else 3) + 8


def test_the_cache_has_the_compute_dtype_and_a_step_keeps_its_shape():
    shapes = jax.eval_shape(lambda p: axes.view(p, jnp.bfloat16), described(program(qk_norm=True, kv_group=2)))
    step = jax.eval_shape(lambda m: m({"tokens": jnp.zeros((2, 1), int)}, m.init_cache(2)), shapes)
    logits, cache = step
    assert logits.shape == (2, 1, 9)
    assert logits.dtype == jnp.bfloat16
    assert cache == jax.eval_shape(lambda m: m.init_cache(2), shapes)
    assert cache["keys"].shape == (2, 2, 9, 2, 8)
    assert cache["keys"].dtype == jnp.bfloat16


def by_hand(mixer, x, angles):
    """Causal attention head by head in numpy, each head with the keys and values of its group."""
    w = {k: np.asarray(v.get_value(), np.float64) for k, v in axes.weights(mixer).items()}
    x, half = np.asarray(x, np.float64), angles.shape[1]
    turn = np.exp(1j * np.asarray(angles, np.float64))
    out, heads, groups = 0, w["query"].shape[1], w["key_value"].shape[2]

    def turned(y):  # pairs of features as complex numbers
        z = (y[..., :half] + 1j * y[..., half:]) * turn
        return np.concatenate([z.real, z.imag], -1)

    for h in range(heads):
        g = h // (heads // groups)
        q, k, v = turned(x @ w["query"][:, h]), turned(x @ w["key_value"][0, :, g]), x @ w["key_value"][1, :, g]
        scores = np.exp(w["logits"] * q @ k.swapaxes(1, 2)) * np.tril(np.ones((x.shape[1],) * 2))
        out = out + scores / scores.sum(-1, keepdims=True) @ v @ w["out"][h]
    return out


mix = jax.jit(lambda mixer, x, angles: mixer(x, angles)[0])


def test_attention_equals_that_by_hand_and_groups_equal_repeated_heads():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 32)), jnp.float32)
    angles = rope.line(6, 8)
    for group in (1, 2):
        mixer = small.drawn(causal.Attention(dims(kv_group=group), False))
        found = mix(mixer, x, angles)
        np.testing.assert_allclose(found, by_hand(mixer, x, angles), rtol=1e-4, atol=1e-5)
    plain = small.drawn(causal.Attention(dims(), False), seed=1)  # a key head for every query head, equal ones within a group
    plain.query, plain.out = mixer.query, mixer.out
    plain.key_value = plain.key_value.replace(jnp.repeat(mixer.key_value.get_value(), 2, axis=2))
    np.testing.assert_allclose(mix(plain, x, angles), found, rtol=1e-4, atol=1e-5)


def test_attention_knows_places_by_their_differences_alone():
    mixer = small.drawn(causal.Attention(dims(), True))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 9, 32)), jnp.float32)
    grid = rope.grid(8, 8).reshape(8, 8, -1)
    line = rope.line(40, 8)
    for here, there, other in (
        (line[:9], line[23:32], line[:18:2]),
        (grid[:3, :3].reshape(9, -1), grid[4:7, 2:5].reshape(9, -1), grid[:3, :3].swapaxes(0, 1).reshape(9, -1)),
    ):
        want = mix(mixer, x, here)
        np.testing.assert_allclose(mix(mixer, x, there), want, rtol=1e-3, atol=1e-4)
        assert float(jnp.abs(mix(mixer, x, other) - want).max()) > 1e-2


def test_closers_end_branches_and_kv_heads_move_with_width():
    for knobs in PREFIXES.values():
        found = axes.weights(model(qk_norm=True, kv_group=2, **knobs))
        assert {n for n, w in found.items() if w.arrow.closes} == {"blocks.attention.out", "blocks.mlp.down"}
    wide = axes.weights(model(kv_group=2, width=64))["blocks.attention.key_value"]
    assert wide.get_value().shape == (2, 2, 64, 4, 8)
    assert wide.arrow.r_out == 2


@pytest.mark.parametrize("prefix, rope, depth", [("label", "grid", 1), ("words", "line", 10), ("features", "line", 2)])
def test_every_arrow_is_true(prefix, rope, depth):
    config = small.config(objective=dict(name="next_token", label_drop=0.1))
    config["model"] = dict(name="decoder", width=32, depth=depth, head_dim=8, mlp_ratio=2, kv_group=2, qk_norm=True, rope=rope)
    if prefix == "words":
        config["model"]["text_depth"] = 1
    source = {k: v for k, v in KNOBS.items() if k in ("vocabulary", "tokens", "side", "classes")} | PREFIXES[prefix]
    assert audit.truth(config, source, inputs(prefix)) == {}


def program(**options):
    return Program(model(**options), None, next_token.Objective(0.1, 1e-4), schedule("constant", 10, 0, 0.2), jnp.float32)


def count(width, depth, head_dim, mlp_ratio, vocabulary, tokens, kv_group=1, length=1, **_):
    """FLOPs of the loss of 3 examples, 2 m n k of every matmul, by pen."""
    seen = length + tokens - 1
    n = 3 * seen
    projections = 2 * n * width * width * 2 + 2 * n * width * 2 * (width // kv_group)
    attention = 2 * (2 * 3 * (width // head_dim) * seen * seen * head_dim)
    mlp = 3 * 2 * n * width * mlp_ratio * width
    return depth * (projections + attention + mlp) + 2 * 3 * tokens * width * vocabulary


@pytest.mark.parametrize("knobs", [{}, dict(width=64, depth=1, kv_group=4), dict(depth=12, kv_group=2), PREFIXES["words"]])
def test_flops_equal_the_hand_count_exactly(knobs):
    prog, given = program(qk_norm=True, **knobs), inputs("words" if "words" in knobs else "label")
    f, args = lambda p, k, b: jnp.mean(prog.loss(p, k, b)), (described(prog), jax.random.key(0), given)
    assert cost.flops(f, *args) == count(**KNOBS | knobs)
    assert cost.flops(jax.grad(f), *args) == 3 * count(**KNOBS | knobs)  # tables are weights: no input is without a gradient


@pytest.mark.parametrize("qk_norm", [False, True])
def test_with_all_closers_but_one_at_zero_the_branch_is_linear_in_that_one(qk_norm):
    block = small.drawn(inside(decoder.Block(dims(kv_group=2), qk_norm), dims()))
    x, angles = jnp.asarray(np.random.default_rng(1).normal(size=(2, 5, 32)), jnp.float32), rope.line(5, 8)
    branches.check(block, lambda block: block(x, angles)[0] - x, {"attention.out", "mlp.down"})


def test_sizes_and_inputs_that_do_not_fit_are_the_users_errors():
    for said, knobs in {
        r"model.rope 'gird'.*nearest: 'grid'": dict(rope="gird"),
        r"heads .*=4 is not a multiple of model.kv_group=3; nearest: 3 or 6": dict(kv_group=3),
        r"model.head_dim=2 is not a multiple of 4 \(rotary": dict(head_dim=2),
        r"model.head_dim=1 is not a multiple of 2 \(rotary": dict(head_dim=1, rope="line"),
        r"tokens=9, side=0; expected 'line'": dict(side=0),
        r"the source gives none": dict(text_depth=1),
    }.items():
        with pytest.raises(UserError, match=said):
            model(**knobs)
    params, given = small.drawn(model()), inputs()
    for key in ("tokens", "label"):
        with pytest.raises(UserError, match=rf"missing: {key},"):
            params({k: v for k, v in given.items() if k != key})
    with pytest.raises(UserError, match="takes label; missing: label"):
        params({}, params.init_cache(3))
    with pytest.raises(UserError, match="is of 9 tokens; given: 6"):
        params(given | {"tokens": given["tokens"][:, :2]})
