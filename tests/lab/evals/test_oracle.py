"""The oracle's accuracy: its known values, its interval's coverage, and a source without an oracle."""

import numpy as np
import pytest

from lab.data.mixture import Source as Mixture
from lab.data.shapes import Source as Shapes
from lab.errors import UserError
from lab.evals import oracle
from lab.evals.subject import Subject

TRAIN, HELD = Shapes("train", ""), Shapes("eval", "")


def subject(images, labels):
    """A model whose samples are given."""
    return Subject(lambda: {"image": images, "label": labels}, dict)


def real(n, start=0):
    items = [HELD[i] for i in range(start, start + n)]
    return np.stack([x["image"] for x in items]) / np.float32(127.5) - 1, np.array([x["label"] for x in items])


def test_real_pictures_are_all_right_and_the_ceiling_is_one():
    found = oracle.Judge(HELD, TRAIN, ceiling=64)(subject(*real(128)))
    assert found["oracle"] == found["oracle_ceiling"] == found["oracle_high"] == 1.0
    assert found["oracle_colour"] == found["oracle_shape"] == 1.0
    assert 0.95 < found["oracle_low"] < 1.0


@pytest.mark.parametrize("right", [0, 32, 100])
def test_a_planted_share_of_right_pictures_is_found_exactly(right):
    images, labels = real(128)
    asked = labels.copy()
    asked[right:] = (asked[right:] + 6) % 36  # the next colour, the same shape
    found = oracle.Judge(HELD, TRAIN, ceiling=8)(subject(images, asked))
    assert found["oracle"] == found["oracle_colour"] == right / 128
    assert found["oracle_shape"] == 1.0
    assert found["oracle_low"] <= right / 128 <= found["oracle_high"]


def test_labels_drawn_apart_give_the_chance_level():
    images, _ = real(2048)
    asked = np.random.default_rng(0).integers(0, 36, 2048)
    found = oracle.Judge(HELD, TRAIN, ceiling=8)(subject(images, asked))
    assert found["oracle_chance"] == 1 / 36
    assert abs(found["oracle"] - 1 / 36) < 4 * np.sqrt(1 / 36 * 35 / 36 / 2048)


def test_the_interval_covers_as_often_as_it_says():
    draws = np.random.default_rng(0).random((400, 64)) < 0.7
    judge = oracle.Judge(HELD, TRAIN, ceiling=1)
    judge.source = Planted()
    found = [judge(subject(d, d)) for d in draws]
    covered = np.mean([f["oracle_low"] <= 0.7 <= f["oracle_high"] for f in found])
    assert abs(covered - oracle.LEVEL) < 0.05


class Planted:
    """A source whose oracle calls samples right that are True."""

    chance = 0.0

    def __len__(self):
        return 1

    def __getitem__(self, i):
        return {"image": np.True_, "label": 0}

    def correct(self, images, labels):
        return np.asarray(images)


def test_a_source_without_an_oracle_is_one_line():
    with pytest.raises(UserError, match="needs a source with an oracle, such as shapes; 'world mixture' has none"):
        oracle.Judge(Mixture("eval", "", size=2, channels=1, rank=1), None)
