"""The encoder-decoder: what each half sees, with a cache as without; arrows of two widths, cost and errors."""

import branches
import families
import jax
import jax.numpy as jnp
import mistakes
import numpy as np
import pytest
import small

from lab import audit, axes, cost
from lab.axes import Dims, inside
from lab.coordinates import Setting, measured
from lab.errors import UserError
from lab.formats import t5
from lab.formats.rules import apply, invert
from lab.layers import relative, rope
from lab.models import encoder_decoder, shared
from lab.objectives import next_token
from lab.optim import schedule
from lab.parametrization import mup, standard
from lab.population import build, described
from lab.train import Program

KNOBS = dict(width=32, depth=2, head_dim=8, mlp_ratio=2, vocabulary=9, tokens=9, side=3)
TEXTS = {"words": dict(words=7, length=4), "features": dict(features=6, length=4)}
BASE = {"width": 32, "text_width": 32}


@pytest.fixture(autouse=True)
def rolled(monkeypatch):
    """A rolled stack compiles faster; where it matters a test unrolls it."""
    monkeypatch.setattr(shared, "UNROLL", 0)


def dims(told="words", base=None, **knobs):
    return Dims.of(encoder_decoder.Model.axes, {**KNOBS, "text_width": 16, **TEXTS[told], **knobs}, base or {})


def model(told="words", positions="grid", qk_norm=False, base=None, **knobs):
    return encoder_decoder.Model(dims(told, base, **knobs), qk_norm, positions)


def inputs(told="words", n=3, seed=0):
    """Tokens, and texts: the first ends in padding, the second is hidden."""
    rng = np.random.default_rng(seed)
    text = rng.integers(1, 7, (n, 4)) if told == "words" else rng.normal(size=(n, 4, 6)).astype(np.float32)
    text[0, 3:], text[1:2] = 0, 0
    return jax.tree.map(jnp.asarray, {"tokens": rng.integers(0, 9, (n, 3, 3)), "text": text})


@pytest.mark.parametrize("positions", encoder_decoder.POSITIONS)
def test_logits_depend_on_the_text_and_earlier_tokens_alone(positions):
    """Every token and word occurs once, so that the gradient in a row of a table is that in a place."""
    params, order = small.drawn(model(positions=positions)), np.random.default_rng(1).permutation(9)
    given = {"tokens": jnp.asarray(order).reshape(1, 3, 3), "text": jnp.array([[3, 5, 2, 0]])}
    mix = jnp.asarray(np.random.default_rng(2).normal(size=9), jnp.float32)

    @jax.jit
    def slope(m):  # of the logits at every place
        found = axes.weights(jax.jacrev(lambda m: m(given)[0] @ mix)(m))
        return [jnp.abs(found[n].get_value()).max(-1) for n in ("table", "encoder.table")] + [jnp.abs(found["start"].get_value()).max(-1)]

    moved, said, start = map(np.asarray, slope(params))
    moved, earlier = moved[:, order], np.tril(np.ones((9, 9), bool), -1)
    assert np.all(moved[~earlier] == 0)
    assert np.all(moved[earlier] > 1e-4)
    assert np.all(said[:, [3, 5, 2]] > 1e-4)
    assert np.all(said[:, [0, 1, 4, 6]] == 0)  # padding, and words that are not said
    assert np.all(start > 1e-4)


def test_the_encoder_looks_both_ways_and_the_decoder_does_not():
    m = small.drawn(model(positions="relative", text_depth=2))
    text = jnp.array([[3, 5, 2, 4]])
    seen = jnp.ones((1, 4), bool)
    run = jax.jit(lambda text: m.encoder(text, seen))
    for k in range(4):
        moved = np.abs(run(text.at[0, k].set(6)) - run(text)).max(-1)[0]
        assert np.all(moved > 1e-4), k


