"""The icons: the build is deterministic and checked, the split is by icon, captions are words."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from lab.data import icons
from lab.data.icons import raster
from lab.errors import UserError

SETS = ("octicons",)  # the smallest


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Two data_dirs with the set at 8 pixels, built apart."""
    dirs = [str(tmp_path_factory.mktemp(n)) for n in "ab"]
    for d in dirs:
        icons.build(d, 8, SETS)
    return dirs


def sources(data_dir):
    """Train and eval source."""
    return [icons.Source(s, data_dir, 8, SETS) for s in ("train", "eval")]


def test_two_builds_are_the_same(built):
    first, second = ([s.info for s in sources(d)] for d in built)
    assert first == second
    assert first[0]["fingerprint"] != first[1]["fingerprint"]
    manifests = [json.loads((icons.build(d, 8, SETS) / icons.MANIFEST).read_text()) for d in built]
    assert manifests[0] == manifests[1]


def test_train_and_eval_share_no_icon(built):
    from lab.data.icons.builder import Icons

    rows = Icons(size=8, sets=SETS, data_dir=built[0])._split_generators(None)
    names = {split: [name for name, _ in found] for split, found in rows.items()}
    train, held = sources(built[0])
    assert [len(names["train"]), len(names["eval"])] == [len(train), len(held)]
    assert not set(names["train"]) & set(names["eval"])
    share = len(held) / (len(train) + len(held))
    assert abs(share - 0.05) < 4 * (0.05 * 0.95 / (len(train) + len(held))) ** 0.5


def test_examples_are_black_on_white_with_words_for_captions(built):
    train, _ = sources(built[0])
    images = train.arrays["image"]
    assert images.shape[1:] == (8, 8, 1)
    assert images.dtype == np.uint8
    assert (images.reshape(len(images), -1).min(1) < images.reshape(len(images), -1).max(1)).all()
    assert images.mean() > 127
    assert (train.arrays["label"] == 0).all()
    captions = [train[i]["caption"] for i in range(len(train))]
    assert all(c and c == c.strip() and not set(c) & set("-_/.") for c in captions)
    assert not any(c.endswith((" 12", " 16", " 24")) for c in captions)
    assert raster.caption("brands/arrow-up-24") == "arrow up"


def test_classes_are_the_sets_in_order(built):
    assert sources(built[0])[0].info["class_names"] == list(SETS)
    with pytest.raises(UserError, match=r"set 'octicon' is unknown \(nearest: 'octicons'\)"):
        icons.Source("train", built[0], 8, ("octicon",))
    with pytest.raises(UserError, match=r"data\.size=2 "):
        icons.Source("train", built[0], 2, SETS)


def test_a_flipped_byte_is_found_and_mended(built, capsys):
    assert icons.verify(built[1], 8, SETS).endswith(": sound")
    file = next(icons.build(built[1], 8, SETS).rglob("*train*"))
    whole = file.read_bytes()
    at = len(whole) // 2
    file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(UserError) as e:
        icons.verify(built[1], 8, SETS)
    line = str(e.value)
    assert "\n" not in line
    assert f"{file.name} does not have its checksum" in line
    assert "lab data build icons" in line
    capsys.readouterr()
    icons.build(built[1], 8, SETS)
    told = [t for t in capsys.readouterr().err.splitlines() if "built again" in t]
    assert len(told) == 1
    assert file.name in told[0]
    assert file.read_bytes() == whole
    assert icons.verify(built[1], 8, SETS).endswith(": sound")


@pytest.mark.parametrize("damage", [lambda f: f.unlink(), lambda f: f.write_text("{"), lambda f: f.write_text("[]")])
def test_a_damaged_manifest_is_found(built, damage):
    damage(icons.build(built[1], 8, SETS) / icons.MANIFEST)
    with pytest.raises(UserError, match=r"not complete|manifest\.json is damaged"):
        icons.verify(built[1], 8, SETS)
    icons.build(built[1], 8, SETS)
    assert icons.verify(built[1], 8, SETS).endswith(": sound")


def test_a_killed_build_leaves_nothing_behind(built):
    folder = icons.build(built[1], 8, SETS)
    stale = folder.parent / f".{folder.name}.tmp-killed"
    stale.mkdir()
    (folder / icons.MANIFEST).unlink()
    icons.build(built[1], 8, SETS)
    assert not stale.exists()


def test_a_build_killed_midway_and_run_again_has_the_same_bytes(built, tmp_path):
    code = "import sys; from lab.data import icons; icons.build(sys.argv[1], 8, tuple(sys.argv[2:]))"
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), *SETS], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while not list(tmp_path.glob("icons/.*.tmp-*")) and child.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    assert not list(tmp_path.glob("icons/*/" + icons.MANIFEST))
    folders = [icons.build(d, 8, SETS) for d in (str(tmp_path), built[0])]
    assert not list(tmp_path.glob("icons/.*.tmp-*"))
    first, second = ({p.relative_to(f).as_posix(): p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in folders)
    assert first == second
