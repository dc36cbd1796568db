"""The span moved to the end: its transform is inverted exactly, its loss counts each token once and reaches the world's own floor."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from lab.data import _stroke_tokens, text
from lab.data.polygons import Source
from lab.errors import UserError
from lab.objectives import infill, next_token
from lab.objectives.infill import END, PAD, START, Objective
from lab.population import build

KEY = jax.random.key(0)
MASK, EOM = 31, 32


@functools.cache
def world():
    """Polygons on 5 x 5 points, of one size."""
    return Source("train", "", grid=5, scales=1, infill=True)


def room(kinds):
    """Tokens of the longest sequence of some classes, with a span moved."""
    return max(len(world().sequences[k][0]) for k in kinds) + 3


def batch(kinds=(0, 3)):
    """All sequences of some classes, once."""
    rows = [(s, k) for k in kinds for s in world().sequences[k]]
    tokens = np.zeros((len(rows), room(kinds)), np.int32)
    for row, (s, _) in zip(tokens, rows, strict=True):
        row[: len(s)] = s
    length, label = np.array([len(s) for s, _ in rows], np.int32), np.array([k for _, k in rows], np.int32)
    sentinels = np.tile(np.int32([MASK, EOM]), (len(rows), 1))
    return {k: jnp.asarray(v) for k, v in dict(tokens=tokens, length=length, label=label, sentinels=sentinels).items()}


def spans(n):
    """Every hole of a sequence of n tokens."""
    return [(low, high) for low in range(1, n - 1) for high in range(low + 1, n)]


def by_hand(sequence, low, high):
    """What `moved` is to give, token by token."""
    s = list(sequence)
    return [*s[:low], MASK, *s[high:], MASK, *s[low:high], EOM]


class Exact:
    """The world's own p(next token | those before, label), with a span moved in half of the sequences; MASK is never said.

    Every sequence there is, moved or not, is a row of a table; what agrees with the tokens so far is counted.
    """

    def __init__(self, kinds=(0, 3), share=0.5):
        rows = []
        for k in kinds:
            for s in world().sequences[k]:
                holes = spans(len(s))
                rows.append((list(s), k, 1 - share))
                rows += [(by_hand(s, *h), k, share / len(holes)) for h in holes]
        self.room = room(kinds)
        self.table = jnp.asarray([s + [PAD] * (self.room - len(s)) for s, _, _ in rows])
        self.kind = jnp.asarray([k for _, k, _ in rows])
        self.weight = jnp.asarray([w for _, _, w in rows]) / len(rows)

    def shares(self, tokens, label, at):
        """log p of the token at place `at`, [B, V]."""
        agrees = jnp.all((tokens[:, None] == self.table) | (jnp.arange(self.room) >= at), axis=-1)
        token = self.table[:, at]
        p = (agrees * self.weight * (self.kind == label[:, None])) @ (jax.nn.one_hot(token, 33) * (token != MASK)[:, None])
        return jnp.log(p / jnp.maximum(p.sum(-1, keepdims=True), 1e-30) + 1e-30)

    def init_cache(self, n):
        return {"label": jnp.zeros(n, jnp.int32), "tokens": jnp.zeros((n, self.room), jnp.int32), "at": jnp.int32(0)}

    def __call__(self, inputs, cache=None):
        if cache is None:
            return jax.lax.map(lambda at: self.shares(inputs["tokens"], inputs["label"], at), jnp.arange(self.room)).swapaxes(0, 1)
        if "label" in inputs:
            cache = cache | {"label": inputs["label"]}
        else:
            tokens = jax.lax.dynamic_update_slice(cache["tokens"], inputs["tokens"], (0, cache["at"]))
            cache = cache | {"tokens": tokens, "at": cache["at"] + 1}
        return self.shares(cache["tokens"], cache["label"], cache["at"])[:, None], cache


def floors(given, b):
    """What every example costs the world itself in nats per token: log N of its class, and where its span ends, given its start."""
    out = []
    for tokens, n, k in zip(*(np.asarray(x) for x in (given["tokens"], b["length"], b["label"])), strict=True):
        nats, low = world().floor[k], np.flatnonzero(tokens == MASK)
        out.append((nats + np.log(n - 1 - low[0])) / (n + 1) if len(low) else nats / n)
    return np.array(out)


def test_a_moved_span_is_where_it_should_be_and_comes_back_exactly():
    b = batch()
    for low, high in ((1, 2), (1, 7), (4, 6), (6, 7)):
        hole = jnp.tile(jnp.array([[low, high]]), (len(b["length"]), 1))
        got = np.asarray(infill.moved(b["tokens"], b["length"], hole, b["sentinels"]))
        for row, s, n in zip(got, np.asarray(b["tokens"]), np.asarray(b["length"]), strict=True):
            assert row[: n + 3].tolist() == by_hand(s[:n], low, high)
            assert (row[n + 3 :] == PAD).all()
        back = infill.joined(jnp.asarray(got), hole[:, 0], b["length"] - (high - low) + 1, b["sentinels"][:, 1])
        np.testing.assert_array_equal(back, b["tokens"])


def test_an_infill_without_an_end_is_cut_off_and_another_length_joins():
    row = jnp.array([[START, 3, MASK, 9, END, MASK, 7, 8, EOM, 5, 5], [START, 3, MASK, 9, END, MASK, 7, 8, 6, 5, 5]])
    got = infill.joined(row, jnp.array([2, 2]), jnp.array([5, 5]), jnp.array([EOM, EOM]))
    np.testing.assert_array_equal(got, [[START, 3, 7, 8, 9, END, 0, 0, 0, 0, 0], [START, 3, 7, 8, 6, 5, 5, 0, 0, 0, 0]])


def test_all_spans_are_equally_likely():
    n, draws = 7, 30_000
    got = np.asarray(infill.holes(KEY, jnp.full(draws, n)))
    found = [np.mean((got == h).all(1)) for h in spans(n)]
    p = 1 / len(spans(n))
    assert sum(found) == pytest.approx(1)
    assert np.abs(np.array(found) - p).max() < 4 * np.sqrt(p * (1 - p) / draws)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_each_token_counts_once_and_nothing_else_does(share):
    b = batch()
    given = {k: np.asarray(v) for k, v in Objective(0.0, share).inputs(KEY, b).items()}
    cut = (given["tokens"] == MASK).any(1)
    assert abs(cut.mean() - share) <= 4 * np.sqrt(share * (1 - share) / len(cut))
    for tokens, counted, moved, s, n in zip(given["tokens"], given["counted"], cut, b["tokens"], b["length"], strict=True):
        assert sorted(tokens[counted]) == sorted([*np.asarray(s)[:n], *[EOM] * int(moved)])


def test_the_worlds_own_conditionals_score_its_floor_and_what_is_counted_wrongly_does_not(monkeypatch):
    b, exact = batch(), Exact()
    plain = Objective(0.0, 0.0).loss(exact, KEY, b)
    np.testing.assert_allclose(plain, world().floor[b["label"]] / b["length"], rtol=1e-5)
    half = Objective(0.0, 0.5)
    given = half.inputs(KEY, b)
    loss, floor = np.asarray(half.losses(exact, given)), floors(given, b)
    np.testing.assert_allclose(loss, floor, rtol=1e-4)
    # from left to right the same model is that of a world without spans
    length, nats = half.errors(exact, KEY, b)
    np.testing.assert_allclose(nats.sum(1), world().floor[b["label"]], rtol=1e-5)
    np.testing.assert_array_equal(length, b["length"])
    # a model that takes a moved span for one in place, padding that counts, and sentinels that count
    wrong = half.losses(Exact(share=0.0), given)
    assert np.mean(wrong) > np.mean(floor) + 0.5
    padded = next_token.Objective(0.0).losses(exact, {**given, "tokens": b["tokens"]})
    assert np.abs(np.asarray(padded) - np.asarray(plain)).min() > 0.01
    counted = half.losses(exact, {**given, "counted": given["tokens"] != PAD})
    assert np.mean(counted) > np.mean(floor) + 0.5
    monkeypatch.setattr(infill, "moved", lambda tokens, *_: tokens)
    unmoved = half.loss(exact, KEY, b)
    assert np.abs(np.asarray(unmoved) - floor).max() > 0.01


def test_samples_end_and_are_the_worlds_own():
    n, exact = 270, Exact((0,))
    draw = jax.jit(lambda key: Objective(0.0).sample(exact, key, {"label": jnp.zeros(n, jnp.int32)}, (exact.room,)))
    got = np.asarray(draw(KEY))
    assert (world().parse(got) == 0).all()
    assert all(world().grammar.valid(row) for row in got)
    counts = np.unique(got, axis=0, return_counts=True)[1]
    assert len(counts) == len(world().sequences[0]) == 27
    assert abs(((counts - n / 27) ** 2 / (n / 27)).sum() - 26) < 4 * np.sqrt(2 * 26)


def test_infills_keep_what_surrounds_the_hole_and_fit():
    b, exact = batch((0,)), Exact((0,))
    hole = infill.holes(jax.random.key(3), b["length"])
    cond = {**b, "hole": hole}
    run = jax.jit(lambda key, cond: Objective(0.0).sample(exact, key, cond, (exact.room,)))
    got = np.asarray(run(KEY, cond))
    np.testing.assert_array_equal(world().parse(got), b["label"])
    before, behind = np.arange(got.shape[1]) < hole[:, :1], np.arange(got.shape[1]) >= hole[:, 1:]
    kept = before | behind
    np.testing.assert_array_equal(got[kept], np.asarray(b["tokens"])[kept])  # all of a class are of one length
    assert (got != np.asarray(b["tokens"])).any()


def trained(source, steps, **model):
    """Excess nats per token over the floor, of held-out sequences from left to right: before and after training."""
    changes = {"train.steps": steps, "optim.schedule": "cosine", "optim.warmup": 20}
    config = small.config(objective=dict(name="infill", share=0.5, label_drop=0.0), **changes)
    config["model"] = dict(name="decoder", head_dim=16, mlp_ratio=2, qk_norm=True, rope="line", **model)
    prog, hyper = build(config, source.dims), small.hyper(build(config, source.dims), 2.0**-6)
    data = {k: jnp.asarray(v) for k, v in source.arrays.items()}

    @jax.jit
    def run():
        def step(state, key):
            rows = jax.random.randint(key, (32,), 0, len(source))
            return prog.step(state, hyper, {k: v[rows] for k, v in data.items()})[0], None

        start = prog.init(hyper)
        end = jax.lax.scan(step, start, jax.random.split(jax.random.key(1), steps))[0]
        held = {k: v[:512] for k, v in data.items()}
        return [prog.objective.errors(state.params, KEY, held) for state in (start, end)], end.params

    (start, end), params = run()
    floor = source.floor[np.asarray(data["label"][:512])]
    excess = [float((np.asarray(nats).sum(1) - floor).sum() / np.asarray(length).sum()) for length, nats in (start, end)]
    return *excess, params


def test_a_short_training_nears_the_floor_and_stays_above_it():
    before, after, _ = trained(world(), 100, width=32, depth=1)
    assert before > 2.5
    assert 0 < after < 0.35 * before, (before, after)


@pytest.mark.slow
def test_a_trained_decoder_is_near_the_floor_valid_and_of_its_class():
    source = Source("train", "", grid=8, scales=2, infill=True, examples=1 << 16)
    _, after, params = trained(source, 1500, width=48, depth=3)
    assert 0 < after < 0.1, after
    label = jnp.arange(256) % 8
    got = jax.jit(lambda m, key: Objective(0.0).sample(m, key, {"label": label}, (source.dims["tokens"],)))(params, KEY)
    assert np.mean([source.grammar.valid(row) for row in np.asarray(got)]) >= 0.98
    assert np.mean(source.parse(np.asarray(got)) == np.asarray(label)) >= 0.9


def test_specials_are_those_of_the_sources():
    assert (PAD, START, END) == (_stroke_tokens.PAD, _stroke_tokens.START, _stroke_tokens.END)
    assert dict(PAD=PAD, START=START, END=END) == text.SPECIALS
    assert infill.ROOM == _stroke_tokens.ROOM
    assert world().grammar.sentinels == (MASK, EOM)


def test_data_without_lengths_or_room_is_the_users_error():
    b = batch()
    with pytest.raises(UserError, match=r"lacks 'sentinels'; expected data.infill=True, or objective.share=0"):
        Objective(0.0).inputs(KEY, {k: v for k, v in b.items() if k != "sentinels"})
    with pytest.raises(UserError, match=r"lacks 'length'; expected source strokes"):
        Objective(0.0, 0.0).inputs(KEY, {"tokens": b["tokens"], "label": b["label"]})
    with pytest.raises(UserError, match=r"objective.share=1.5 must be from 0"):
        Objective(0.0, 1.5)
