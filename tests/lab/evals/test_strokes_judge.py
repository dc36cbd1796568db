"""Planted copies, repeats, garbage and misfits are counted exactly; garbage raises uniqueness and not that of what is valid."""

import functools
from types import SimpleNamespace

import numpy as np
import pytest
from worlds import splits

from lab.errors import UserError
from lab.evals.strokes import Judge, ended

OPTIONS = dict(grid=8, scales=2, infill=True, examples=300)


@functools.cache
def judge():
    """A judge of polygons with 300 training examples."""
    return Judge(*splits("polygons", **OPTIONS), infills=60)


def fresh():
    """Every sequence that is not in training, as rows."""
    real, train = splits("polygons", **OPTIONS)
    seen = {ended(row).tobytes() for row in train.arrays["tokens"]}
    every = [s for of_class in real.sequences for s in of_class if s.tobytes() not in seen]
    return np.stack([np.pad(s, (0, real.dims["tokens"] - len(s))) for s in every])


def subject(tokens, **more):
    """What a judge is called with; without errors unless they are given."""

    class Given(SimpleNamespace):
        @property
        def errors(self):
            if "told" not in more:
                raise UserError("the objective has no function errors")
            return more["told"]

    return Given(samples={"tokens": np.asarray(tokens, np.int32)}, draw=more.get("draw"))


def test_fresh_copied_and_repeated_sequences_are_counted_exactly():
    train = splits("polygons", **OPTIONS)[1]
    new, copies = fresh(), np.unique(train.arrays["tokens"], axis=0)
    got = judge()(subject(np.concatenate([new[:60], copies[:30], new[60:65], new[60:65]])))
    assert got["strokes_valid"] == 1
    assert got["strokes_new"] == 0.7
    assert got["strokes_unique"] == got["strokes_unique_any"] == 0.9
    assert got["strokes_unique_low"] < 0.9 < got["strokes_unique_high"]
    assert got["strokes_searched"] == 300
    assert got["strokes_valid_ceiling"] == 1
    # of 100 held-out draws what is neither repeated nor in training, by hand
    real = splits("polygons", **OPTIONS)[0]
    rows = np.random.default_rng(0).permutation(len(real))[:100]
    held = [ended(real[int(i)]["tokens"]).tobytes() for i in rows]
    seen = {ended(row).tobytes() for row in train.arrays["tokens"]}
    assert got["strokes_new_ceiling"] == np.mean([h not in seen for h in held])
    assert got["strokes_unique_ceiling"] == np.mean([held.count(h) == 1 for h in held])
    assert not any(k.startswith(("strokes_infill", "strokes_bits")) for k in got)
    assert all(k.startswith("strokes_") and isinstance(v, float) for k, v in got.items())


def test_garbage_raises_uniqueness_and_not_that_of_what_is_valid():
    rows = np.repeat(fresh()[:20], 2, axis=0)
    mixed = np.concatenate([rows, np.random.default_rng(0).integers(0, 70, rows.shape)])
    before, after = judge()(subject(rows)), judge()(subject(mixed))
    assert (before["strokes_unique_any"], before["strokes_unique"]) == (0, 0)
    assert (after["strokes_unique_any"], after["strokes_unique"]) == (0.5, 0)
    assert (before["strokes_new"], after["strokes_new"]) == (1, 0.5)
    assert (before["strokes_valid"], after["strokes_valid"]) == (1, 0.5)


def test_infills_that_keep_the_rest_and_are_grammatical_fit():
    j = judge()
    cond = j._holes
    real, low, high = cond["tokens"], *cond["hole"].T
    assert (high > low).all()
    assert (high < cond["length"]).all()

    def infill(change):
        return j(subject(fresh()[:5], draw=lambda cond: {"tokens": change(cond["tokens"].copy())}))

    whole = infill(lambda x: x)
    assert whole["strokes_infill"] == whole["strokes_infill_ceiling"] == 1
    assert 0 < whole["strokes_infill_chance"] < 0.9

    def cut(x):  # a third without an end, a third with a point moved beside the hole, a third as they were
        for i in range(0, 60, 3):
            x[i, cond["length"][i] - 1] = 0
        for i in range(1, 60, 3):
            at = low[i] - 1 if x[i, low[i] - 1] >= 6 else high[i] if x[i, high[i]] >= 6 else 1
            x[i, at] = 7 if x[i, at] != 7 else 8
        return x

    assert infill(cut)["strokes_infill"] == pytest.approx(1 / 3)
    # sequences of their own, whatever the hole: what a sampler makes that knows of none
    assert infill(lambda x: np.roll(x, 1, axis=0))["strokes_infill"] < 0.2
    assert infill(lambda x: np.where(np.arange(x.shape[1]) < cond["hole"][:, 1:], x, 0))["strokes_infill"] == 0
    assert j._holes is cond
    assert (real == cond["tokens"]).all()


def test_bits_are_those_of_all_tokens_and_nats_those_of_one():
    nats = np.log(2) * np.array([[1, 2, 3, 0], [2, 2, 0, 0]])
    got = judge()(subject(fresh()[:5], told={"error": nats, "t": np.array([3.0, 2.0])}))
    assert got["strokes_bits"] == pytest.approx(5)
    assert got["strokes_bits_low"] < 5 < got["strokes_bits_high"]
    assert got["strokes_nats"] == pytest.approx(2 * np.log(2))


def test_without_room_there_are_no_infills():
    plain = Judge(*splits("polygons", grid=8, scales=2, examples=50))
    got = plain(subject(fresh()[:5, :-3], draw=lambda cond: 1 / 0))
    assert not any(k.startswith("strokes_infill") for k in got)


def test_a_source_without_outlines_is_refused():
    with pytest.raises(UserError, match="judge 'strokes' judges outlines, which source 'causal' has not"):
        Judge(*splits("causal"))
    with pytest.raises(UserError, match=r"judge.options.strokes.infills=-1"):
        Judge(*splits("polygons", **OPTIONS), infills=-1)
