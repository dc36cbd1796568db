"""Every polygon is as likely as another of its class, all are told apart, and what is drawn of them is their picture."""

import re

import mistakes
import numpy as np
import pytest

from lab import report
from lab.data import strokes
from lab.data.drawing import drawing
from lab.data.polygons import CORNERS, Source


def test_sequences_are_grammatical_and_all_different():
    source = Source("train", "", grid=7, scales=2)
    every = [tuple(s.tolist()) for of_class in source.sequences for s in of_class]
    assert len(set(every)) == len(every)
    assert all(source.grammar.valid(np.array(s)) for s in every)
    # first corners, times offsets at each scale
    assert [len(s) for s in source.sequences][:2] == [3 * (5 * 5 + 3 * 3), 4 * (5 * 6 + 3 * 5)]
    np.testing.assert_allclose(np.exp(source.floor), [len(s) for s in source.sequences])
    tokens = [2 + 2 * len(c) for c in CORNERS.values()]
    assert source.info["best_loss"] == pytest.approx(np.mean(source.floor / tokens))


def test_examples_are_draws_of_the_world_and_parse_says_their_class():
    train, held = (Source(s, "", grid=7, scales=2, examples=5000) for s in ("train", "eval"))
    assert (len(train), len(held)) == (5000, 4096)
    np.testing.assert_array_equal(train.parse(train.arrays["tokens"][:500]), train.arrays["label"][:500])
    shares = np.bincount(train.arrays["label"], minlength=8) / 5000
    assert np.abs(shares - 1 / 8).max() < 4 * np.sqrt(7 / 64 / 5000)
    mine = train.arrays["tokens"][train.arrays["label"] == 0]
    counts = np.unique(mine, axis=0, return_counts=True)[1]
    n, expected = len(train.sequences[0]), len(mine) / len(train.sequences[0])
    chi = ((counts - expected) ** 2 / expected).sum() + (n - len(counts)) * expected
    assert abs(chi - (n - 1)) < 4 * np.sqrt(2 * (n - 1))
    other = train.arrays["tokens"][:1].copy()
    other[0, 2] = train.grammar.vocabulary - 1
    assert train.parse(np.concatenate([other, np.zeros_like(other)])).tolist() == [-1, -1]


def test_room_for_a_span_is_padding_and_two_tokens():
    plain, room = (Source("train", "", grid=7, scales=1, infill=x) for x in (False, True))
    assert room.dims == {"classes": 8, "tokens": plain.dims["tokens"] + 3, "vocabulary": plain.dims["vocabulary"] + 2}
    assert room[0]["sentinels"].tolist() == [plain.dims["vocabulary"], plain.dims["vocabulary"] + 1]
    np.testing.assert_array_equal(room.arrays["tokens"][:, :-3], plain.arrays["tokens"])
    assert plain.info["fingerprint"] != room.info["fingerprint"]


def test_tokens_are_drawn_without_the_source_and_what_is_wrong_is_marked():
    source = Source("train", "", grid=7, scales=2, infill=True)
    wrong = source.arrays["tokens"][:1].copy()
    wrong[0, 1] = 5
    got = drawing(source.info)(np.concatenate([source.arrays["tokens"][:3], wrong]))
    assert got.shape == (4, 64, 64, 1)
    assert got.dtype == np.uint8
    for i in range(3):
        np.testing.assert_array_equal(got[i], source.picture(i))
    assert sorted(set(got[3].ravel().tolist())) == [128, 208]  # a cross on grey, which no outline is
    assert not source.grammar.valid(wrong[0])
    np.testing.assert_array_equal(got, strokes.drawn(np.concatenate([source.arrays["tokens"][:3], wrong]), grid=7))
    assert drawing({"palette": [[0], [255]]})(np.array([[0, 1]])).tolist() == [[[0], [255]]]
    assert drawing({}) is None


def test_a_source_around_it_shows_what_it_draws():
    inside = Source("train", "", grid=7, scales=2)

    class Around:
        info = inside.info

        def __len__(self):
            return 3

        def __getitem__(self, i):
            return inside[i]

    images, names = report.examples(Around(), 3)
    assert images.shape[:3] == (3, 64, 64)
    assert names == [list(CORNERS)[inside[i]["label"]] for i in range(3)]


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(grid=4), r"data\.grid=4 must be a whole number from 5 to 64"),
        (dict(scales=0), r"data\.scales=0 must be"),
        (dict(grid=8, scales=3), r"data\.scales=3 with data\.grid=8: the largest polygon is 10 points wide"),
        (dict(split="test"), r"split 'test' is unknown"),
        (dict(examples=0), r"data\.examples=0"),
        (dict(seed=-1), r"data\.seed=-1"),
    ],
)
def test_a_bad_option_is_named_in_one_line(options, message):
    assert re.search(message, mistakes.said(Source, **{"split": "train", "data_dir": "", **options}))