@pytest.mark.parametrize(
    "told, positions, kv_group, unroll", [("words", "grid", 2, 8), ("words", "relative", 4, 0), ("features", "line", 1, 0)]
)
def test_decoding_with_a_cache_gives_the_logits_of_all_tokens_at_once(told, positions, kv_group, unroll, monkeypatch):
    monkeypatch.setattr(shared, "UNROLL", unroll)
    params, given = small.drawn(model(told, positions, qk_norm=True, kv_group=kv_group)), inputs(told)

    @jax.jit
    def decode(m, given):
        flat = given["tokens"].reshape(3, -1)
        first, cache = m({"text": given["text"]}, m.init_cache(3))

        def step(cache, token):
            logits, cache = m({"tokens": token[:, None]}, cache)
            return cache, logits

        cache, rest = jax.lax.scan(step, cache, flat[:, :-1].T)
        return m(given), jnp.concatenate([first, rest[:, :, 0].transpose(1, 0, 2)], 1), cache["position"]

    want, found, position = decode(params, given)
    assert want.shape == (3, 9, 9)
    np.testing.assert_allclose(found, want, atol=1e-5 * float(jnp.abs(want).max()))
    assert position == 9


def test_samples_are_drawn_and_the_cache_has_the_compute_dtype():
    params = small.drawn(model(positions="relative"))
    objective, cond = next_token.Objective(0.1), {"text": inputs()["text"], "label": jnp.zeros(3, jnp.int32)}
    drawn = jax.jit(lambda m: objective.sample(m, jax.random.key(0), cond, (3, 3), guidance=2.0))(params)
    assert drawn.shape == (3, 3, 3)
    assert np.all((drawn >= 0) & (drawn < 9))
    shapes = jax.eval_shape(lambda p: axes.view(p, jnp.bfloat16), params)
    logits, cache = jax.eval_shape(lambda m: m({"text": cond["text"]}, m.init_cache(3)), shapes)
    assert logits.dtype == cache["keys"].dtype == cache["words"][0].dtype == jnp.bfloat16
    assert jax.eval_shape(lambda m, c: m({"tokens": jnp.zeros((3, 1), int)}, c)[1], shapes, cache) == cache


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_with_all_closers_but_one_at_zero_the_branch_is_linear_in_that_one(kind, qk_norm):
    sizes, rng = dims(text_width=32), np.random.default_rng(1)
    x, words = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, 5, 32), (2, 4, 32)))
    seen = jnp.arange(4) < jnp.array([[4], [2]])
    if kind == "encoder":
        block = small.drawn(inside(encoder_decoder.EncoderBlock(encoder_decoder.encoder(sizes), qk_norm, "swiglu"), sizes))
        branches.check(block, lambda b: b(words, seen, rope.line(4, 8), None) - words, {"attention.out", "mlp.down"})
    else:
        block = small.drawn(inside(encoder_decoder.DecoderBlock(sizes, qk_norm, "geglu"), sizes))
        call = lambda b: b(x, b.cross.keys(words), seen, rope.line(5, 8), None)[0] - x  # noqa: E731
        branches.check(block, call, {"attention.out", "cross.out", "mlp.down"})


def test_each_half_has_its_own_ratios():
    found = axes.weights(model(base=BASE, width=64, text_width=128, qk_norm=True))
    ratios = {n: (w.arrow.r_in, w.arrow.r_out) for n, w in found.items()}
    assert ratios["encoder.blocks.attention.query"] == ratios["encoder.blocks.mlp.up"] == (4, 4)
    assert ratios["blocks.attention.query"] == ratios["blocks.mlp.down"] == (2, 2)
    assert ratios["blocks.cross.key_value"] == (4, 2)  # its fan-in is the encoder's width
    assert ratios["blocks.cross.query"] == (2, 2)
    assert ratios["encoder.table"] == (1, 4)
    alone = axes.weights(model(base={"text_width": 16}, text_width=64))
    assert {n for n, w in alone.items() if w.arrow.inf_in or w.arrow.inf_out} == {
        n for n in alone if n.startswith("encoder.") and not n.endswith("logits")
    } | {"blocks.cross.key_value"}
    follows = model(base={"width": 32}, width=64, text_width=0)  # without a width of its own, the encoder moves with the decoder
    assert axes.weights(follows)["encoder.blocks.mlp.up"].arrow.r_in == 2


