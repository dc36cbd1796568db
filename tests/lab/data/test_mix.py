"""Mixtures: shares exact in every prefix, no example twice before its source is through, and what has been seen counted exactly."""

import itertools
import json
import math
import pickle
from fractions import Fraction

import mistakes
import numpy as np
import pytest

from lab.data import mix
from lab.data.loader import Loader, decode, open_source
from lab.errors import UserError

ROWS = """
import numpy as np


class Source:
    def __init__(self, split, data_dir, n=12, mark=0, classes=("a", "b"), shape=(1, 1, 1), dtype="uint8", extra=False):
        self.n, self.mark, self.extra = (n if split == "train" else n // 2), mark, extra
        self.image = np.full(shape, mark, dtype)
        self.dims = {"image": shape[0], "channels": shape[2], "classes": len(classes)}
        self.info = {"image": list(shape), "class_names": list(classes), "classes": len(classes), "fingerprint": f"{n}-{mark}"}

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        assert 0 <= i < self.n
        item = {"image": self.image, "row": np.int32(i), "label": np.int32(i % self.dims["classes"]), "caption": str(i)}
        return item | ({"text": np.zeros(3, np.int32)} if self.extra else {})
"""


@pytest.fixture
def rows(tmp_path):
    """Section of a source of one's own whose examples say where they are from."""
    (tmp_path / "rows.py").write_text(ROWS)
    return lambda **options: {"name": str(tmp_path / "rows.py"), **options}


def mixed(sources, weights, split="train", **options):
    """A mixture."""
    return open_source({"name": "mix", "sources": tuple(sources), "weights": weights, **options}, split, "")


def drawn(source):
    """(mark of the source, row) of every item of an epoch."""
    return [(int(x["image"].flat[0]), int(x["row"])) for x in (source[i] for i in range(len(source)))]


@pytest.mark.parametrize("counts", [[1, 1], [7, 3], [1, 99], [5, 3, 2], [1, 1, 1], [17, 5, 1, 1, 40], [333, 334, 1], list(range(1, 12))])
def test_every_prefix_of_the_pattern_has_the_shares_to_within_one(counts):
    pattern, total = mix.interleave(counts), sum(counts)
    assert np.bincount(pattern).tolist() == counts
    had = np.cumsum(pattern[:, None] == np.arange(len(counts)), 0)
    want = np.arange(1, total + 1)[:, None] * np.array(counts) / total
    assert np.abs(had - want).max() < 1


@pytest.mark.parametrize(
    "weights, counts",
    [((0.7, 0.3), [7, 3]), ((1 / 3, 2 / 3), [1, 2]), ((50, 25), [2, 1]), ((0.6, 0.25, 0.15), [12, 5, 3]), ((1.0, 1e-4), [10_000, 1])],
)
def test_weights_become_the_least_whole_numbers(weights, counts):
    assert mix.whole(weights) == counts


@pytest.mark.parametrize("stop", mix.STOPS)
@pytest.mark.parametrize("sizes, weights", [((30, 50), (0.7, 0.3)), ((7, 7), (1, 1)), ((5, 40, 11), (0.5, 0.2, 0.3)), ((1, 9), (2, 1))])
def test_shares_passes_and_the_end_of_an_epoch(rows, stop, sizes, weights):
    source = mixed([rows(n=n, mark=k) for k, n in enumerate(sizes)], weights, stop=stop)
    items, shares = drawn(source), [Fraction(w).limit_denominator(100) for w in weights]
    shares = [s / sum(shares) for s in shares]
    had = [0] * len(sizes)
    for n, (mark, _) in enumerate(items, 1):
        had[mark] += 1
        assert all(abs(h - n * s) < 1 for h, s in zip(had, shares, strict=True))
    for k, size in enumerate(sizes):
        mine = [row for mark, row in items if mark == k]
        for start in range(0, len(mine), size):  # one time round after another
            part = mine[start : start + size]
            assert len(set(part)) == len(part)
        assert source.drawn(k, len(source)) == len(mine) == source.info["sources"][k]["drawn"]
        assert source.info["sources"][k]["unique"] == len(set(mine))
    through = [had[k] >= n for k, n in enumerate(sizes)]
    if stop == "all_exhausted":
        assert all(through)
        last = items[-1][0]  # its example was the one that all waited for
        assert had[last] == sizes[last]
    else:
        assert any(through)
        assert len(set(items)) == len(items)
        assert source.unique(10**9) == len(items)


