"""Batches are a function of (seed, step); an epoch is a permutation; errors reach the consumer."""

import numpy as np
import pytest
from small import Source

from lab.data.loader import Loader, decode, open_source
from lab.errors import UserError


class Rows:
    """A source without arrays, to stream: each example is its own number."""

    def __init__(self, n=24, broken=None):
        self.n, self.broken = n, broken

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        if i == self.broken:
            raise UserError(f"example {i} is damaged")
        return {"row": np.int32(i), "caption": str(i)}


class Held(Rows):
    """The same, in memory."""

    @property
    def arrays(self):
        return {"row": np.arange(self.n, dtype=np.int32)}


@pytest.fixture
def take():
    """Batches of a loader that is closed when the test ends."""
    opened = []

    def call(source, n, **options):
        opened.append(Loader(source, **{"batch": 6, "seeds": [0, 1], **options}))
        return [next(opened[-1]) for _ in range(n)]

    yield call
    for loader in opened:
        loader.close()
        assert not loader._thread.is_alive()


@pytest.mark.parametrize("kind", [Rows, Held])
def test_batch_is_the_same_wherever_the_iteration_starts(take, kind):
    whole = take(kind(), 11)
    for start in (1, 4, 7):
        for a, b in zip(whole[start:], take(kind(), 11 - start, start=start), strict=True):
            np.testing.assert_array_equal(a["row"], b["row"])


def test_streamed_and_held_are_the_same_and_captions_stay_behind(take, monkeypatch):
    held = take(Held(), 5)
    monkeypatch.setattr("lab.data.loader.decode", lambda source: None)
    for a, b in zip(held, take(Rows(), 5), strict=True):
        assert a.keys() == b.keys() == {"row"}
        np.testing.assert_array_equal(a["row"], b["row"])


def test_each_seed_has_an_order_of_its_own_whatever_its_neighbours(take):
    pair = np.stack([b["row"] for b in take(Held(), 4)], 1).reshape(2, -1)
    assert pair.shape == (2, 24)
    assert (pair[0] != pair[1]).any()
    alone = np.stack([b["row"] for b in take(Held(), 4, seeds=[1])], 1).reshape(-1)
    np.testing.assert_array_equal(alone, pair[1])


def test_an_epoch_covers_every_example_once_and_is_shuffled_anew(take):
    rows = np.stack([b["row"] for b in take(Held(), 12)], 1).reshape(2, 3, 24)
    np.testing.assert_array_equal(np.sort(rows, -1), np.broadcast_to(np.arange(24), rows.shape))
    assert (rows[:, 0] != rows[:, 1]).any()
    assert (rows[:, 1] != rows[:, 2]).any()


def test_batches_may_cross_epochs(take):
    rows = np.concatenate([b["row"][0] for b in take(Held(10), 5, batch=6)])
    np.testing.assert_array_equal(np.sort(rows.reshape(3, 10), -1), np.broadcast_to(np.arange(10), (3, 10)))


def test_keys_of_an_example_stay_together(take):
    source = Source(n=32)
    for b in take(source, 3, batch=8, seeds=[3]):
        assert b["image"].shape == (1, 8, 16, 16, 1)
        for image, label in zip(b["image"][0], b["label"][0], strict=True):
            i = np.flatnonzero((source.arrays["image"] == image).all((1, 2, 3)))
            assert label in source.arrays["label"][i]


def test_a_batch_larger_than_the_source_is_refused():
    with pytest.raises(UserError, match=r"train\.batch=25 is larger than the source, which has 24 examples"):
        Loader(Held(), batch=25, seeds=[0])


def test_state_is_the_next_step(take):
    loader = Loader(Held(), batch=6, seeds=[0], start=3)
    assert loader.state == {"step": 3}
    next(loader)
    next(loader)
    assert loader.state == {"step": 5}
    after = next(loader)
    loader.close()
    np.testing.assert_array_equal(after["row"], take(Held(), 1, seeds=[0], start=5)[0]["row"])


def test_an_error_while_reading_ahead_reaches_the_consumer(take, monkeypatch):
    monkeypatch.setattr("lab.data.loader.decode", lambda source: None)
    with pytest.raises(UserError, match="example 7 is damaged"):
        take(Rows(broken=7), 4)


def test_decodes_numbers_only_and_only_within_memory():
    assert decode(Rows()).keys() == {"row"}
    assert decode(Rows(), memory=4 * 24 - 1) is None
    held = Held()
    np.testing.assert_array_equal(decode(held)["row"], held.arrays["row"])


def test_opening_names_what_is_wrong_with_the_data_section(tmp_path):
    with pytest.raises(UserError, match="'iconz' is unknown"):
        open_source({"name": "iconz"}, "train", str(tmp_path))
    with pytest.raises(UserError, match=r"data 'sise' is unknown \(nearest: 'size'\)"):
        open_source({"name": "icons", "sise": 8}, "train", str(tmp_path))
    with pytest.raises(UserError, match=r"data\.size is missing"):
        open_source({"name": "icons"}, "train", str(tmp_path))
