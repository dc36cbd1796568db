"""Planted copies and repeats are counted exactly; fresh draws are as far from training pictures as held-out ones are."""

import functools
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from worlds import splits

from lab.errors import UserError
from lab.evals import novelty
from lab.evals.novelty import Judge, nearest, prints


def subject(images, labels=None):
    """What a judge is called with."""
    labels = np.zeros(len(images), np.int32) if labels is None else labels
    return SimpleNamespace(samples={"image": np.asarray(images, np.float32), "label": labels})


def draws(n, key=0, **options):
    """Fresh examples of a world."""
    return np.array(splits(**options)[0].generate(jax.random.key(key), n)["image"])


def read(source, n):
    """The first `n` pictures of a source."""
    return np.stack([source[i]["image"] for i in range(n)])


@functools.cache
def judge():
    """A judge of fields with 300 training examples."""
    return Judge(*splits(size=6, examples=300))


@pytest.mark.parametrize("copied", [0, 50, 137, 200])
def test_planted_copies_are_counted_exactly(copied):
    train = splits(size=6, examples=300)[1]
    images = np.concatenate([read(train, copied), draws(200 - copied, size=6)]) if copied else draws(200, size=6)
    got = judge()(subject(images))
    assert got["novelty_new"] == (200 - copied) / 200
    assert got["novelty_new_low"] <= 1 - copied / 200 <= got["novelty_new_high"]
    assert got["novelty_unique"] == 1
    assert got["novelty_searched"] == 300
    # half of what is fresh lies nearer than held-out pictures, and every copy
    share = copied / 200
    assert got["novelty_closer"] == pytest.approx(share + (1 - share) / 2, abs=0.08)
    assert (got["novelty_ratio"] == 0) == (copied > 100)


@pytest.mark.parametrize("repeated", [2, 40])
def test_planted_repeats_are_counted_exactly(repeated):
    images = draws(160, size=6)
    images[:repeated] = images[0]
    got = judge()(subject(images))
    assert got["novelty_unique"] == 1 - repeated / 160
    assert got["novelty_new"] == 1
    assert judge()(subject(np.concatenate([images[repeated:]] * 2)))["novelty_unique"] == 0


def test_copies_of_eight_bits_are_found_within_rounding():
    real, train = splits("shapes", size=8, examples=60)
    images = read(train, 60) / 127.5 - 1
    rng = np.random.default_rng(0)
    near = Judge(real, train)(subject(images + rng.uniform(-0.45, 0.45, images.shape) / 127.5))
    off = Judge(real, train)(subject(images + 0.55 / 127.5 * np.where(images < 0, 1, -1)))
    assert near["novelty_new"] == 0
    assert off["novelty_new"] == 1
    # what lies beyond [-1, 1] is clipped as a picture file would be
    assert prints(np.array([[1.4], [-3.0]]), True) == prints(np.array([[255], [0]], np.uint8), True)
    beyond = prints(np.array([[1.4], [1.6], [1.4001], [-5e30]]), False)
    assert beyond[0] == beyond[2]
    assert len(set(beyond)) == 3


def test_rounding_makes_small_pictures_repeat_and_that_is_seen():
    images = np.full((4, 6, 6, 1), 0.5) + np.array([0, 0.001, 0.0015, 0.5])[:, None, None, None]
    assert judge()(subject(images))["novelty_unique"] == 0.25


def test_fresh_draws_have_ratio_one_within_its_interval():
    inside, closer = 0, []
    for key in range(20):
        got = judge()(subject(draws(400, key, size=6)))
        assert got["novelty_ratio_low"] < got["novelty_ratio"] < got["novelty_ratio_high"]
        inside += got["novelty_ratio_low"] <= 1 <= got["novelty_ratio_high"]
        closer.append(got["novelty_closer"])
    # held-out pictures are the same 4,096 each time, which adds little
    assert inside >= 16
    assert np.mean(closer) == pytest.approx(0.5, abs=0.015)


def test_near_copies_and_garbage_lie_on_either_side_of_fresh_draws():
    train = splits(size=6, examples=300)[1]
    near = judge()(subject(read(train, 200) + 0.05 * np.random.default_rng(0).standard_normal((200, 6, 6, 1))))
    garbage = judge()(subject(3 * np.random.default_rng(0).standard_normal((200, 6, 6, 1))))
    assert near["novelty_new"] == garbage["novelty_new"] == garbage["novelty_unique"] == 1
    assert near["novelty_ratio_high"] < 0.5
    assert near["novelty_closer"] > 0.99
    assert garbage["novelty_ratio_low"] > 1.5
    assert garbage["novelty_closer"] < 0.01


def test_validity_is_what_the_sources_own_oracle_says():
    real, train = splits("shapes")
    items = [real[i] for i in range(80)]
    images, labels = np.stack([x["image"] for x in items]) / 127.5 - 1, np.array([x["label"] for x in items])
    labels[:20] = (labels[:20] + 1) % 36
    got = Judge(real, train, n_train=64)(subject(images, labels))
    assert got["novelty_valid"] == 0.75
    assert got["novelty_valid_low"] < 0.75 < got["novelty_valid_high"]
    assert got["novelty_searched"] == 64
    assert "novelty_valid" not in judge()(subject(draws(8, size=6)))


class Few:
    """Pictures in memory that say which of them are valid."""

    def __init__(self, images):
        self.images, self.info = images, {"image": [2, 2, 1]}

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return {"image": self.images[i], "label": np.int32(0)}

    def valid(self, images):
        """Bright ones."""
        return images.mean((1, 2, 3)) > 0


def test_held_out_copies_leave_no_ratio_and_ties_count_half():
    pool = np.random.default_rng(0).integers(0, 256, (5, 2, 2, 1), np.uint8)
    got = Judge(Few(pool), Few(pool))(subject(pool / 127.5 - 1))
    assert got["novelty_closer"] == 0.5
    assert "novelty_ratio" not in got
    assert got["novelty_valid"] == np.mean(pool.mean((1, 2, 3)) > 127.5)
    assert all(k.startswith("novelty_") and isinstance(v, float) for k, v in got.items())


def test_an_endless_training_set_is_searched_in_part(monkeypatch):
    monkeypatch.setattr(novelty, "SEARCH", 299)
    real, train = splits(size=6, examples=300)
    got = Judge(real, train, n_train=100)(subject(read(train, 300)))
    assert got["novelty_searched"] == 100
    assert got["novelty_new"] == pytest.approx(2 / 3)


def test_nearest_is_the_least_distance(monkeypatch):
    monkeypatch.setattr(novelty, "ROWS", 3)
    x, y = np.random.default_rng(0).standard_normal((2, 8, 2, 2, 1)).astype(np.float32)
    truth = [min(np.sqrt(np.mean((a.astype(float) - b) ** 2)) for b in y) for a in x]
    np.testing.assert_allclose(nearest(x, y), truth, rtol=1e-12)
    assert (nearest(x, x + np.float32(0)) == 0).all()


def test_bad_options_are_named():
    with pytest.raises(UserError, match=r"novelty.n_train=1 must be a whole number from 2"):
        Judge(*splits(), n_train=1)
    with pytest.raises(UserError, match="judge 'novelty' judges pictures, which source 'causal' has not"):
        Judge(*splits("causal"))
