"""Where a population's time went, by the events that its attempts left."""

import json
import time

import pytest

from lab import goodput


def attempt(folder, number, *events):
    """A file of events (at, what, more)."""
    lines = [json.dumps({"at": at, "what": what, **more}) for at, what, more in events]
    (folder / f"events-{number:04d}.jsonl").write_text("\n".join(lines) + "\n")


def steps(at, a, b, seconds):
    return at, "steps", {"from": a, "to": b, "seconds": seconds}


def test_steps_that_were_trained_again_are_lost_and_so_is_the_time_between(tmp_path):
    attempt(
        tmp_path,
        1,
        (100, "start", {}),
        (110, "compile", {"seconds": 8}),
        steps(120, 0, 10, 10),
        (121, "save", {"seconds": 1}),
        steps(131, 10, 20, 10),
    )
    attempt(tmp_path, 2, (151, "start", {}), (153, "restore", {"seconds": 2}), steps(163, 15, 25, 10), (167, "eval", {"seconds": 4}))
    told = goodput.account(tmp_path)
    assert told == {
        **{"wall": 67, "steps": 25, "redone": 5, "compile": 8, "restore": 2, "save": 1, "eval": 4, "judge": 0, "replay": 0, "down": 20},
        **{"startup": 0, "init": 0, "between": 0},
        "other": pytest.approx(2),
    }
    assert sum(v for k, v in told.items() if k != "wall") == pytest.approx(told["wall"])
    assert goodput.said(told).startswith("goodput 37.3% of 67 s since the first start; down 29.9%, compile 11.9%, redone 7.5%")


def test_torn_and_damaged_lines_are_no_events(tmp_path):
    attempt(tmp_path, 1, (100, "start", {}), steps(110, 0, 10, 10))
    with (tmp_path / "events-0001.jsonl").open("ab") as f:
        f.write(b'\xff\xfe\n[1]\n{"at": 111}\n{"at": 112, "wh')
    assert [e["what"] for e in goodput.read(tmp_path)[0]] == ["start", "steps"]


def test_a_writer_tells_what_the_account_reads(tmp_path):
    began = time.time()
    events = goodput.Events(tmp_path, 1, began, 3, startup=5.0)
    with events.timed("compile"):
        time.sleep(0.02)
    for n in range(4):
        events.step(4 + n, 0.5)
    events.tell("eval", 0.25, step=7)
    events.close()
    (told,) = goodput.read(tmp_path)
    assert told[0]["owner"].count(":") == 1
    assert [e["what"] for e in told] == ["start", "startup", "compile", "steps", "eval"]
    assert (told[3]["from"], told[3]["to"], told[3]["seconds"]) == (3, 7, 2.0)
    account = goodput.account(tmp_path)
    assert account["steps"] == 2.0
    assert account["startup"] == 5.0
    assert 5.0 < account["wall"] < 7.0
    goodput.Events(tmp_path, 2, began + 60, 7, startup=500.0).close()  # of a process that waited while the first trained
    assert goodput.account(tmp_path)["startup"] < 5.0 + 60
    assert goodput.account(tmp_path)["down"] == pytest.approx(0.0, abs=0.01)
    assert account["compile"] >= 0.02


def test_a_study_counts_the_time_between_its_populations(tmp_path):
    for name, at in (("a", 100), ("b", 130)):
        (tmp_path / name).mkdir()
        attempt(tmp_path / name, 1, (at, "start", {}), steps(at + 20, 0, 10, 20))
    told = goodput.study(tmp_path, ["a", "b", "none"])
    assert (told["wall"], told["steps"], told["between"], told["other"]) == (50, 40, 10, 0)
    assert goodput.said(goodput.study(tmp_path, ["none"])) == ""
