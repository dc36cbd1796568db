"""Next-DiT: what its sandwich norms, gates, words and positions promise, what it costs, and how it fails."""

import branches
import jax
import jax.numpy as jnp
import mistakes
import numpy as np
import pytest
import small

from lab import axes, cost, parametrization
from lab.axes import Dims, inside, weight
from lab.errors import UserError
from lab.formats import nextdit as format
from lab.formats.rules import apply, invert
from lab.layers import rope, stretch
from lab.models import nextdit
from lab.objectives import conditions, flow
from lab.population import build
from lab.probe import audit, probe

TOKENS, FEATURES = dict(words=9, length=5), dict(features=12, length=5)
KNOBS = dict(width=32, depth=2, head_dim=8, mlp_ratio=2, kv_group=2, patch=4, image=16, channels=1)
both = pytest.mark.parametrize("told", [TOKENS, FEATURES], ids=["tokens", "features"])
run = jax.jit(lambda part, *given: part(*given))


def sized(told=TOKENS, base=None, **more):
    return Dims.of(nextdit.Model.axes, {**KNOBS, **told, **more}, base or {"width": 32})


def model(told=TOKENS, qk_norm=True, zero_gates=False, options=None, **more):
    """A described Next-DiT."""
    return nextdit.Model(sized(told, **more), qk_norm, zero_gates, **options or {})


def inputs(told=TOKENS, n=3, side=16):
    """What the model takes; the first text ends in padding, the second is hidden."""
    rng = np.random.default_rng(0)
    text = rng.integers(1, 9, (n, 5)) if "words" in told else rng.normal(size=(n, 5, 12)).astype(np.float32)
    text[0, 3:], text[1:2] = 0, 0
    x, t = rng.normal(size=(n, side, side, 1)), rng.uniform(size=n)
    return {"x": jnp.asarray(x, jnp.float32), "t": jnp.asarray(t, jnp.float32), "text": jnp.asarray(text)}


def block(qk_norm=True, zero_gates=False, more=0.3):
    """One block with random weights, and what it takes: x, condition, words, seen, angles."""
    dims, rng = sized(depth=1), np.random.default_rng(1)
    x, c, words = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, 16, 32), (2, 32), (2, 5, 32)))
    made = small.drawn(inside(nextdit.Block(dims, "embed", qk_norm, zero_gates), dims), more)
    return made, (x, c, words, jnp.arange(5) < jnp.array([[5], [3]]), rope.grid(4, 8))


def test_the_gains_after_the_norms_close_the_branches_and_no_other_weight():
    tree, given = block()
    branches.check(tree, lambda tree: tree(*given) - given[0], {"closer", "mlp_closer"})


def test_what_lies_before_a_norm_has_no_size():
    """The sandwich: ten times the projection, and ten times the last of the MLP, add what they added."""
    tree, given = block()
    more = axes.map_weights(lambda a, x: 10 * x if a.outs == ("embed",) and a.ins in (("heads", "head_dim"), ("mlp",)) else x, tree)
    assert any(not np.array_equal(a, b) for a, b in zip(axes.values(tree), axes.values(more), strict=True))
    np.testing.assert_allclose(run(more, *given), run(tree, *given), rtol=1e-3, atol=1e-3)


def test_at_init_the_output_is_zero_and_with_zero_gates_every_block_the_identity_and_deaf():
    assert not run(small.drawn(model(), more=0), inputs()).any()
    for zero_gates in (True, False):
        tree, given = block(zero_gates=zero_gates, more=0)
        moved = float(jnp.abs(run(tree, *given) - given[0]).mean())
        assert moved == 0 if zero_gates else moved > 1e-2
    tree, (x, c, words, seen, angles) = block()
    deaf = axes.map_weights(lambda a, v: jnp.zeros_like(v) if a.outs == ("heads",) else v, tree)
    assert float(jnp.abs(run(tree, x, c, words, seen, angles) - run(tree, x, c, -words, seen, angles)).max()) > 1e-3
    np.testing.assert_array_equal(run(deaf, x, c, words, seen, angles), run(deaf, x, c, -words, seen, angles))