def test_a_wider_encoder_alone_leaves_own_changes_where_they_were_under_mup():
    """And under the standard rule they grow: the encoder's, and those of the keys and values that read it."""
    batches = small.stack([families.batch(16, seed) for seed in range(12)])
    told, growth = families.dims("encoder_decoder"), {}
    for width in (32, 128):
        config = families.config("encoder_decoder", width=32, text_width=width, depth=1, positions="line")
        config["base"] = BASE
        _, found = measured(config, told, batches, {"mup": mup, "standard": standard}, Setting(seeds=2))
        growth[width] = {n: np.log(x).mean((1, 2)) for n, x in found["own"].items()}
    slopes = {n: (growth[128][n] - growth[32][n]) / np.log(4) for n in growth[32]}
    hidden = [n for n in slopes if n.startswith(("encoder.blocks.attention.query", "encoder.blocks.mlp.", "blocks.cross.key_value"))]
    assert len(hidden) >= 5
    assert max(abs(slopes[n][0]) for n in hidden) < 0.3, slopes
    assert min(slopes[n][1] for n in hidden) > 0.3, slopes


@pytest.mark.parametrize("told, positions", [("words", "grid"), ("words", "relative"), ("features", "line")])
def test_every_arrow_is_true(told, positions):
    config = small.config(objective=dict(name="next_token", label_drop=0.1), base=BASE)
    config["model"] = dict(name="encoder_decoder", width=32, text_width=64, depth=2, head_dim=8, mlp_ratio=2, kv_group=2)
    config["model"] |= dict(qk_norm=True, positions=positions)
    source = {k: v for k, v in KNOBS.items() if k in ("vocabulary", "tokens", "side")} | TEXTS[told]
    assert audit.truth(config, source, inputs(told)) == {}


