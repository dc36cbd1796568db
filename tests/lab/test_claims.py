"""Claims: one holder at a time whatever ends it, and takers that race do not both win."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest

from lab import claims

CODE = """
import sys, time
from lab import claims
claims.BEAT = {beat}
with claims.take({folder!r}, "p"):
    print("held", flush=True)
    sys.stdin.read()
"""


def other(folder, beat=5.0):
    """A process that holds the claim `p` until its input ends."""
    code = CODE.format(folder=str(folder), beat=beat)
    found = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert found.stdout.readline() == "held\n"
    return found


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(claims, "BEAT", 0.05)  # so a claim is stale after 0.6 s


def test_a_claim_has_one_holder_who_is_told(tmp_path):
    with claims.take(tmp_path, "p"):
        assert claims.take(tmp_path, "p") is None
        assert claims.holders(tmp_path) == {"p": claims.owner()}
        with claims.take(tmp_path, "q"):
            assert set(claims.holders(tmp_path)) == {"p", "q"}
    assert claims.holders(tmp_path) == {}
    with claims.take(tmp_path, "p"):
        assert claims.take(tmp_path, "p") is None


@pytest.mark.parametrize("how", [signal.SIGKILL, None])
def test_a_dead_holder_s_claim_is_free_at_once(tmp_path, how):
    held = other(tmp_path)
    try:
        assert claims.take(tmp_path, "p") is None
        assert claims.holders(tmp_path)["p"].endswith(f":{held.pid}")
    finally:
        held.kill() if how else held.stdin.close()
        held.wait()
    with claims.take(tmp_path, "p"):
        pass


def test_of_another_machine_a_claim_is_stale_when_beats_are_missed_and_not_before(tmp_path, fast, monkeypatch):
    monkeypatch.setattr(claims, "_here", lambda: "another machine")
    held = other(tmp_path, beat=0.05)
    try:
        for _ in range(8):
            time.sleep(0.1)
            assert claims.take(tmp_path, "p") is None  # it beats
        held.send_signal(signal.SIGSTOP)
        time.sleep(0.3)
        assert claims.take(tmp_path, "p") is None  # a few beats may be missed
        time.sleep(0.7)
        with claims.take(tmp_path, "p"):
            held.send_signal(signal.SIGCONT)
            assert held.wait(20) == 75  # it finds its work taken, and ends before it writes
            assert "taken over" in held.stderr.read()
            assert claims.holders(tmp_path) == {"p": claims.owner()}
    finally:
        held.kill()
        held.communicate()


def test_clocks_need_not_agree(tmp_path, fast, monkeypatch):
    monkeypatch.setattr(claims, "_here", lambda: "another machine")
    with claims.take(tmp_path, "p"):
        monkeypatch.setattr(time, "time", lambda: 4e9)
        assert claims.take(tmp_path, "p") is None


def test_a_holder_outlives_a_folder_that_cannot_be_listed_for_a_moment(tmp_path, fast, monkeypatch):
    """And still ends where another has taken over meanwhile."""
    lost, listdir, broken = threading.Event(), os.listdir, [True]

    def failing(path):
        if broken[0]:
            raise OSError(116, "Stale file handle")
        return listdir(path)

    with claims.take(tmp_path, "p", lost.set) as claim:
        monkeypatch.setattr(claims.os, "listdir", failing)
        time.sleep(0.3)
        assert not lost.is_set()
        broken[0] = False
        before = claim.path.stat().st_mtime_ns
        time.sleep(0.3)
        assert claim.path.stat().st_mtime_ns > before  # it beats again
        (claim.path.parent / "p.9").write_text("{}")
        assert lost.wait(2)


def test_takers_that_race_do_not_both_win(tmp_path):
    """Eight threads take, hold and release one claim: never are two inside."""
    inside, seen, won = Counter(), [], Counter()

    def work(i):
        while won[i] < 5:
            if claim := claims.take(tmp_path, "p"):
                with claim:
                    inside["now"] += 1
                    seen.append(inside["now"])
                    time.sleep(0.001)
                    inside["now"] -= 1
                    won[i] += 1
            else:
                time.sleep(0.001)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert seen == [1] * 40
    assert len(os.listdir(tmp_path / claims.FOLDER)) <= 2  # what is superseded is tidied away


def test_alone_waits_and_tells_whom_for(tmp_path, monkeypatch):
    held, told = other(tmp_path), []
    monkeypatch.setattr(claims, "WAITED", 0.1)
    threading.Timer(0.6, held.stdin.close).start()
    with claims.alone(tmp_path, "p", told.append):
        assert claims.holders(tmp_path) == {"p": claims.owner()}
    held.wait()
    assert len(told) == 1
    assert f":{held.pid}" in told[0]