def test_a_source_is_shuffled_and_anew_each_time_round(rows):
    source = mixed([rows(n=20, mark=0), rows(n=200, mark=1)], (1, 1), stop="all_exhausted")
    mine = [row for mark, row in drawn(source) if mark == 0]
    rounds = [mine[k : k + 20] for k in range(0, 200, 20)]
    assert all(sorted(r) == list(range(20)) for r in rounds)
    assert len({tuple(r) for r in rounds}) == 10
    assert list(range(20)) not in rounds


def test_the_part_of_a_larger_source_is_drawn_from_all_of_it(rows):
    source = mixed([rows(n=100, mark=0), rows(n=10_000, mark=1)], (1, 1))
    part = [row for mark, row in drawn(source) if mark == 1]
    assert len(part) == 100
    assert abs(np.mean(part) - 5000) < 4 * 10_000 / np.sqrt(12 * 100)


@pytest.mark.parametrize("stop", mix.STOPS)
def test_unique_is_the_mean_over_all_orders(rows, stop):
    source = mixed([rows(n=2, mark=0), rows(n=5, mark=1)], (2, 1), stop=stop)
    items = drawn(source)[:12]
    source._length = len(items)  # few enough to try every subset
    for n in range(len(items) + 3):
        tried = [len({items[i] for i in chosen}) for chosen in itertools.combinations(range(len(items)), min(n, len(items)))]
        assert source.unique(n) == round(np.mean(tried)), n


@pytest.mark.parametrize("length, copies, n", [(10**6, 1500, 700), (10**8, 5000, 20_000), (5000, 2000, 2), (5000, 40, 900), (2**27, 2, 3)])
def test_probabilities_are_the_products_they_stand_for(length, copies, n):
    few, many = sorted((copies, n))  # C(L - m, n) / C(L, n) is the same with m and n exchanged
    miss = sum(math.log1p(-many / (length - i)) for i in range(few))
    assert mix._seen(length, copies, n) == pytest.approx(-math.expm1(miss), rel=1e-9 if copies < 1000 else 1e-5)


def test_probabilities_at_the_ends():
    assert mix._seen(10, 4, 7) == 1.0
    assert mix._seen(10, 4, 6) == pytest.approx(1 - 1 / 210)
    assert mix._seen(10, 0, 7) == 0.0
    assert mix._seen(10, 4, 0) == 0.0