@both
def test_words_matter_and_padding_is_not_read(told):
    m, given = small.drawn(model(told)), inputs(told)
    out, text = run(m, given), given["text"]
    other = run(m, {**given, "text": text.at[2, 4].set(text[2, 3])})
    np.testing.assert_allclose(out[:2], other[:2], atol=1e-5)
    assert float(jnp.abs(out - other)[2].max()) > 1e-3
    hidden = run(m, {**given, **conditions.hidden(given)})
    np.testing.assert_allclose(hidden[1], out[1], rtol=1e-4, atol=1e-4)
    assert float(jnp.abs(hidden - out)[0].max()) > 1e-3
    if "features" in told:
        slope = jax.jit(jax.grad(lambda text: jnp.sum(m({**given, "text": text}) ** 2)))(text)
        read = np.abs(slope).max(-1) > 0
        assert not read[0, 3:].any()
        assert read[0, :3].all()


def test_a_closing_constant_has_the_depths_factor_and_no_other_has():
    """As the norm before it takes from the weights before it what they start with."""
    for width, depth, want in ((32, 8, 0.25), (64, 8, 0.25), (16, 2, 1.0)):
        dims = sized(width=width, depth=depth, base={"width": 32, "depth": 2})
        tree = nextdit.Model(dims, True, True).blocks
        for rule, factor in (("mup", want), ("depth_mup", want**0.5), ("standard", 1.0), ("spectral", 1.0)):
            drawn = axes.draw(jax.random.key(0), tree, axes.scales(tree, parametrization.table(rule)))
            np.testing.assert_allclose(drawn.closer.get_value(), factor, rtol=1e-6)
            assert np.all(drawn.gains.get_value() == 1)


def test_a_gate_is_seen_by_the_probe_through_its_tanh():
    dims = Dims({"heads": 4})
    gates = [jnp.asarray(x, jnp.float32) for x in ([0.1, 0.2, -1, 0.5], [0.0, 0.3, 0.2, 0.5])]
    now, start = (weight("-> heads", dims).replace(g) for g in gates)
    _, found = probe(lambda w: jnp.sum(jnp.tanh(w.get_value()) * 3), now, start)
    ((value, own),) = found.values()
    np.testing.assert_allclose(value, np.sqrt(np.mean(np.tanh(gates[0]) ** 2)), rtol=1e-6)
    np.testing.assert_allclose(own, np.sqrt(np.mean((np.tanh(gates[0]) - np.tanh(gates[1])) ** 2)), rtol=1e-6)


# ---- positions of images larger than those trained on
PAIRS = 8


@pytest.mark.parametrize("kind", stretch.KINDS)
def test_a_grid_that_is_not_larger_has_its_angles_as_they_are(kind):
    for side in (3, 8):
        angles = stretch.grid(kind, side, 8, 4 * PAIRS, jnp.array([0.2, 0.9]))
        assert angles.shape[-2:] == (side * side, 2 * PAIRS)
        np.testing.assert_allclose(jnp.broadcast_to(angles, (2, side * side, 2 * PAIRS))[1], rope.grid(side, 4 * PAIRS), rtol=1e-6)


def test_interpolation_puts_a_larger_grid_where_the_smaller_one_was():
    small_one = rope.grid(4, 4 * PAIRS).reshape(4, 4, -1)
    np.testing.assert_allclose(stretch.grid("interpolation", 8, 4, 4 * PAIRS).reshape(8, 8, -1)[::2, ::2], small_one, rtol=1e-6)
    assert float(jnp.abs(stretch.grid("none", 8, 4, 4 * PAIRS).reshape(8, 8, -1)[::2, ::2] - small_one).max()) > 1


