"""The icons: the build is deterministic and checked, the split is by icon, captions are words."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from lab.data import icons
from lab.data._greys import Greys
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


def with_tokens(data_dir, levels, split="train"):
    return icons.Source(split, data_dir, 8, SETS, extras=("tokens",), levels=levels)


@pytest.mark.parametrize("levels", [2, 3, 4, 7, 256])
def test_a_token_is_the_nearest_grey_and_the_error_is_told(built, levels):
    source = with_tokens(built[0], levels)
    palette = np.array(source.info["palette"], int)
    assert palette.shape == (levels, 1)
    assert (palette[0, 0], palette[-1, 0]) == (0, 255)
    assert np.ptp(np.diff(palette[:, 0])) <= 1  # evenly spaced
    images, tokens = source.arrays["image"].astype(int), source.arrays["tokens"]
    assert source.dims == {"image": 8, "channels": 1, "classes": 1, "side": 8, "tokens": 64, "vocabulary": levels}
    assert (tokens.dtype, tokens.shape) == (np.int32, images.shape[:3])
    painted = palette[tokens]
    error = np.abs(painted - images)
    assert (error == np.abs(images - palette[:, 0]).min(-1, keepdims=True)).all()
    assert source.info["rms_error"] == pytest.approx(np.sqrt(np.mean(error.astype(float) ** 2)), abs=1e-12)
    assert (source.info["rms_error"] == 0) == (levels == 256)
    np.testing.assert_array_equal(source[5]["tokens"], tokens[5])


def test_more_greys_lack_less_and_none_are_without_tokens(built):
    plain, errors = icons.Source("train", built[0], 8, SETS), [with_tokens(built[0], n).info["rms_error"] for n in (2, 4, 16, 64)]
    assert errors == sorted(errors, reverse=True)
    assert not {"palette", "rms_error"} & set(plain.info)
    assert plain.dims == {"image": 8, "channels": 1, "classes": 1}
    prints = {plain.info["fingerprint"], *(with_tokens(built[0], n).info["fingerprint"] for n in (4, 5))}
    assert len(prints) == 3
    for options, said in (({"extras": ("token",)}, "nearest: 'tokens'"), ({"levels": 1}, "data.levels=1"), ({"levels": 300}, "2 to 256")):
        with pytest.raises(UserError, match=said):
            icons.Source("train", built[0], 8, SETS, **options)


def test_greys_of_pixels_of_any_value_have_the_error_of_even_steps():
    """Bennett's 1 / sqrt(12) of a step; pictures that are ten steps lighter lack more by just that."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 1), np.uint8)
    for levels in (4, 16):
        greys = Greys(levels)
        assert greys.rms(pixels) == pytest.approx(255 / (levels - 1) / 12**0.5, rel=0.02)
        moved = np.abs(greys.palette[greys.tokens(pixels)].astype(float) + 10 - pixels)
        assert np.mean(moved**2) == pytest.approx(greys.rms(pixels) ** 2 + 10**2, rel=0.02)


@pytest.mark.parametrize("views", [1, 2, 8])
def test_views_are_symmetries_of_the_square_each_once(built, views):
    """Of an icon without symmetry all views differ, and each is a turn of it or of its mirror image; class and words stay."""
    plain = icons.Source("train", built[0], 8, SETS)
    source = icons.Source("train", built[0], 8, SETS, views=views, extras=("tokens",), levels=4)
    n = len(plain)
    assert len(source) == views * n == source.info["examples"]

    def square(x):
        return {np.rot90(y, k, axes=(0, 1)).tobytes() for y in (x, x[:, ::-1]) for k in range(4)}

    at = next(i for i in range(n) if len(square(plain[i]["image"])) == 8)  # a symmetric icon looks alike from more sides
    seen = [source[at + k * n] for k in range(views)]
    assert len({x["image"].tobytes() for x in seen}) == views
    assert {x["image"].tobytes() for x in seen} <= square(plain[at]["image"])
    assert {(int(x["label"]), x["caption"]) for x in seen} == {(int(plain[at]["label"]), plain[at]["caption"])}
    assert all((x["tokens"] == Greys(4).tokens(x["image"])).all() for x in seen)


def test_a_number_of_views_that_is_none_is_named(built):
    with pytest.raises(UserError, match=r"data\.views=3 must be one of: 1, 2, 8"):
        icons.Source("train", built[0], 8, SETS, views=3)