@pytest.mark.parametrize("stop", mix.STOPS)
def test_unique_counts_what_the_loader_gives(rows, stop):
    source = mixed([rows(n=40, mark=0), rows(n=300, mark=1)], (0.6, 0.4), stop=stop)
    loader = Loader(source, batch=25, seeds=list(range(24)))
    seen = [set() for _ in range(24)]
    for step in range(1, 2 * len(source) // 25):
        batch = next(loader)
        for s, (images, at) in enumerate(zip(batch["image"], batch["row"], strict=True)):
            seen[s] |= set(zip(images.reshape(-1).tolist(), at.tolist(), strict=True))
        counts = np.array([len(s) for s in seen])
        if stop == "first_exhausted" or step * 25 >= len(source):
            assert (counts == source.unique(step * 25)).all()
        else:
            assert abs(counts.mean() - source.unique(step * 25)) < 5 * counts.std() / np.sqrt(24) + 0.6
    loader.close()


def test_an_epoch_of_the_loader_has_the_shares(rows):
    source = mixed([rows(n=70, mark=0), rows(n=70, mark=1)], (0.7, 0.3))
    assert len(source) == 100
    loader = Loader(source, batch=100, seeds=[0, 1])
    for _ in range(3):
        assert [(b.reshape(-1) == 0).sum() for b in next(loader)["image"]] == [70, 70]
    loader.close()


def test_classes_are_shared_where_they_are_the_same_and_apart_where_not(rows):
    same = mixed([rows(mark=0), rows(mark=1)], (1, 1))
    assert same.info["class_names"] == ["a", "b"]
    assert same.dims == {"image": 1, "channels": 1, "classes": 2}
    apart = open_source(
        {"name": "mix", "sources": ({"name": "shapes", "skill": "count"}, {"name": "shapes"}), "weights": (1, 1)}, "train", ""
    )
    first, second = (s.info["class_names"] for s in apart.sources)
    assert apart.info["class_names"] == [f"shapes0/{c}" for c in first] + [f"shapes1/{c}" for c in second]
    assert apart.dims["classes"] == len(first) + len(second)
    for i in range(10):
        k, index = apart.at(i)
        inner = apart.sources[k][index]
        assert apart[i]["label"] == inner["label"] + k * len(first)
        assert apart[i]["label"].dtype == np.int32
        np.testing.assert_array_equal(apart[i]["image"], inner["image"])


def test_endless_worlds_are_mixed_at_random_access_and_eval_is_held_out():
    sources = ({"name": "field", "size": 4}, {"name": "mixture", "size": 4, "channels": 1})
    train, held = (mixed(sources, (3, 1), split, stop="all_exhausted") for split in ("train", "eval"))
    assert len(train) == mix.LENGTH["train"]
    assert decode(train) is None
    assert [train.at(i)[0] for i in range(len(train) - 8, len(train))].count(0) == 6
    assert train.unique(1000) == 1000
    assert train.unique(10**9) == len(train)
    assert held.info["sources"][0]["unique"] == held.info["sources"][0]["drawn"] == 65536
    assert not np.array_equal(train[0]["image"], held[0]["image"])
    assert train.info["fingerprint"] != mixed(sources, (1, 1), stop="all_exhausted").info["fingerprint"]
    assert train.info["fingerprint"] != mixed(sources, (3, 1)).info["fingerprint"]
    json.dumps(train.info)


def test_text_around_a_mixture_has_one_vocabulary(tmp_path):
    parts = (
        {"name": "shapes", "extras": ("caption",), "examples": 64},
        {"name": "shapes", "extras": ("caption",), "skill": "count", "examples": 64},
    )
    whole = {"name": "mix", "sources": parts, "weights": (1, 1)}
    source = pickle.loads(pickle.dumps(open_source({"name": "text", "source": whole, "tokens": "words"}, "train", str(tmp_path))))
    assert source.info["captions"]["unknown"] == 0
    assert source.unique(100) == 100
    assert decode(source)["text"].shape == (128, 64)
    apart = [{"name": "text", "source": p, "tokens": "words"} for p in parts]
    with pytest.raises(UserError, match="their vocabularies differ; expected text around the mixture"):
        mixed(apart, (1, 1))
    both = mixed([{**a, "tokens": "bytes"} for a in apart], (1, 1))
    assert both.info["vocabulary"]["tokens"] == "bytes"
    assert both.dims["words"] == 259


def test_what_only_some_sources_give_is_left_out(rows):
    source = mixed([rows(extra=True), rows(mark=1)], (1, 1))
    assert source[0].keys() == source[1].keys() == {"image", "label", "row", "caption"}


@pytest.mark.parametrize("weights", [(1,), (1, 0), (1, -1), (1, "2"), 1, (1, float("inf")), (1, float("nan")), (True, 1)])
def test_weights_must_be_positive_numbers_one_a_source(rows, weights):
    with pytest.raises(UserError, match=r"data.weights=.* must be 2 positive numbers"):
        mixed([rows(), rows(mark=1)], weights)


@pytest.mark.parametrize("weights", [(1, 1e-6), (1, np.pi / 4, np.e / 3)])
def test_weights_must_be_in_a_simple_ratio(rows, weights):
    with pytest.raises(UserError, match="are in no ratio of small whole numbers"):
        mixed([rows(mark=k) for k in range(len(weights))], weights)


@pytest.mark.parametrize(
    "other, said",
    [
        ({"shape": (2, 2, 1)}, "image is 'uint8[1, 1, 1]' in"),
        ({"dtype": "float32"}, "but 'float32[1, 1, 1]' in"),
        ({"clases": 3}, r"data.sources[1]: config key data 'clases' is unknown (nearest: 'classes')"),
    ],
)
def test_sources_that_do_not_fit_are_named(rows, other, said):
    assert said in mistakes.said(mixed, [rows(), rows(**other)], (1, 1))


def test_other_mistakes_are_one_line(rows):
    with pytest.raises(UserError, match=r"data.stop 'first' is unknown \(nearest: 'first_exhausted'\)"):
        mixed([rows(), rows()], (1, 1), stop="first")
    with pytest.raises(UserError, match=r"data.sources=.* must be two sections"):
        mixed([rows()], (1,))
    with pytest.raises(UserError, match=r"data.sources\[1\]='icons' must be the section of a source"):
        mixed([rows(), "icons"], (1, 1))
    with pytest.raises(IndexError):
        (source := mixed([rows(), rows()], (1, 1)))[len(source)]
