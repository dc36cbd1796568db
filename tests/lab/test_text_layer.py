"""Text: what the encoder reads, what it starts as at every width, and how words are pooled."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from lab import axes
from lab.axes import Dims
from lab.errors import UserError
from lab.layers import text
from lab.probe import audit, probe

run = jax.jit(lambda encoder, given: encoder(given))
TEXT = jnp.array([[3, 1, 4, 0, 0], [0, 0, 0, 0, 0], [2, 2, 6, 5, 3]])
GIVEN = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5, 12)), jnp.float32)


def sizes(width, words=9, length=5, features=0, text_depth=1):
    """Axes of a text encoder alone."""
    head = {"embed": width, "heads": width // 16, "head_dim": 16, "mlp": 2 * width}
    return {**head, **text.axes(words, length, features, text_depth)}


@functools.cache
def encoder(width=32, **more):
    """Drawn under muP, with the width 32 as base."""
    return small.drawn(text.Encoder(Dims.of(sizes, {"width": width, **more}, {"width": 32})), more=0, rule="mup")


both = pytest.mark.parametrize("given, more", [(TEXT, {}), (GIVEN, {"features": 12})], ids=["tokens", "features"])


@both
def test_every_word_is_a_vector_of_unit_size_and_its_place_matters(given, more):
    e = encoder(**more)
    words = run(e, given)
    assert words.shape == (3, 5, 32)
    np.testing.assert_allclose(jnp.mean(words**2, axis=-1), 1, rtol=1e-4)
    turned = run(e, given[:, ::-1])[:, ::-1]
    assert float(jnp.abs(turned - words).mean()) > 0.1
    assert jax.eval_shape(e, given[:, :3]).shape == (3, 3, 32)  # a text may be shorter than the longest


def test_a_word_reads_the_others_of_its_text_and_of_no_other():
    words, other = (run(encoder(), x) for x in (TEXT, TEXT.at[2, 4].set(7)))
    np.testing.assert_array_equal(words[:2], other[:2])
    assert np.all(np.abs(words - other)[2].max(-1) > 1e-3)


def test_padding_alone_is_a_text_that_is_learned_from():
    e, hidden = encoder(), jnp.zeros((3, 5), jnp.int32)
    words = run(e, hidden)
    np.testing.assert_array_equal(words[0], words[1])
    target = jnp.asarray(np.random.default_rng(1).normal(size=words.shape), jnp.float32)
    slope = jax.jit(jax.grad(lambda e: jnp.sum(e(hidden) * target)))(e)
    assert np.flatnonzero(np.abs(slope.table.get_value()).sum(1)).tolist() == [0]
    assert float(jnp.abs(words[0] - run(e, TEXT)[0]).mean()) > 0.1


@both
def test_gradients_reach_all_that_is_read_and_nothing_else(given, more):
    e = encoder(**more)
    target = jnp.asarray(np.random.default_rng(1).normal(size=(3, 5, 32)), jnp.float32)
    slope = jax.jit(jax.grad(lambda e: jnp.sum(e(given) * target)))(e)
    if not more:
        assert np.flatnonzero(np.abs(slope.table.get_value()).sum(1)).tolist() == [0, 1, 2, 3, 4, 5, 6]
    for name, w in axes.weights(slope).items():
        assert w.arrow.fixed or float(jnp.abs(w.get_value()).max()) > 1e-4, name


def test_features_say_the_same_at_any_size_and_none_is_said_by_zero():
    e = encoder(features=12)
    np.testing.assert_allclose(run(e, 30 * GIVEN), run(e, GIVEN), atol=1e-3)
    hidden = run(e, jnp.zeros_like(GIVEN))
    np.testing.assert_array_equal(hidden[0], hidden[1])
    assert np.all(np.isfinite(hidden))


def test_pooled_words_are_the_mean_of_what_is_said():
    words = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5, 8)), jnp.float32)
    got = text.pooled(words, TEXT)
    np.testing.assert_allclose(got[0], words[0, :3].mean(0), rtol=1e-5)
    np.testing.assert_array_equal(got[1], 0)  # nothing is said
    np.testing.assert_allclose(got[2], words[2].mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(text.pooled(words.at[0, 3:].set(9.0), TEXT), got)
    features = (TEXT > 0)[..., None] * GIVEN.at[..., 0].set(0)  # one feature at zero does not make a word PAD
    np.testing.assert_array_equal(text.pooled(words, features), got)
    assert text.pooled(words.astype(jnp.bfloat16), TEXT).dtype == jnp.bfloat16


@both
def test_every_arrow_is_true(given, more):
    assert audit(lambda e: jnp.sum(text.pooled(e(given), given)), encoder(**more)) == {}


@both
def test_what_flows_out_of_every_weight_starts_at_the_same_size_at_every_width(given, more):
    found = []
    for width in (32, 256):
        e = encoder(width, **more)
        found.append({n: np.asarray(s) for n, (s, _) in jax.jit(lambda e: probe(lambda e: e(given), e, e)[1])(e).items()})
    for name, narrow in found[0].items():
        wide = found[1][name]
        if narrow.max() == 0:
            assert "bias" in name
            assert wide.max() == 0
        else:
            np.testing.assert_allclose(wide, narrow, rtol=0.25, err_msg=name)


def test_sizes_come_from_tokens_or_features_and_a_source_without_text_is_told():
    assert text.axes(9, 5, 0, 2) == {"length": 5, "words": 9, "text_layers": 2}
    assert text.axes(9, 5, 12, 2) == {"length": 5, "text_features": 12}
    for words, length, features in ((0, 0, 0), (9, 0, 0), (0, 5, 0), (0, 0, 12)):
        with pytest.raises(UserError, match=r"reads text.*data.extras=\('text',\)"):
            text.axes(words, length, features, 1)
