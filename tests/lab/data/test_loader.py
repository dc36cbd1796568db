"""Batches are a function of (seed, step); an epoch is a permutation; errors reach the consumer."""

import multiprocessing
import threading

import numpy as np
import pytest
import small
from rows import Rows
from small import Source

from lab import population
from lab.data import loader as loading
from lab.data.loader import Loader, decode, open_source, shown
from lab.errors import UserError


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
    assert not [p for p in multiprocessing.active_children() if "grain" in p.name]


@pytest.mark.parametrize("kind", [Rows, Held])
def test_batch_is_the_same_wherever_the_iteration_starts(take, kind):
    whole = take(kind(), 11)
    for start in (1, 4, 7):
        for a, b in zip(whole[start:], take(kind(), 11 - start, start=start), strict=True):
            np.testing.assert_array_equal(a["row"], b["row"])


def test_streamed_and_held_are_the_same_and_captions_stay_behind(take, streamed):
    held = take(Held(), 5)
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


def test_so_many_distinct_examples_are_seen_as_records_say(take):
    class Writer:
        attempt, rows = 1, []

        def append(self, rows):
            self.rows += rows

    writer, seen = Writer(), set()
    log = population.Records(writer, small.trials([{}]), batch=6, train=range(10), flops=1.0)
    for step, b in enumerate(take(Held(10), 4), 1):
        seen |= set(b["row"][0].tolist())
        log.write_scalars(step, {"diverged": np.array([False])})
        assert writer.rows[-1]["unique"] == len(seen)
    assert [r["unique"] for r in writer.rows] == [6, 10, 10, 10]


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


@pytest.fixture
def streamed(monkeypatch):
    """No source is held in memory."""
    monkeypatch.setattr(loading, "decode", lambda source: None)


def together(take, hosts, steps, source=None, **options):
    """The rows of `steps` batches [steps, seeds, batch], the slices of all hosts put together in order."""
    parts = [[b["row"] for b in take(source or Rows(), steps, batch=8, host=(i, hosts), **options)] for i in range(hosts)]
    return np.concatenate(parts, axis=2)


@pytest.mark.parametrize("kind", [Rows, Held])
@pytest.mark.parametrize("hosts", [2, 4, 8])
def test_hosts_share_the_same_batches(take, kind, hosts):
    whole = together(take, 1, 9, kind())  # three epochs
    np.testing.assert_array_equal(together(take, hosts, 9, kind()), whole)


@pytest.mark.parametrize("workers", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_workers_give_the_same_batches_and_go_on_from_any_other_number(take, streamed, workers):
    whole = together(take, 1, 9)
    at = 0
    for hosts, n, steps in ((1, 0, 2), (2, workers, 4), (4, 0, 3)):  # resumed with another number of both
        i = hosts - 1
        part = np.stack([b["row"] for b in take(Rows(), steps, batch=8, start=at, host=(i, hosts), workers=n)])
        np.testing.assert_array_equal(part, np.split(whole[at : at + steps], hosts, axis=2)[i])
        at += steps


def test_the_comparison_of_hosts_can_fail(take):
    whole = together(take, 1, 3)
    halves = np.split(whole, 2, axis=2)
    assert (np.concatenate(halves[::-1], axis=2) != whole).any()  # hosts in the wrong order
    woven = np.stack(halves, -1).reshape(whole.shape)  # each host every second example
    assert (woven != whole).any()
    assert (together(take, 2, 3, start=1) != whole).any()  # resumed one step off


USERS = """
import numpy as np
from lab.errors import UserError
class Source:
    def __init__(self, split, data_dir, broken=-1):
        self.broken = broken
    def __len__(self):
        return 24
    def __getitem__(self, i):
        if i == self.broken:
            raise UserError(f"example {i} is damaged")
        return {"row": np.int32(i), "caption": str(i)}
"""


def test_a_source_from_a_users_file_reaches_the_workers_and_its_errors_come_back(take, streamed, tmp_path):
    (tmp_path / "mine.py").write_text(USERS)
    late = int(together(take, 1, 3)[2, 1, 7])
    source = open_source({"name": str(tmp_path / "mine.py"), "broken": late}, "train", "")
    assert type(source).__module__.startswith("lab_user_")
    batches = Loader(source, 8, [0, 1], workers=1)
    try:
        np.testing.assert_array_equal(next(batches)["row"], together(take, 1, 1)[0])
        with pytest.raises(UserError, match=f"example {late} is damaged"):
            list(zip(range(2), batches, strict=False))
    finally:
        batches.close()


def test_a_source_that_cannot_be_sent_is_named_at_once(streamed):
    source = Rows()
    source.lock = threading.Lock()
    with pytest.raises(UserError, match=r"run\.workers=2: the source cannot be sent"):
        Loader(source, 6, [0], workers=2)


@pytest.mark.parametrize(
    "options, said",
    [
        (dict(host=(0, 4)), r"train\.batch=6 must be a multiple of the number of hosts, 4"),
        (dict(workers=-1), r"run\.workers=-1 must be a whole number"),
        (dict(workers=1.5), r"run\.workers=1\.5 must be a whole number"),
    ],
)
def test_what_cannot_be_shared_is_refused(options, said):
    with pytest.raises(UserError, match=said):
        Loader(Held(), batch=6, seeds=[0], **options)


def test_examples_that_a_source_reads_together_are_the_same(take, streamed):
    class Together(Rows):
        asked = 0

        def __getitems__(self, rows):
            self.asked += 1
            return [self[i] for i in rows]

    source = Together()
    for a, b in zip(take(source, 5), take(Rows(), 5), strict=True):
        np.testing.assert_array_equal(a["row"], b["row"])
    assert source.asked >= 5


def test_a_bar_appears_only_where_work_is_slow(capsys):
    assert list(shown(iter("abc"), 3, "reading")) == ["a", "b", "c"]
    assert not capsys.readouterr().err
    assert list(shown(iter("abc"), 3, "reading", after=0.0)) == ["a", "b", "c"]
    assert "reading" in capsys.readouterr().err


def test_an_error_while_reading_ahead_reaches_the_consumer(take, streamed):
    with pytest.raises(UserError, match="example 7 is damaged"):
        take(Rows(broken=7), 4)


def test_decodes_numbers_only_and_only_within_memory():
    np.testing.assert_array_equal(decode(Rows(n=100))["row"], np.arange(100))  # more than a thread takes at a time
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