def test_frequency_aware_scaling_leaves_no_wave_longer_than_the_trained_grid_beyond_it():
    """Longer waves are interpolated exactly; the fastest is untouched; plain NTK, the control, goes beyond what was trained."""
    trained, scale, pairs = 64, 4.0, 64
    plain = 10_000.0 ** (-np.arange(pairs) / pairs)
    long = 2 * np.pi / plain > trained
    found = np.asarray(stretch.rates("frequency", pairs, scale, trained))
    np.testing.assert_allclose(found[long], plain[long] / scale, rtol=1e-5)
    assert found[0] == 1
    assert np.all(np.diff(found) < 0)
    assert np.all((found >= plain / scale * (1 - 1e-6)) & (found <= plain * (1 + 1e-6)))
    assert np.all(found[~long][:-1] > plain[~long][:-1] / scale)
    furthest = np.asarray(stretch.rates("ntk", pairs, scale, trained)) * trained * scale
    assert np.any(furthest[long] > 1.05 * plain[long] * trained)
    np.testing.assert_allclose(stretch.rates("frequency", 8, 2.0, 6), 10_000.0 ** (-np.arange(8) / 8) / 2, rtol=1e-6)  # all are longer


def test_time_aware_scaling_goes_from_interpolation_at_the_noise_to_ntk_at_the_data():
    pairs, scale = 16, 3.0
    noise, middle, data = np.asarray(stretch.rates("time", pairs, scale, 8, jnp.array([1.0, 0.5, 0.0])))
    np.testing.assert_allclose(noise[1:], stretch.rates("interpolation", pairs, scale, 8)[1:], rtol=1e-5)
    assert noise[0] == 1
    np.testing.assert_allclose(data, stretch.rates("ntk", pairs, scale, 8), rtol=1e-5)
    assert np.all((middle >= noise * (1 - 1e-6)) & (middle <= data * (1 + 1e-6)))
    assert not np.allclose(middle, noise)
    assert not np.allclose(middle, data)


def test_no_weight_depends_on_the_size_of_images_and_positions_are_relative():
    m = small.drawn(model(options={"stretch": "none"}))
    shapes = [[w.get_value().shape for w in axes.weights(model(image=side)).values()] for side in (16, 32)]
    assert shapes[0] == shapes[1]
    given = inputs(side=32)
    plain = run(m, given)
    assert plain.shape == (3, 32, 32, 1)
    for kind in stretch.KINDS[1:]:
        m.stretch = kind
        assert float(jnp.abs(run(m, given) - plain).max()) > 1e-3
    half = given["x"][:, :16, :16]  # what is smaller than it was made for is not stretched
    np.testing.assert_array_equal(
        run(m, {**given, "x": half})[0], run(small.drawn(model(options={"stretch": "none"})), {**given, "x": half})[0]
    )


@both
def test_every_arrow_is_true(told):
    objective, given = flow.Objective("uniform", 0.5), inputs(told)
    batch = {"image": given["x"], "text": given["text"]}
    assert audit(lambda m, k, b: jnp.mean(objective.loss(m, k, b)), model(told), jax.random.key(0), batch) == {}


@both
def test_all_is_computed_in_the_weights_type(told):
    out = jax.eval_shape(lambda m, given: axes.view(m, jnp.bfloat16)(given), model(told), inputs(told))
    assert out.dtype == jnp.bfloat16


