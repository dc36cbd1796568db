"""Clips as folders of frames: their order, their spacing, their classes, and mistakes in one line."""

import mistakes
import numpy as np
import pytest
from PIL import Image

from lab import cli
from lab.data.frames import Source, numbered, spread


def clip(folder, n, value=0):
    """`n` frames whose red channel counts them."""
    folder.mkdir(parents=True)
    for k in range(n):
        Image.fromarray(np.full((5, 5, 3), [k, value, 0], np.uint8)).save(folder / f"shot{k}.png")


@pytest.fixture
def data(tmp_path):
    """Forty clips of two classes, 12 to 15 frames each, and one that is too short."""
    for i in range(40):
        clip(tmp_path / "clips" / ("walk", "run")[i % 2] / f"c{i}", 12 + i % 4, i)
    clip(tmp_path / "clips" / "run" / "brief", 3)
    return tmp_path


def test_frames_are_in_the_order_of_their_numbers_and_evenly_spaced(data):
    seen = []
    for split in ("train", "eval"):
        source = Source(split, str(data), path="clips", size=4, frames=4, eval_share=0.2)
        assert source.info["too_short"] == 1
        for i in range(len(source)):
            item = source[i]
            assert item["image"].shape == (4, 4, 4, 3)
            number = int(item["image"][0, 0, 0, 1])
            assert item["image"][:, 0, 0, 0].tolist() == spread(12 + number % 4, 4)
            assert source.info["class_names"][item["label"]] == ("walk", "run")[number % 2]
            seen.append(number)
    assert sorted(seen) == list(range(40))


@pytest.mark.parametrize("have, n, at", [(12, 4, [0, 4, 7, 11]), (5, 5, [0, 1, 2, 3, 4]), (9, 1, [0]), (2, 2, [0, 1])])
def test_spacing(have, n, at):
    assert spread(have, n) == at


def test_numbers_sort_as_numbers():
    names = ["a/f10.png", "a/f2.png", "a/f1.png"]
    assert sorted(names, key=numbered) == ["a/f1.png", "a/f2.png", "a/f10.png"]
    assert sorted(names) != sorted(names, key=numbered)


def test_a_strip_of_a_clip_is_shown(data, tmp_path, capsys):
    out = tmp_path / "strip.png"
    argv = ["data", "show", "frames", "path=clips", "size=4", "frames=4", "-n", "2", "--data-dir", str(data), "--out", str(out)]
    assert cli.main(argv) == 0
    assert out.stat().st_size > 500
    assert "too_short: 1" in capsys.readouterr().out


def test_mistakes_are_one_line(data):
    def said(**options):
        return mistakes.said(Source, "train", str(data), **{"path": "clips", "size": 4, "frames": 4, **options})

    assert "nearest: 'clips'" in said(path="clps")
    assert "data.frames=0" in said(frames=0)
    assert "data.frames=16" in said(frames=16)
    Image.new("RGB", (5, 5)).save(data / "clips" / "loose.png")
    assert "'loose.png'" in said()