def count(width, text_width, depth, text_depth, head_dim, mlp_ratio, vocabulary, tokens, length, kv_group=1, features=0, **_):
    """(forward, what has no gradient of its input) FLOPs of the loss of 3 examples, 2 m n k of every matmul, by pen."""

    def core(queries, keys, wide):
        return 2 * (2 * 3 * (wide // head_dim) * queries * keys * head_dim)

    row, said = 2 * 3 * tokens, 2 * 3 * length
    encoder = said * text_width * (4 + 3 * mlp_ratio) * text_width + core(length, length, text_width)
    itself = row * width * (2 * width + 2 * width // kv_group) + core(tokens, tokens, width)
    cross = row * 2 * width * width + said * text_width * 2 * width + core(tokens, length, width)
    blind = said * features * text_width
    forward = blind + text_depth * encoder + depth * (itself + cross + row * 3 * mlp_ratio * width**2) + row * width * vocabulary
    return forward, 3 * forward - blind


@pytest.mark.parametrize(
    "knobs", [dict(), dict(width=64, text_width=32, text_depth=2, depth=1, kv_group=4), dict(told="features", depth=12)]
)
def test_flops_equal_the_hand_count_exactly(knobs):
    told = knobs.get("told", "words")
    prog = Program(model(qk_norm=True, **knobs), None, next_token.Objective(0.1, 1e-4), schedule("constant", 10, 0, 0.2), jnp.float32)
    f, args = lambda p, k, b: jnp.mean(prog.loss(p, k, b)), (described(prog), jax.random.key(0), inputs(told))
    forward, gradient = count(**{**KNOBS, "text_width": 16, "text_depth": 1, **TEXTS[told], **knobs})
    assert cost.flops(f, *args) == forward
    assert cost.flops(jax.grad(f), *args) == gradient


def test_ranges_of_distances_are_exact_near_and_wider_far():
    both, back = relative.buckets(True)[128:], relative.buckets(False)[128::-1]
    assert both[:8].tolist() == [0, *range(17, 24)]
    assert back[:16].tolist() == list(range(16))
    assert both[-1] == back[-1] == 31
    assert np.all(np.diff(back) >= 0)
    assert np.all(relative.buckets(False)[129:] == 0)
    assert set(relative.buckets(True)) == set(range(32)) - {16}  # no distance is 0 and after


PUBLISHED = {
    **t5.THEIRS,
    **dict(architectures=["T5ForConditionalGeneration"], model_type="t5", d_model=32, d_kv=8, num_heads=4, d_ff=64, num_layers=2),
    **dict(num_decoder_layers=3, vocab_size=9, num_image_tokens=9, num_text_tokens=4),
    **dict(pad_token_id=0, eos_token_id=None, decoder_start_token_id=0),
}


def test_the_format_of_t5_inverts_and_what_it_has_not_is_named():
    sections = t5.Format.config(PUBLISHED)
    prog = build({**small.config(), **{k: v for k, v in sections.items() if k != "data"}}, sections["data"])
    assert t5.Format.theirs(sections) == PUBLISHED
    rules, described = t5.Format.rules(sections), axes.weights(small.drawn(prog.model))
    mine = {n: np.full(w.get_value().shape, 8**-0.5) if n.endswith("logits") else np.asarray(w.get_value()) for n, w in described.items()}
    theirs = invert(rules, mine, prog.model, prog.dims)
    again, left = apply(rules, theirs, prog.model, prog.dims)
    assert (again.keys(), left) == (mine.keys(), [])
    for name, x in mine.items():
        np.testing.assert_allclose(again[name], x, rtol=2e-7, err_msg=name)
    for changes, said in (
        ({"feed_forward_proj": "relu"}, "feed_forward_proj='relu' has no counterpart; expected 'gated-gelu'"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings=True has no counterpart"),
        ({"d_model": 40}, "d_model=40 has no counterpart; expected 32"),
        ({"relative_attention_max_distance": 64}, "relative_attention_max_distance=64 has no counterpart"),
    ):
        assert said in mistakes.said(t5.Format.config, PUBLISHED | changes)
    for section, changes, said in (
        ("model", {"text_width": 64}, "text_width=64 has no counterpart; expected 32"),
        ("model", {"positions": "line"}, "positions='line' has no counterpart"),
        ("data", {"words": 12}, "words=12 and vocabulary=9: T5 has one number for both"),
        ("data", {"features": 3}, "reads tokens of text"),
    ):
        assert said in mistakes.said(t5.Format.theirs, {**sections, section: sections[section] | changes})


def test_sizes_and_inputs_that_do_not_fit_are_the_users_errors():
    for said, knobs in {
        "model.positions 'gird' is unknown (nearest: 'grid')": dict(positions="gird"),
        "model.text_width=20 is not a multiple of model.head_dim=8; nearest: 16 or 24": dict(text_width=20),
        "heads (model.width / model.head_dim)=4 is not a multiple of model.kv_group=3; nearest: 3 or 6": dict(kv_group=3),
        "tokens=9, side=0; expected 'line'": dict(side=0),
        "the source gives none": dict(length=0),
    }.items():
        assert said in mistakes.said(model, **knobs)
    params, given = small.drawn(model()), inputs()
    for key in ("tokens", "text"):
        with pytest.raises(UserError, match=rf"missing: {key},"):
            params({k: v for k, v in given.items() if k != key})
    with pytest.raises(UserError, match="takes text; missing: text"):
        params({}, params.init_cache(3))
    with pytest.raises(UserError, match="is of 9 tokens; given: 6"):
        params(given | {"tokens": given["tokens"][:, :2]})