def by_hand(n, width, depth, head_dim, mlp_ratio, kv_group, patch, image, channels, features, length):
    """FLOPs of Next-DiT with features of text, forward and loss gradient, by pen; see test_cost."""
    tokens, pixels, kv = (image // patch) ** 2, patch**2 * channels, width // kv_group
    blind = 2 * n * (tokens * pixels * width + 256 * width)  # what has no weight before it
    words = 2 * n * length * features * 2 * kv * depth
    attention = 2 * n * tokens * width * (2 * width + 2 * kv + width) + 2 * 2 * n * width * tokens * (tokens + length)
    block = attention + 2 * n * width * 4 * width + 3 * 2 * n * tokens * width * mlp_ratio * width
    rest = 2 * n * (width * width + features * width + width * width + tokens * width * pixels)
    # gains lie before what reads text, so its products have a gradient on both sides
    forward = blind + words + depth * block + rest
    return forward, 3 * forward - blind


@pytest.mark.parametrize("more", [{}, dict(depth=3, width=64, kv_group=1, patch=2)])
def test_flops_equal_the_hand_count_exactly(more):
    m, given = model(FEATURES, **more), inputs(FEATURES)
    forward, gradient = by_hand(3, **KNOBS | FEATURES | more)
    assert cost.flops(lambda m, given: m(given), m, given) == forward
    assert cost.flops(jax.grad(lambda m, given: jnp.sum(m(given) ** 2)), m, given) == gradient


PUBLISHED = {
    **{"_class_name": "LuminaNextDiT2DModel", "hidden_size": 32, "num_layers": 2, "patch_size": 2, "num_attention_heads": 4},
    **{"num_kv_heads": 2, "qk_norm": True, "norm_eps": 1e-5, "multiple_of": 256, "ffn_dim_multiplier": None, "in_channels": 4},
    **{"learn_sigma": True, "sample_size": 8, "cross_attention_dim": 12, "scaling_factor": 1.0},
}


@pytest.mark.parametrize("changes", [{}, dict(learn_sigma=False, qk_norm=False, multiple_of=96, ffn_dim_multiplier=96 / 85)])
def test_the_format_of_lumina_inverts(changes):
    told = PUBLISHED | changes
    sections = format.Format.config(told)
    prog = build({**small.config(), **{k: v for k, v in sections.items() if k != "data"}}, sections["data"])
    assert format.Format.theirs(sections) == told
    rules = format.Format.rules(sections)
    mine = {n: np.asarray(w.get_value()) for n, w in axes.weights(small.drawn(prog.model)).items()}
    theirs = invert(rules, mine, prog.model, prog.dims)
    again, left = apply(rules, theirs, prog.model, prog.dims)
    assert (again.keys(), left) == (mine.keys(), [])
    for name, x in mine.items():
        np.testing.assert_allclose(again[name], x, rtol=2e-7, err_msg=name)
    apply(rules, theirs | {"pad_token": np.ones(32, np.float32)}, prog.model, prog.dims)  # nobody reads it
    assert format.inner(2304, 256, None) == 6144  # of the published 2B


def test_what_diffusers_has_no_place_for_is_named():
    for changes, said in (
        ({"scaling_factor": 2.0}, "scaling_factor=2.0 has no counterpart"),
        ({"num_attention_heads": 5}, "hidden_size=32 is not a multiple of num_attention_heads=5"),
    ):
        assert said in mistakes.said(format.Format.config, PUBLISHED | changes)
    sections = format.Format.config(PUBLISHED)
    for section, changes, said in (
        ("model", {"clock": "noise"}, "clock='noise' has no counterpart; expected 'data'"),
        ("model", {"mean_only": False}, "mean_only=False has no counterpart"),
        ("model", {"condition": 16}, "condition=16 has no counterpart; expected 32"),
        ("data", {"features": 0}, "reads features of text"),
    ):
        assert said in mistakes.said(format.Format.theirs, {**sections, section: sections[section] | changes})


def test_sizes_and_options_that_do_not_fit_and_a_text_that_is_missing_are_told_in_one_line():
    for more, said in (
        (dict(head_dim=2), "model.head_dim=2 is not a multiple of 4 (rotary pairs by row and column)=4"),
        (dict(kv_group=3), "heads (model.width / model.head_dim)=4 is not a multiple of model.kv_group=3"),
        (dict(mlp_divisor=3), "model.mlp_ratio * model.width=64 is not a multiple of model.mlp_divisor=3"),
        (dict(length=0), "this model reads text, and the source gives none"),
    ):
        assert said in mistakes.said(sized, **more)
    for options, said in (({"stretch": "tme"}, "nearest: 'time'"), ({"clock": "wall"}, "model.clock 'wall' is unknown")):
        assert said in mistakes.said(model, options=options)
    assert "image size=18 is not a multiple of model.patch=4" in mistakes.said(model(), inputs(side=18))
    for key in ("text", "t"):
        with pytest.raises(UserError, match=f"model 'nextdit' takes x, t, text; missing: {key},"):
            model()({k: v for k, v in inputs().items() if k != key})
